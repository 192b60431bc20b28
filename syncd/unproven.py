"""Checkpoints that lie in the bucket without a commit: put there by hand, or by another tool.

Nothing proves them, so each file passes its format's check before it takes its place, and all of
them are called unproven. The daemon commits what it then finds on disk.

What a daemon was sending when its machine was lost lies at plain keys too, and it may be half of a
checkpoint. So the first daemon marks the bucket before it sends anything: what came after the mark
is proven by a commit, or by nothing.
"""

from __future__ import annotations

import math
import os
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from syncd.errors import Corrupt, NotFound, Permanent
from syncd.formats import check_file
from syncd.pathrules import safe_path
from syncd.place import check_parents, nameable, new_staging, remove
from syncd.records import Layout
from syncd.scan import scan
from syncd.stores.base import ObjectInfo, ObjectStore
from syncd.stores.durable import sync_folder
from syncd.units import Unit, units


@dataclass
class Unproven:
    """What came back without proof, and what was refused."""

    restored: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def mark_begun(store: ObjectStore, layout: Layout) -> None:
    """Mark a bucket without commits, unless a daemon has done so before."""
    try:
        store.head(layout.began)
    except NotFound:
        store.put(layout.began, b"From here on a checkpoint is what a commit names.\n")


class UnprovenRestorer:
    """Brings home what lies at the plain keys, as ``aws s3 sync`` would, but checked."""

    def __init__(self, store: ObjectStore, layout: Layout, workers: Executor) -> None:
        self._store = store
        self._layout = layout
        self._workers = workers

    def find(self) -> tuple[list[ObjectInfo], list[ObjectInfo]]:
        """Objects at plain keys whose names are usable as paths, and those to pass over.

        The latter came after a daemon had begun here, and no commit names them. Both times are
        the store's own; some tell whole seconds only.
        """
        prefix = self._layout.checkpoints
        try:
            began: float = math.floor(self._store.head(self._layout.began).modified)
        except NotFound:
            began = math.inf
        found: list[ObjectInfo] = []
        under_way: list[ObjectInfo] = []
        for info in self._store.list(prefix):
            if safe_path(info.key.removeprefix(prefix)):
                (found if info.modified < began else under_way).append(info)
        return found, under_way

    def restore(self, objects: list[ObjectInfo], root: Path) -> Unproven:
        """Bring ``objects`` into ``root``; what is there already stays as it is."""
        root.mkdir(parents=True, exist_ok=True)
        staging = new_staging(root)
        result = Unproven()
        try:
            for fault in self._workers.map(lambda info: self._fetch(info, staging), objects):
                result.refused += [fault] if fault else []
            tree = scan(staging, joined=False)
            found = sorted(units(tree), key=lambda unit: unit.written) if tree else []
            for unit in reversed(found):  # a restore that is killed has brought the newest ones
                self._place(unit, staging, root, result)
        finally:
            remove(staging)
        return result

    def _fetch(self, info: ObjectInfo, staging: Path) -> str | None:
        name = info.key.removeprefix(self._layout.checkpoints)
        path = staging / name
        try:
            with nameable(name):
                path.parent.mkdir(parents=True, exist_ok=True)
                file = path.open("xb")
        except Corrupt as error:
            return error.message
        size = 0
        with file:
            for chunk in self._store.read(info.key, version=info.version):
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size != info.size:
            raise Corrupt(f"{info.key}: {size} bytes came where the store lists {info.size}")
        os.utime(path, (info.modified, info.modified))
        return None

    @staticmethod
    def _place(unit: Unit, staging: Path, root: Path, result: Unproven) -> None:
        moves = [(staging / unit.path, root / unit.path)]
        if unit.beside:
            moves += [(staging / unit.below(p), root / unit.below(p)) for p, _ in unit.files]
        try:
            check_parents(root, unit.path)
        except Permanent as error:
            result.refused.append(f"{unit.path}: {error.message}")
            return
        taken = next((place for _, place in moves if os.path.lexists(place)), None)
        if taken:
            result.refused.append(f"{unit.path}: {taken} is there already")
            return
        for path, _ in unit.files:
            fault = check_file(staging / unit.below(path))
            if fault:
                result.refused.append(f"{unit.path}: {unit.below(path)} is {fault}")
                return
        if unit.profile.marker and unit.profile.marker not in dict(unit.files):
            result.refused.append(f"{unit.path}: its last file, {unit.profile.marker}, is missing")
            return
        if unit.profile.marker:  # times in a bucket are those of the upload, in any order
            os.utime(staging / unit.below(unit.profile.marker))
        folder = (root / unit.path).parent
        folder.mkdir(parents=True, exist_ok=True)
        for source, place in reversed(dict(moves).items()):
            source.rename(place)
        sync_folder(folder)
        result.restored.append(unit.path)
