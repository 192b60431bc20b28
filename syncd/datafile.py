"""The training's data file in the bucket: ``<prefix>/data/<name>``, with its digest beside it.

A rented machine comes without it. It is fetched to a ``.part``, proven where a digest is known,
and only then given its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path

from syncd.clock import SystemClock
from syncd.config import Settings
from syncd.errors import Corrupt, NotFound, Permanent
from syncd.filestat import Stat
from syncd.opening import open_resilient
from syncd.pace import RateLimit
from syncd.packing import packer_for, unpack
from syncd.pathrules import SUFFIXES, ZSTD
from syncd.stores.base import ObjectInfo, ObjectStore
from syncd.transfer import Transfer

_PATIENCE = 60.0
"""Seconds for which a store that does not answer is tried."""


def _open(settings: Settings) -> ObjectStore:
    return open_resilient(settings, SystemClock(), threading.Event(), patience=_PATIENCE)


def key_of(settings: Settings, name: str) -> str:
    """Where a data file lies in the bucket."""
    if not name or "/" in name or name in (".", ".."):
        raise Permanent(
            f"{name!r} is no name of a data file", hint="the name alone, such as market.csv"
        )
    return f"{settings.cloud_prefix}/data/{name}"


def get(settings: Settings, name: str, target: Path) -> str:
    """Fetch a data file; what was done, in words. The store's errors are raised."""
    store = _open(settings)
    try:
        key = key_of(settings, name)
        packed = key + SUFFIXES[ZSTD]
        info = _head(store, key) or _head(store, packed)
        if info is None:
            raise NotFound(
                f"{store.name} has no {key}",
                hint=f"put it there: python -m syncd data put {name}; or correct CLOUD_PREFIX",
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if info.size > free:
            raise Permanent(
                f"{key} has {info.size / 1e6:.0f} MB and {free / 1e6:.0f} MB are free",
                hint="make room, or name a place on a larger disk with --to",
            )
        promised = _digest(store, key)
        part = target.with_name(f".{target.name}.part")
        digest, size = hashlib.sha256(), 0
        try:
            with part.open("wb") as file:
                chunks = store.read(info.key, version=info.version)
                for chunk in unpack(chunks, free) if info.key == packed else chunks:
                    digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            whole = size == info.size or info.key == packed
            if not whole or promised not in (None, digest.hexdigest()):
                raise Corrupt(
                    f"{key} is not what its digest says", hint="put it into the bucket again"
                )
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        proof = "verified" if promised else "no digest beside it"
        return f"fetched {info.key} to {target}: {size / 1e6:.1f} MB, {proof}"
    finally:
        store.close()


def _head(store: ObjectStore, key: str) -> ObjectInfo | None:
    try:
        return store.head(key)
    except NotFound:
        return None


def _digest(store: ObjectStore, key: str) -> str | None:
    """The digest beside a data file, as ``sha256sum`` writes it; None where there is none."""
    with contextlib.suppress(NotFound):
        words = b"".join(store.read(f"{key}.sha256", length=200)).decode(errors="replace").split()
        if not words or len(words[0]) != 64:
            raise Corrupt(f"{key}.sha256 is no digest", hint="put the file into the bucket again")
        return words[0].lower()
    return None


def put(settings: Settings, path: Path) -> str:
    """Send a data file and, after it, its digest; what was done, in words."""
    store = _open(settings)
    clock = SystemClock()
    limit = RateLimit(settings.bwlimit, clock, threading.Event())
    folder = Path(tempfile.mkdtemp(prefix="syncd-"))
    transfer = Transfer(
        store, settings.concurrency, limit, packer=packer_for(settings.compress, folder)
    )
    try:
        key = key_of(settings, path.name)
        seen = Stat.of(path.stat())
        # an old digest beside a new file would call it damaged; none at all only leaves it unproven
        store.delete([f"{key}.sha256"])
        digest, info = transfer.send(path, key, seen, pack=True)
        store.delete({key, key + SUFFIXES[ZSTD]} - {info.key})
        store.put(f"{key}.sha256", f"{digest}  {path.name}\n".encode())
        return f"put {path} to {info.key}: {seen.size / 1e6:.1f} MB"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        transfer.close()
        store.close()
