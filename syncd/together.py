"""Files of one folder that make one checkpoint, by their names.

``model_100.pt`` and ``optim_100.pt`` are of one step, and so are ``netG_epoch_5.pth`` and
``netD_epoch_5.pth``; ``model.pt`` and ``optimizer.pt`` are written over each time. ``best.pt`` and
``last.pt`` are of two moments. One of them without the others is of no use to the trainer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from syncd.companions import accompanies
from syncd.scan import Stat

# These are for names whose numbers are a # each.

_STATE = re.compile(
    r"\.(pt|pth|pth\.tar|ckpt|safetensors|pkl|pickle|npz|msgpack|joblib|h#|keras|zip|pdparams|pdopt"
    r"|params|states?|opt|optim|t#|index|data-#-of-#)$"
    r"|(?<=model|mizer|duler|_args|optim)\.bin$",
    re.IGNORECASE,
)
"""What trainers keep their state in, and write in one go."""

_RAW = re.compile(r"\.(bin|npy|dat|model)$", re.IGNORECASE)
"""Taken for state only where they have a number: others may be written all the time."""

_TEXT = re.compile(r"\.(json|ya?ml)$", re.IGNORECASE)
"""Text that belongs to a step if it has its number (``meta_000100.json``)."""

_INDEX = re.compile(
    r"(?<![a-z])(rank|agent|worker|member|expert|gpu|device|process|[mptde]p)[-_.]?#|-#-of-#",
    re.IGNORECASE,
)
"""Numbers that tell the files of one step from each other."""

_RANDOM = re.compile("#[a-f]+#[a-f]+#")
_NUMBER = re.compile(r"\d+")

_MOMENTS = {
    *("best", "last", "latest", "newest", "current", "final", "end", "swa", "init", "initial"),
    *("previous", "prev", "old", "backup", "bak"),
}

_MOST = 256
"""Files of one such checkpoint: more of one number are rather the pieces of something else."""


@dataclass(frozen=True)
class _Kind:
    """What the names that differ in numbers only have in common."""

    counts: tuple[bool, ...]
    """Of each number, whether it tells the step."""

    moment: frozenset[str]
    text: bool
    indexed: bool


class _Moment(NamedTuple):
    step: tuple[int, ...]
    words: frozenset[str]


def gathered(files: Mapping[str, Stat]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The checkpoints that are several files each: the one that names it, and all.

    A file that is alone with its number, but whose like had others beside it, is one that others
    are still to come to.
    """
    kinds: dict[str, _Kind | None] = {}
    found: list[tuple[str, str]] = []
    for name, stat in files.items():
        if "#" in name:
            continue
        form = _NUMBER.sub("#", name)
        if form not in kinds:
            kinds[form] = _kind_of(form, name, stat)
        if kinds[form]:
            found.append((name, form))
    known = {form: kind for form, kind in kinds.items() if kind}
    if len(known) < 2 and not any(kind.indexed for kind in known.values()):
        return  # a folder of thousands that are all alike, as a rule
    by_moment: defaultdict[_Moment, list[str]] = defaultdict(list)
    for name, form in found:
        kind = known[form]
        numbers = zip(_NUMBER.findall(name), kind.counts, strict=True)
        step = tuple(int(number) for number, counts in numbers if counts)
        by_moment[_Moment(step, kind.moment)].append(name)
    forms = dict(found)
    several = {m: sorted(names) for m, names in by_moment.items() if 1 < len(names) <= _MOST}
    accompanied = {
        forms[name] for moment, names in several.items() if moment.step for name in names
    }
    for moment, names in several.items():
        states = [name for name in names if not known[forms[name]].text]
        if states:
            yield _head(moment, states, files), tuple(names)
    for moment, (name, *others) in by_moment.items():
        awaits = forms[name] in accompanied and not known[forms[name]].text
        if moment.step and not others and awaits:
            yield name, (name,)


def _head(moment: _Moment, states: list[str], files: Mapping[str, Stat]) -> str:
    """The file that names a checkpoint: the same while others of it are still to come.

    Of a step that is the one that was written first. What is written over is all there, mostly.
    """
    return min(states, key=lambda name: (files[name].mtime_ns if moment.step else 0, name))


def _kind_of(form: str, name: str, stat: Stat) -> _Kind | None:
    """What such names tell; None if it is neither a step nor a moment, or they are no state."""
    if _RANDOM.search(form) or not form.isprintable():  # no store can have some such names
        return None
    text = _TEXT.search(form)
    ends = _STATE.search(form) or _RAW.search(form) or text
    if not ends or (accompanies(name, stat) and not text):
        return None
    stem = form[: ends.start()]
    index = {at for found in _INDEX.finditer(stem) for at in range(*found.span())}
    places = [at for at, char in enumerate(form) if char == "#"]
    counts = tuple(at < len(stem) and at not in index for at in places)
    if not any(counts) and not _STATE.search(form):
        return None
    moment = _MOMENTS.intersection(re.findall("[a-z]+", stem.lower()))
    return _Kind(counts, frozenset(moment), bool(text), bool(index))
