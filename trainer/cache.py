"""A data file is parsed once: its numbers then lie as memory-mapped arrays, named by the content.

    .trainer-cache/<name of the file>.json         size, times and inode -> SHA-256 of the content
    .trainer-cache/<sha256>-v2/names.json          dates and series
                              /opens.npy, closes.npy, features.npy
                              /inputs-<train days>.npy   standardised by these days alone

The folder is beside the file, or the user's cache directory where that cannot be written. Arrays
are copy-on-write views: nothing that is done to them reaches the file. A cache that is broken or
cannot be written only costs the time to read the data file again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import features
from trainer.errors import BadData
from trainer.table import Table

FORMAT = "v2"
ARRAYS = ("opens", "closes", "features")
RACE = 2_000_000_000  # nanoseconds in which a file may change again without its times telling


@dataclass
class Prepared:
    """A data file's numbers: prices [D, S] and features [D, S, F], NaN where there is none."""

    dates: list[str]
    tickers: list[str]
    opens: NDArray[np.float64]
    closes: NDArray[np.float64]
    features: NDArray[np.float32]
    folder: Path | None = None
    """Where it is cached."""

    @staticmethod
    def of(table: Table) -> Prepared:
        """Compute what a table gives."""
        computed = features.compute(table.values, table.given)
        opens, closes = (np.ascontiguousarray(table.values[:, :, i]) for i in (0, 3))
        return Prepared(table.dates, table.tickers, opens, closes, computed)


def prepared(path: Path, read: Callable[[Path], Table]) -> tuple[str, Prepared]:
    """The content's SHA-256 and the numbers: from the cache, else read, computed and cached."""
    content = content_hash(path)
    found = find(path, content)
    if found is None:
        found = Prepared.of(read(path))
        found.folder = _keep(path, content, found)
    return content, found


def inputs(numbers: Prepared, train_days: int) -> NDArray[np.float32]:
    """[D, S, F + 1]: standardised features, and a mask that is 1 where there is a close."""
    name = f"inputs-{train_days}.npy"
    shape = (*numbers.closes.shape, numbers.features.shape[-1] + 1)
    if numbers.folder is not None:
        kept: NDArray[np.float32] | None = _open(numbers.folder / name)
        if kept is not None and kept.shape == shape and kept.dtype == np.float32:
            return kept
    scaled, _, _ = features.standardise(numbers.features, train_days)
    result = np.concatenate(
        [scaled, ~np.isnan(numbers.closes)[:, :, None]], axis=2, dtype=np.float32
    )
    if numbers.folder is not None:
        with contextlib.suppress(OSError):
            _write(numbers.folder / name, lambda aside: np.save(aside, result, allow_pickle=False))
    return result


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content; BadData when it cannot be read.

    A file whose size, inode and times are what they were is not read again.
    """
    try:
        seen = path.stat()
    except OSError as error:
        raise BadData(path, f"cannot be read: {error.strerror}") from None
    key = [seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns, seen.st_ino]
    for folder in _folders(path):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads((folder / f"{path.name}.json").read_text(encoding="utf-8"))
            if known["key"] == key and len(known["sha256"]) == 64:
                return str(known["sha256"])
    digest = _read_hash(path)
    if time.time_ns() - max(seen.st_mtime_ns, seen.st_ctime_ns) > RACE:
        text = json.dumps({"key": key, "sha256": digest})
        for folder in _folders(path):
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                _write(folder / f"{path.name}.json", lambda aside: aside.write_text(text))
                break
    return digest


def _read_hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            for block in iter(lambda: handle.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise BadData(path, f"cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def _folders(path: Path) -> list[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [path.resolve().parent / ".trainer-cache", home / "trainer-data"]


def find(path: Path, content: str) -> Prepared | None:
    """What is cached of a file of this content, if all of it is there."""
    for folder in _folders(path):
        if (found := _entry(folder / f"{content}-{FORMAT}")) is not None:
            return found
    return None


def _entry(entry: Path) -> Prepared | None:
    try:
        names = json.loads((entry / "names.json").read_text(encoding="utf-8"))
        days, series = len(names["dates"]), len(names["tickers"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    opens, closes, found = (_open(entry / f"{name}.npy") for name in ARRAYS)
    if opens is None or closes is None or found is None:
        return None
    if opens.shape == closes.shape == found.shape[:2] == (days, series):
        return Prepared(names["dates"], names["tickers"], opens, closes, found, entry)
    return None


def _open(path: Path) -> Any:
    """An array mapped from a file, or None where there is no whole one."""
    try:
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError):
        return None


def _keep(path: Path, content: str, numbers: Prepared) -> Path | None:
    """Write aside and rename; returns where it is, or None."""
    for folder in _folders(path):
        aside: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside = tempfile.mkdtemp(prefix=".tmp-", dir=folder)
            for name in ARRAYS:
                np.save(Path(aside) / f"{name}.npy", getattr(numbers, name), allow_pickle=False)
            names = {"dates": numbers.dates, "tickers": numbers.tickers}
            (Path(aside) / "names.json").write_text(json.dumps(names), encoding="utf-8")
            entry = folder / f"{content}-{FORMAT}"
            if _entry(entry) is not None:  # another process was quicker
                shutil.rmtree(aside, ignore_errors=True)
                return entry
            shutil.rmtree(entry, ignore_errors=True)
            Path(aside).rename(entry)
            return entry
        except OSError:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
    return None


def _write(target: Path, write: Callable[[Path], Any]) -> None:
    """One file, written aside and renamed; its name keeps the suffix, which np.save asks for."""
    aside = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        write(aside)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)
