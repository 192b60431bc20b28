"""What the user did or gave that cannot work: exit code 2, one clear line for each fault.

TrainerError
└── UsageFault      settings, options, a run that cannot be resumed as asked
    └── BadData     the market data file, with line and column where there is one
"""

from __future__ import annotations

from pathlib import Path


class TrainerError(Exception):
    """Base of the errors that this package raises on purpose."""


class UsageFault(TrainerError):
    """Something a person must change before training can begin; lists all that was found."""

    def __init__(self, *faults: str) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class BadData(UsageFault):
    """The market data file cannot be used."""

    def __init__(
        self, path: Path | str, reason: str, *, line: int | None = None, column: str | None = None,
        unit: str = "line",
    ) -> None:  # fmt: skip
        where = str(path)
        if line is not None:
            where += f", {unit} {line}"
        if column is not None:
            where += f", column {column}"
        super().__init__(f"{where}: {reason}")
        self.reason, self.line, self.column = reason, line, column
