"""Files of one folder that make one checkpoint, by their names.

``model_100.pt`` and ``optim_100.pt`` are of one step, and so are ``netG_epoch_5.pth`` and
``netD_epoch_5.pth``; ``model.pt`` and ``optimizer.pt`` are written over each time. ``best.pt`` and
``last.pt`` are of two moments. One of them without the others is of no use to the trainer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from syncd.companions import accompanies
from syncd.scan import Stat

_STATE = re.compile(
    r"\.(pt|pth|pth\.tar|ckpt|safetensors|pkl|pickle|npz|msgpack|joblib|h5|keras|zip|pdparams|pdopt"
    r"|params|states?|opt|optim|t7|index|data-\d+-of-\d+)$"
    r"|^((diffusion_)?pytorch_model|adapter_model|optimizer|optim|scheduler|training_args)\b.*\.bin$",
    re.IGNORECASE,
)
"""What trainers keep their state in, and write in one go."""

_RAW = re.compile(r"\.(bin|npy|dat|model)$", re.IGNORECASE)
"""Taken for state only where they have a number: others may be written all the time."""

_TEXT = re.compile(r"\.(json|ya?ml)$", re.IGNORECASE)
"""Text that belongs to a step if it has its number (``meta_000100.json``)."""

_INDEX = re.compile(
    r"(?<![a-z])(rank|agent|worker|member|expert|gpu|device|process|[mptde]p)[-_.]?\d+|-\d+-of-\d+",
    re.IGNORECASE,
)
"""Numbers that tell the files of one step from each other."""

_MOMENTS = {
    *("best", "last", "latest", "newest", "current", "final", "end", "swa", "init", "initial"),
    *("previous", "prev", "old", "backup", "bak"),
}
_RANDOM = re.compile(r"(?=[0-9a-f]*[0-9])(?=[0-9a-f]*[a-f])[0-9a-f]{8,}")
_NUMBER = re.compile(r"\d+")

_MOST = 256
"""Files of one such checkpoint: more of one number are rather the pieces of something else."""

_Moment = tuple[tuple[int, ...], frozenset[str]]


def gathered(files: Mapping[str, Stat]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The checkpoints that are several files each: the one that names it, and all.

    A file that is alone with its number, but whose like had others beside it, is one that others
    are still to come to.
    """
    by_moment: defaultdict[_Moment, list[str]] = defaultdict(list)
    for name, stat in files.items():
        moment = _moment_of(name, stat)
        if moment:
            by_moment[moment].append(name)
    several = {
        moment: sorted(names) for moment, names in by_moment.items() if 1 < len(names) <= _MOST
    }
    kinds = {_kind(name) for (step, _), names in several.items() if step for name in names}
    for moment, names in several.items():
        states = [name for name in names if not _TEXT.search(name)]
        if states:
            yield _head(moment, states, files), tuple(names)
    for (step, _), names in by_moment.items():
        (name, *others) = names
        if step and not others and _kind(name) in kinds and not _TEXT.search(name):
            yield name, (name,)


def _head(moment: _Moment, states: list[str], files: Mapping[str, Stat]) -> str:
    """The file that names a checkpoint: the same while others of it are still to come.

    Of a step that is the one that was written first. What is written over is all there, mostly.
    """
    return min(states, key=lambda name: (files[name].mtime_ns if moment[0] else 0, name))


def _moment_of(name: str, stat: Stat) -> _Moment | None:
    """Of which step or moment a file is; None where its name does not tell, or it is no state."""
    ends = _STATE.search(name) or _RAW.search(name) or _TEXT.search(name)
    if not ends or not name.isprintable():  # such a name may be one that no store can have
        return None
    stem = _INDEX.sub("", name.rpartition(".")[0] if ends.start() == 0 else name[: ends.start()])
    numbers = tuple(int(number) for number in _NUMBER.findall(stem))
    if _RANDOM.search(stem) or not (numbers or _STATE.search(name)):
        return None
    if accompanies(name, stat) and not _TEXT.search(name):
        return None
    return numbers, frozenset(_MOMENTS.intersection(re.findall("[a-z]+", stem.lower())))


def _kind(name: str) -> str:
    return _NUMBER.sub("#", name)
