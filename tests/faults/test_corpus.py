"""Over a labelled corpus: no incomplete checkpoint is ever committed, the complete ones soon."""

from __future__ import annotations

import statistics

import pytest

from tests.faults.corpus import MANNERS, run, table
from tests.faults.manners import every_writer

pytestmark = pytest.mark.alone


@pytest.mark.slow
def test_every_writer_in_every_manner() -> None:
    """The bound of two seconds is for a machine that does nothing else: here, for most of them."""
    writers = [*every_writer()]
    assert len(writers) >= 15
    cells = run(writers, MANNERS, seed=1, lanes=12)
    words = "\n".join(table(cells))
    print(words)
    assert not [cell.torn for cell in cells if cell.torn], words
    complete = sum(cell.complete for cell in cells)
    missed = sum(len(cell.missed) for cell in cells)
    assert complete > 3 * len(cells) - 20
    assert missed <= complete / 100, words
    delays = [delay for cell in cells for delay in cell.delays]
    assert statistics.quantiles(delays, n=20)[-1] < 2.0, words
