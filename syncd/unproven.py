"""Checkpoints that lie in the bucket without a commit: put there by hand, or by another tool.

Nothing proves them, so each file passes its format's check before it takes its place, and all of
them are called unproven. The daemon commits what it then finds on disk.
"""

from __future__ import annotations

import os
import secrets
import shutil
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from syncd.errors import Corrupt
from syncd.formats import check_file
from syncd.profiles import Unit, units
from syncd.records import Layout, safe_path
from syncd.restore import STAGING
from syncd.scan import scan
from syncd.stores.base import ObjectInfo, ObjectStore


@dataclass
class Unproven:
    """What came back without proof, and what was refused."""

    restored: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


class UnprovenRestorer:
    """Brings home what lies at the plain keys, as ``aws s3 sync`` would, but checked."""

    def __init__(self, store: ObjectStore, layout: Layout, workers: Executor) -> None:
        self._store = store
        self._layout = layout
        self._workers = workers

    def find(self) -> list[ObjectInfo]:
        """Objects at plain keys whose names are usable as paths."""
        prefix = self._layout.checkpoints
        return [
            info for info in self._store.list(prefix) if safe_path(info.key.removeprefix(prefix))
        ]

    def restore(self, objects: list[ObjectInfo], root: Path) -> Unproven:
        """Bring ``objects`` into ``root``; what is there already stays as it is."""
        root.mkdir(parents=True, exist_ok=True)
        staging = root / f"{STAGING}{secrets.token_hex(4)}"
        staging.mkdir()
        result = Unproven()
        try:
            list(self._workers.map(lambda info: self._fetch(info, staging), objects))
            tree = scan(staging)
            for unit in units(tree) if tree else ():
                self._place(unit, staging, root, result)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        return result

    def _fetch(self, info: ObjectInfo, staging: Path) -> None:
        path = staging / info.key.removeprefix(self._layout.checkpoints)
        path.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        with path.open("wb") as file:
            for chunk in self._store.read(info.key, version=info.version):
                file.write(chunk)
                size += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        if size != info.size:
            raise Corrupt(f"{info.key}: {size} bytes came where the store lists {info.size}")
        os.utime(path, (info.modified, info.modified))

    @staticmethod
    def _place(unit: Unit, staging: Path, root: Path, result: Unproven) -> None:
        moves = [(staging / unit.path, root / unit.path)]
        if unit.beside:
            moves += [(staging / unit.below(p), root / unit.below(p)) for p, _ in unit.files]
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
        moves[0][1].parent.mkdir(parents=True, exist_ok=True)
        for source, place in reversed(dict(moves).items()):
            source.rename(place)
        result.restored.append(unit.path)
