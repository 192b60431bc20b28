"""Files of one folder that make one checkpoint, by their names.

``model_100.pt`` and ``optim_100.pt`` are of one step, and so are ``netG_epoch_5.pth`` and
``netD_epoch_5.pth``; ``model.pt`` and ``optimizer.pt`` are written over each time, and
``best_model.pt`` is of another moment. One of them without the others is of no use to the trainer.
Only names that say which part of a state they hold are joined: all others are whole by themselves.
But where there is an optimizer and no weights, those are in ``last.pt`` or ``checkpoint_100.pt``.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

# These are for names whose numbers are a # each.

_STATE = re.compile(
    r"\.(pt|pth|pth\.tar|th|ckpt|safetensors|bin|pkl|pickle|npz|msgpack|h#|keras|params|state"
    r"|pdparams|pdopt|pdstates|pdema|pdlr|pdeqn|pdscaler|states)$",
    re.IGNORECASE,
)
"""What trainers keep their state in, and write in one go."""

_PIECE = re.compile(r"\.(index|meta|data-#-of-#)$")
"""The pieces of a checkpoint of TensorFlow."""

_HEAD = re.compile(r".*\.(npz|pt|pth|bin|pkl|model|kv)")
_ADDED = re.compile(
    r"(optimizer|optim|opt|scheduler)\.(npz|pt|pth|bin|pkl)"
    r"|((wv|dv|docvecs)\.)?(vectors\w*|syn1(neg)?|expElogbeta)\.npy"
)
_TEXT_ADDED = re.compile(r"(progress\.|decoder\.)?yml")
"""What is added to the name of a checkpoint for what belongs to it (Marian, gensim)."""

_DECIMAL = re.compile(r"#\.#")
_INDEX = re.compile(rf"(?<![a-z])rank[-_.]?#|-#-of-#|{_DECIMAL.pattern}", re.IGNORECASE)
"""Numbers that tell the files of one step from each other, and such as are no step."""

_WORD = re.compile("[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_NUMBER = re.compile(r"\d+")

_PARTS = (
    "model", "net", "network", "weights", "params", ".pdparams", "unet", "vae", "backbone",
    "encoder", "decoder", "head", "policy", "actor", "critic", "value", "target", "generator",
    "discriminator", "g", "d", "ema", "_e", ".pdema", "optimizer", "optim", "opt", ".pdopt",
    "scheduler", "sched", "scaler", "rng", "criterion", "training_state", ".pdstates", ".states",
    ".pdlr", ".pdeqn", ".pdscaler",
)  # fmt: skip
"""Words for a part of the state. The first of them names the checkpoint."""

_TWO_WORDS = re.compile(r"(?<![a-zA-Z])train(ing|er)_states?(?![a-z])")
_EMA = re.compile(r"_E$")
"""What tells a part though no single word does (AllenNLP, KAIR)."""

_OPTIMIZER = {_PARTS.index(word) for word in ("optimizer", "optim", "opt", ".pdopt")}
_WEIGHTS = {_PARTS.index(word) for word in ("model", "net", "network", "weights")}
_WITHOUT_WEIGHTS = range(_PARTS.index("ema"), len(_PARTS))
_WHOLE = {"last", "latest", "current", "checkpoint", "ckpt"}
_MOMENT = {"best", "final", "epoch", "step", "iter", "iteration"}
"""Words of the name of what holds the weights where no other file does."""

_STEPS = {"epoch", "step", "iter", "iteration"}

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

    whole: bool
    """Whether it says no part, and may hold the weights all the same."""

    optimizer: bool = False
    """Whether it holds the optimizer's state, be it that of one part."""


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
    left = dict.fromkeys(files)
    for found in _by_what_is_added(files):
        for name in found.names:
            del left[name]
        yield found
    yield from _by_parts(left)


def _by_what_is_added(files: Mapping[str, object]) -> Iterator[Gathered]:
    """``model.npz`` with ``model.npz.optimizer.npz`` (Marian), ``x.model`` with ``x.model.wv.npy``.

    Other names that go on are copies, averages, the best one, or not yet written.
    """
    added: defaultdict[str, list[str]] = defaultdict(list)
    for name in files:
        if name.endswith((".npz", ".npy", ".yml", ".pt", ".pth", ".bin", ".pkl")):
            parts = name.split(".")
            for end in range(2, len(parts)):
                before, after = ".".join(parts[:end]), ".".join(parts[end:])
                belongs = _ADDED.fullmatch(after) or _TEXT_ADDED.fullmatch(after)
                if belongs and before in files and _HEAD.fullmatch(before) and name.isprintable():
                    added[before].append(name)
    for before, names in added.items():
        if any(_ADDED.fullmatch(name[len(before) + 1 :]) for name in names):
            yield Gathered(before, tuple(sorted([before, *names])))


def _by_parts(files: Mapping[str, object]) -> Iterator[Gathered]:
    forms, known = _kinds_of(files)
    if len(forms) > _LOOKED_AT:
        return
    by_moment: defaultdict[_Moment, list[str]] = defaultdict(list)
    weights: defaultdict[_Moment, set[str]] = defaultdict(set)
    for name, form in forms.items():
        kind = known[form]
        numbers = zip(_NUMBER.findall(name), kind.counts, strict=True)
        step = tuple(int(number) for number, counts in numbers if counts)
        if kind.whole:
            for words in (kind.words, kind.words - _WHOLE):
                weights[_Moment(step, words)].add(name)
        else:
            by_moment[_Moment(step, kind.words)].append(name)
    given: set[str] = set()
    for moment, together in by_moment.items():
        names = _without_scores(together, forms)
        places = {known[forms[name]].place for name in names}
        if _OPTIMIZER & places and places.issubset(_WITHOUT_WEIGHTS):
            found = weights[moment]
            if len(found) == 1 and given.isdisjoint(found):  # else nobody knows which
                names.extend(found)
                given |= found
        if not any(known[forms[name]].optimizer for name in names):
            names = [name for name in names if "." in name]
        if 1 < len(names) <= _MOST:
            head = min(names, key=lambda name: (known[forms[name]].place, name))
            yield Gathered(head, tuple(sorted(names)))


def _kinds_of(files: Iterable[str]) -> tuple[dict[str, str], dict[str, _Kind]]:
    """The form of each name that tells a part, and what each form tells."""
    kinds: dict[str, _Kind | None] = {}
    forms: dict[str, str] = {}
    for name in files:
        form = _NUMBER.sub("#", name)
        if form not in kinds:
            kinds[form] = _kind_of(form, bare=True)
        if kinds[form] and "#" not in name:
            forms[name] = form
    known = {form: kind for form, kind in kinds.items() if kind}
    if not any(kind.optimizer for form, kind in known.items() if "." not in form):
        forms = {name: form for name, form in forms.items() if "." in form}
    return forms, known


def are_each_whole(names: Collection[str]) -> bool:
    """Whether each of these is a checkpoint by itself, though other things may lie beside them.

    ``last.pt, best.pt, epoch_7.pt``, or ``model_best.pth, model_0999.pth, model_1999.pth``. Agents
    and layers have numbers, too, but those follow one another without a gap.
    """
    kinds = {name: _kind_of(_NUMBER.sub("#", name)) for name in names}
    steps: defaultdict[str, list[int]] = defaultdict(list)
    for name, kind in kinds.items():
        if not kind or not (kind.whole or _is_of_a_moment(kind)):
            return False
        if not kind.whole and any(kind.counts) and _STEPS.isdisjoint(kind.words):
            steps[_NUMBER.sub("#", name)].append(int(_NUMBER.findall(name)[-1]))
    if any(after - one < 2 for of in steps.values() for one, after in pairwise(sorted(of))):
        return False
    return bool(kinds) and (len(kinds) > 1 or all(kind and kind.whole for kind in kinds.values()))


def is_a_part(name: str) -> bool:
    """Whether a file says that it is one of several: ``model.pt``, not ``last.pt`` or ``best.pt``.

    A model of a step or of a named moment is as often all that is saved.
    """
    kind = _kind_of(_NUMBER.sub("#", name))
    return kind is not None and not kind.whole and not _is_of_a_moment(kind)


def _is_of_a_moment(kind: _Kind) -> bool:
    """Whether it holds the weights of a step, or of a moment that is named."""
    told = bool(kind.words) or any(kind.counts)
    return kind.place in _WEIGHTS and told and kind.words <= _WHOLE | _MOMENT


def _without_scores(names: list[str], forms: Mapping[str, str]) -> list[str]:
    """Leave out those that differ in a decimal only: a score, and each is of another moment."""
    scored = Counter(forms[name] for name in names if _DECIMAL.search(forms[name]))
    return [name for name in names if scored[forms[name]] < 2]


def _kind_of(form: str, bare: bool = False) -> _Kind | None:
    """What such names tell; None if not which part of a state they hold.

    ``bare``: a name without an ending may tell, too (TD3's ``walker_critic_optimizer``).
    """
    piece = _PIECE.search(form)
    ends = piece or _STATE.search(form)
    bare = bare and "." not in form
    if not (ends or bare) or not form.isprintable():  # no store can have some such names
        return None
    stem = form[: ends.start()] if ends else form
    words = [word.lower() for word in _WORD.findall(stem)]
    told = [*words, f".{ends[1].lower()}"] if ends and not piece else words
    if _TWO_WORDS.search(stem):
        told, words = [*told, "training_state"], [w for w in words if not w.startswith("train")]
    if _EMA.search(stem):
        told, words = [*told, "_e"], words[:-1]
    parts = [_PARTS.index(word) for word in told if word in _PARTS]
    whole = not parts and not piece
    if whole and (bare or not (words and set(words) <= _WHOLE | _MOMENT)):
        return None
    index = {at for found in _INDEX.finditer(stem) for at in range(*found.span())}
    places = [at for at, char in enumerate(form) if char == "#"]
    counts = tuple(at < len(stem) and at not in index for at in places)
    left = {"piece", *words} if piece else set(words).difference(_PARTS, _EMPTY)
    optimizer = not _OPTIMIZER.isdisjoint(parts)
    return _Kind(counts, frozenset(left), min(parts, default=0), whole, optimizer)
