"""Files of one folder that make one checkpoint, by their names.

``model_100.pt`` and ``optim_100.pt`` are of one step, and so are ``netG_epoch_5.pth`` and
``netD_epoch_5.pth``; ``model.pt`` and ``optimizer.pt`` are written over each time, and
``best_model.pt`` is of another moment. One of them without the others is of no use to the trainer.
Only names that say which part of a state they hold are joined: all others are whole by themselves.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

# These are for names whose numbers are a # each.

_STATE = re.compile(
    r"\.(pt|pth|pth\.tar|ckpt|safetensors|bin|pkl|pickle|npz|msgpack|h#|keras|pdparams|pdopt|params"
    r"|states?)$",
    re.IGNORECASE,
)
"""What trainers keep their state in, and write in one go."""

_PIECE = re.compile(r"\.(index|meta|data-#-of-#)$")
"""The pieces of a checkpoint of TensorFlow."""

_INDEX = re.compile(r"(?<![a-z])rank[-_.]?#|-#-of-#|#\.#", re.IGNORECASE)
"""Numbers that tell the files of one step from each other, and such as are no step."""

_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NUMBER = re.compile(r"\d+")

_PARTS = (
    "model", "net", "network", "weights", "params", "unet", "vae", "backbone", "encoder", "decoder",
    "head", "policy", "actor", "critic", "value", "target", "generator", "discriminator", "g", "d",
    "ema", "optimizer", "optim", "opt", "scheduler", "sched", "scaler", "rng", "criterion",
)  # fmt: skip
"""Words for a part of the state. The first of them names the checkpoint."""

_EMPTY = {"state", "states", "dict", "lr", "pytorch", "rank", "of"}

_MOST = 256
"""Files of one such checkpoint: more of one number are rather the pieces of something else."""

_LOOKED_AT = 10_000
"""Files that may be parts, of which a folder with more is rather a memory than checkpoints."""


@dataclass(frozen=True)
class _Kind:
    """What the names that differ in numbers only have in common."""

    counts: tuple[bool, ...]
    """Of each number, whether it tells the step."""

    words: frozenset[str]
    """Those that tell no part: what else is in the name, and of which moment it is."""

    place: int
    """Of its part, in their order."""


class _Moment(NamedTuple):
    step: tuple[int, ...]
    words: frozenset[str]


class Gathered(NamedTuple):
    """Several files that are one checkpoint."""

    head: str
    """The one that names it, which depends on names alone."""

    names: tuple[str, ...]


def gathered(files: Mapping[str, object]) -> Iterator[Gathered]:
    """The checkpoints of a folder that are several files each."""
    kinds: dict[str, _Kind | None] = {}
    forms: dict[str, str] = {}
    for name in files:
        form = _NUMBER.sub("#", name)
        if form not in kinds:
            kinds[form] = _kind_of(form)
        if kinds[form] and "#" not in name:
            forms[name] = form
    known = {form: kind for form, kind in kinds.items() if kind}
    if len(forms) > _LOOKED_AT:
        return
    by_moment: defaultdict[_Moment, list[str]] = defaultdict(list)
    for name, form in forms.items():
        numbers = zip(_NUMBER.findall(name), known[form].counts, strict=True)
        step = tuple(int(number) for number, counts in numbers if counts)
        by_moment[_Moment(step, known[form].words)].append(name)
    for names in by_moment.values():
        if 1 < len(names) <= _MOST:
            head = min(names, key=lambda name: (known[forms[name]].place, name))
            yield Gathered(head, tuple(sorted(names)))


def _kind_of(form: str) -> _Kind | None:
    """What such names tell; None if not which part of a state they hold."""
    piece = _PIECE.search(form)
    ends = piece or _STATE.search(form)
    if not ends or not form.isprintable():  # no store can have some such names
        return None
    stem = form[: ends.start()]
    words = [word.lower() for word in _WORD.findall(stem)]
    parts = [_PARTS.index(word) for word in words if word in _PARTS]
    if not parts and not piece:
        return None
    index = {at for found in _INDEX.finditer(stem) for at in range(*found.span())}
    places = [at for at, char in enumerate(form) if char == "#"]
    counts = tuple(at < len(stem) and at not in index for at in places)
    left = {"piece", *words} if piece else set(words).difference(_PARTS, _EMPTY)
    return _Kind(counts, frozenset(left), min(parts, default=0))
