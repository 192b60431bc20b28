"""torchtune saves to two places: weights to ``epoch_N/``, all else over ``recipe_state/``.

The weights of one epoch with the state of another are a mixture, which a restore does not bring. So
that it has both the state goes first, and the weights follow once it is in the store.
"""

from __future__ import annotations

from pathlib import Path

from syncd.companions import RECIPE, is_step
from syncd.pathrules import member
from syncd.series import series, step_of
from syncd.siblings import Committed
from syncd.units import Unit

_FILE = f"{RECIPE}.pt"


def state_to_come(root: Path, unit: Unit, committed: Committed | None, rested: bool) -> str:
    """The state that belongs to these weights and is not in the store yet; "" where none is.

    It is written right after the weights, but not with the last ones of a training: what has
    ``rested`` for long, beside an older state, gets none any more. Nor does what has a later
    one beside it: the state is about to be written over, or is another one's by now.
    """
    stat = _state_beside(root, unit)
    if stat is None or committed is None:
        return ""
    path = _folder(unit)
    there = rested if stat[1] < unit.written[0] else committed.of(path).get(_FILE) == stat
    return "" if there or _has_later(root, unit) else member(path, _FILE)


def _has_later(root: Path, unit: Unit) -> bool:
    folder, _, name = unit.path.rpartition("/")
    try:
        others = [other.name for other in (root / folder).iterdir()]
    except OSError:
        return False
    return any(series(one) == series(name) and step_of(one) > step_of(name) for one in others)


def _folder(unit: Unit) -> str:
    return member(unit.path.rpartition("/")[0], RECIPE)


def _state_beside(root: Path, unit: Unit) -> tuple[int, int] | None:
    """Size in bytes and time of modification in nanoseconds."""
    if unit.companion or unit.lone or not is_step(unit.path.rpartition("/")[2]):
        return None
    try:
        stat = (root / _folder(unit) / _FILE).stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
