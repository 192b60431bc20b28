"""Appending to an object of Google Cloud Storage: the tail is put aside, and both are composed."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from syncd.errors import Conflict, Corrupt, NotFound, StoreError
from syncd.stores.base import Buffer, ObjectInfo

if TYPE_CHECKING:
    from syncd.stores.gcs import GCSStore

REQUESTS = 3
"""Put, compose, delete."""


def compose(store: GCSStore, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
    """See ObjectStore.append.

    The piece keeps its name from one append to the next: what a killed process leaves of it is
    overwritten by the next one, and deleted.
    """
    piece = store.put(aside, tail)
    sources = {key: base.version, aside: piece.version}
    try:
        made = store.ask(
            f"appending to {key}",
            key,
            lambda objects: objects.compose(key, sources, base.version),
        )
    except NotFound as error:
        raise Conflict(f"{key} is not there any more") from error
    finally:
        with contextlib.suppress(StoreError):
            store.delete([aside])
    if made.size != base.size + len(tail):
        raise Corrupt(f"{key} has {made.size} bytes after {len(tail)} came to {base.size}")
    return made
