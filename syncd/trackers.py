"""Files and links that name the newest checkpoint, and what they name after a restore.

Detectron2 and MMEngine write ``last_checkpoint``, TensorFlow ``checkpoint``, DeepSpeed and many
others ``latest``; Lightning makes a link ``last.ckpt``. Such a small thing is in the store long
before the checkpoint it names, which may never get there. The trainer would look for that one, and
fail or begin anew, with the one that was restored beside it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from syncd.place import new_staging, remove
from syncd.profiles import PROFILES
from syncd.records import CommitRecord
from syncd.series import series, step_of
from syncd.stores.durable import sync_folder

_NAME = re.compile(
    r"checkpoint|(.*[-_.])?(latest|last|newest|current|resume)([-_.].*)?", re.IGNORECASE
)
_BEST = re.compile("best", re.IGNORECASE)
"""That is another matter: the best one is not the one to go on from."""

_COUNTS = {profile.tracker for profile in PROFILES if profile.tracks == "number"}
"""Those that hold a number alone. What another one counts is not known."""

_LIMIT = 64 * 1024
"""Bytes of the largest one that is looked into."""

_STATES = re.compile(r"\.(index|meta|data-\d+-of-\d+|[A-Za-z]\w{0,11})$")


class Pointed(NamedTuple):
    """A tracker that names something else now."""

    path: str
    """Its own path under the root."""

    name: str
    """What it names."""


def may_track(path: str) -> bool:
    """Whether a file or link is called like one that names the newest checkpoint."""
    name = path.rpartition("/")[2]
    return bool(_NAME.fullmatch(name)) and not _BEST.search(name)


def leads_to(path: str, target: str, checkpoint: str) -> bool:
    """Whether a link to ``target`` leads to a checkpoint of the series of ``checkpoint``."""
    there = os.path.normpath(os.path.join(os.path.dirname(path), target))  # noqa: PTH118, PTH120
    return series(there) == series(checkpoint)


def point(root: Path, record: CommitRecord) -> Iterator[Pointed]:
    """Have all trackers of a checkpoint that was restored name it, where they led nowhere.

    And where one names nothing but an older one of its series. Only names of that series are
    replaced, everything else in the file stays. OSError if it cannot be written.
    """
    names = _Names(root, record.checkpoint)
    if "#" not in series(PurePosixPath(record.checkpoint).name):
        return
    for above in PurePosixPath(record.checkpoint).parents:
        with os.scandir(root / above) as found:
            entries = sorted((entry for entry in found if may_track(entry.name)), key=_by_name)
        for entry in entries:
            path = str(above / entry.name)
            if entry.is_symlink():
                old = os.readlink(entry.path)  # noqa: PTH115 - as text
                new = names.renew(old) if leads_to(path, old, record.checkpoint) else old
            else:
                old = _text(entry)
                new = names.count(old) if entry.name in _COUNTS else names.renew(old)
            if new != old:
                _replace(root, path, new, entry)
                yield Pointed(path, PurePosixPath(record.checkpoint).name)


def _by_name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _text(entry: os.DirEntry[str]) -> str:
    """What a small text file holds; "" for anything else."""
    if not entry.is_file(follow_symlinks=False) or entry.stat().st_size > _LIMIT:
        return ""
    try:
        return Path(entry.path).read_bytes().decode()
    except UnicodeDecodeError:
        return ""


class _Names:
    """The names of one series, in a text, and which of them lead to something."""

    def __init__(self, root: Path, checkpoint: str) -> None:
        place = root / checkpoint
        self._name = place.name
        self._there = {path.name for path in place.parent.iterdir()}
        ending = _STATES.search(self._name)
        self._stem = self._name[: ending.start()] if ending and not place.is_dir() else self._name
        forms = [re.sub(r"\d+", r"\\d+", re.escape(text)) for text in (self._stem, self._name)]
        rest = forms[1].removeprefix(forms[0])
        self._pattern = re.compile(rf"(?<![\w=-]){forms[0]}(?P<rest>{rest})?(?![\w=-]|\.\w)")

    def renew(self, text: str) -> str:
        """The text with names that lead somewhere."""
        alone = len(self._pattern.findall(text)) == 1

        def name(found: re.Match[str]) -> str:
            old = found[0]
            if self._leads_to_one(old) and not (alone and step_of(old) < step_of(self._name)):
                return old
            return self._name if found["rest"] else self._stem

        return self._pattern.sub(name, text)

    def count(self, text: str) -> str:
        """The same for a number alone."""
        numbers = re.findall(r"\d+", self._name)
        if not text.strip().isdecimal() or len(numbers) != 1:
            return text
        known = {step_of(one) for one in self._there if series(one) == series(self._name)}
        old, mine = int(text), int(numbers[0])
        return text if old in known and old >= mine else text.replace(text.strip(), str(mine))

    def _leads_to_one(self, name: str) -> bool:
        return name in self._there or any(one.startswith(f"{name}.") for one in self._there)


def _replace(root: Path, path: str, text: str, old: os.DirEntry[str]) -> None:
    """By a rename: it names the one or the other, whenever a kill comes."""
    staging = new_staging(root)
    fresh = staging / "tracker"
    try:
        if old.is_symlink():
            fresh.symlink_to(text)
        else:
            with fresh.open("x", encoding="utf-8", newline="") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.chmod(old.stat().st_mode & 0o7777)
        fresh.replace(root / path)
        sync_folder((root / path).parent)
    finally:
        remove(staging)
