"""What a person sees: a live table on a terminal, one plain line a generation anywhere else."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

SHOWN = 8  # generations in the live table


def percent(log_return: float) -> str:
    """A log return as people say it: +3.21%."""
    return f"{100 * math.expm1(log_return):+.2f}%"


def duration(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """The voice of a run; a closed standard output silences it and stops nothing."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._seconds: deque[float] = deque(maxlen=10)
        self._rows: deque[tuple[str, ...]] = deque(maxlen=SHOWN)
        self._live: Live | None = None
        self._total = 0

    @staticmethod
    def silent() -> Display:
        """A voice that nobody hears."""
        return Display(Console(quiet=True))

    def say(self, text: str) -> None:
        """One plain line."""
        with contextlib.suppress(OSError, ValueError):
            self._console.print(text, markup=False)

    def warn(self, text: str) -> None:
        """A line that must not be missed."""
        with contextlib.suppress(OSError, ValueError):
            self._console.print(f"WARNING: {text}", markup=False, style="bold yellow")

    @contextlib.contextmanager
    def training(self, total: int) -> Iterator[None]:
        """Show the generations of this block."""
        self._total = total
        if not self._console.is_terminal:
            yield
            return
        with Live(console=self._console, refresh_per_second=4) as self._live:
            yield
        self._live = None

    def generation(self, entry: Mapping[str, Any], seconds: float) -> None:
        """Tell of a finished generation and of the time left."""
        self._seconds.append(seconds)
        done = entry["generation"]
        left = (self._total - done) * sum(self._seconds) / len(self._seconds)
        learner = max(entry["learners"], default=math.nan)
        row = (f"{done}/{self._total}", percent(entry["best"]), percent(entry["mean"]),
               percent(learner), percent(entry["validation"]) if "validation" in entry else "",
               f"{seconds:.2f} s")  # fmt: skip
        self._rows.append(row)
        if self._live is not None:
            with contextlib.suppress(OSError, ValueError):
                self._live.update(self._picture(done, left))
            return
        checked = f"  validation {row[4]}" if row[4] else ""
        self.say(
            f"generation {row[0]}  best {row[1]}  mean {row[2]}  learner {row[3]}{checked}"
            f"  {row[5]}  left {duration(left)}"
        )

    def results(self, columns: Mapping[str, Mapping[str, float]]) -> None:
        """A table of log returns: a column for each split, a row for each policy."""
        table = Table(title="return after costs", title_justify="left")
        table.add_column("policy")
        for name in columns:
            table.add_column(name, justify="right")
        for policy in next(iter(columns.values())):
            table.add_row(policy, *(percent(column[policy]) for column in columns.values()))
        with contextlib.suppress(OSError, ValueError):
            self._console.print(table)

    def _picture(self, done: int, left: float) -> Group:
        table = Table(box=None)
        for name in ("generation", "best", "mean", "learner", "validation", "time"):
            table.add_column(name, justify="right")
        for row in self._rows:
            table.add_row(*row)
        bar = Progress(BarColumn(), TextColumn("{task.completed}/{task.total}"),
                       TextColumn(f"left {duration(left)}"))  # fmt: skip
        bar.add_task("training", total=self._total, completed=done)
        return Group(table, bar)
