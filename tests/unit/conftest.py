"""What every unit test leaves behind is closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.journal import Journal


@pytest.fixture(autouse=True)
def close_journals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Journals are closed when a test ends: a machine that dies in one has no time to."""
    opened: list[Journal] = []
    init = Journal.__init__

    def remember(self: Journal, path: Path | None, store: str) -> None:
        init(self, path, store)
        opened.append(self)

    monkeypatch.setattr(Journal, "__init__", remember)
    yield
    for journal in opened:
        journal.close()
