"""The disk as a trainer sees it, and a rehearsal of it that knows what each save must leave.

A writer's manner is a function that speaks to a ``Disk``. It is run twice with the same content:
first on a ``Rehearsal``, which touches nothing and tells the digest of every file of the save;
then on the ``RealDisk``, with the pauses that give a kill something to hit.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import pickle
import random
import shutil
import time
import zipfile
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Protocol


class Disk(Protocol):
    """What writers do to a disk; paths are relative to the root of the checkpoints."""

    def write(self, path: str, *pieces: bytes) -> None:
        """Open for writing, truncating; write the pieces one after the other; close."""
        ...

    def presized(self, path: str, data: bytes) -> None:
        """As safetensors: made to its size, renamed, and only then filled and closed."""
        ...

    def rename(self, source: str, target: str) -> None:
        """One rename; what the target was is gone."""
        ...

    def remove(self, path: str) -> None:
        """A file, a link, or a directory with all it holds; nothing where there is nothing."""
        ...

    def link(self, path: str, target: str) -> None:
        """Unlink, then symlink: for a moment there is none."""
        ...


class Rehearsal:
    """What would lie on the disk: the SHA-256 and size of every file."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, str]] = {}

    def write(self, path: str, *pieces: bytes) -> None:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        self.files[path] = sum(map(len, pieces)), digest.hexdigest()

    def presized(self, path: str, data: bytes) -> None:
        self.write(path, data)

    def rename(self, source: str, target: str) -> None:
        self.remove(target)
        for path in [path for path in self.files if _within(path, source)]:
            self.files[target + path[len(source) :]] = self.files.pop(path)

    def remove(self, path: str) -> None:
        for gone in [known for known in self.files if _within(known, path)]:
            del self.files[gone]

    def link(self, path: str, target: str) -> None:
        del path, target


class RealDisk:
    """Writes for real, never syncs, and dawdles now and then."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self._root = root
        self._rng = rng
        self._last: float | None = None
        self.longest_gap = 0.0
        """Seconds between two acts of one save, at most: on a busy machine it may seem ended."""

    def begin(self) -> None:
        """A save begins."""
        self._last, self.longest_gap = None, 0.0

    def write(self, path: str, *pieces: bytes) -> None:
        with self._place(path).open("wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                self._dawdle()

    def presized(self, path: str, data: bytes) -> None:
        final = self._place(path)
        aside = final.with_suffix(".tmp")
        with aside.open("wb", buffering=0) as file:
            file.truncate(len(data))
            file.write(data[:100])
            self._dawdle()
            aside.rename(final)
            file.write(data[100:])
            self._dawdle()

    def rename(self, source: str, target: str) -> None:
        self._root.joinpath(source).rename(self._place(target))
        self._dawdle()

    def remove(self, path: str) -> None:
        place = self._place(path)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)

    def link(self, path: str, target: str) -> None:
        self.remove(path)
        self._place(path).symlink_to(target)

    def _place(self, path: str) -> Path:
        place = self._root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _dawdle(self) -> None:
        if self._rng.random() < 0.3:
            time.sleep(self._rng.random() * 0.05)
        now = time.monotonic()
        if self._last is not None:
            self.longest_gap = max(self.longest_gap, now - self._last)
        self._last = now


def _within(path: str, place: str) -> bool:
    return path == place or path.startswith(f"{place}/")


class Content:
    """The bytes of one save: the same for the same seed, save and name; every line names both."""

    def __init__(self, seed: int, save: int, scale: int) -> None:
        self.seed = seed
        self.save = save
        self._scale = scale

    def of(self, save: int) -> Content:
        """Of another save: what an elite carries on."""
        return Content(self.seed, save, self._scale)

    def body(self, name: str, share: float = 1.0) -> bytes:
        """About ``share`` of the size of a whole save, give or take a half."""
        rng = random.Random(f"{self.seed} {self.save} {name}")
        line = f"save {self.save:08d} {PurePosixPath(name).name} ".encode().ljust(64, b".")
        return line * max(16, int(self._scale * share * rng.uniform(0.5, 1.5)) // 64)

    def torch(self, name: str, share: float = 1.0) -> list[bytes]:
        """A zip archive as torch.save writes it: records stored, its directory last."""
        whole = BytesIO()
        with zipfile.ZipFile(whole, "w") as archive:
            for number in range(2):
                record = zipfile.ZipInfo(f"archive/data/{number}")
                archive.writestr(record, self.body(f"{name}/{number}", share / 2))
        data = whole.getvalue()
        cuts = [0, len(data) // 3, len(data) * 2 // 3, len(data)]
        return [data[start:end] for start, end in itertools.pairwise(cuts)]

    def safetensors(self, name: str, share: float = 1.0) -> bytes:
        """One tensor of bytes behind its header."""
        body = self.body(name, share)
        tensor = {"dtype": "U8", "shape": [len(body)], "data_offsets": [0, len(body)]}
        header = json.dumps({"w": tensor}).encode()
        return len(header).to_bytes(8, "little") + header + body

    def pickle(self, name: str, share: float = 1.0) -> bytes:
        """A pickle, which ends with a full stop."""
        return pickle.dumps(self.body(name, share))

    def json(self) -> bytes:
        """The state file of a trainer."""
        return json.dumps({"global_step": self.save, "generation": self.save}).encode()
