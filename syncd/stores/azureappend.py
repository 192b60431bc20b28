"""Appending to a block blob: the tail becomes a block, and the longer list is committed."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

from syncd.errors import Conflict, NotFound, Permanent
from syncd.stores.azurelean import Blobs, Stamp
from syncd.stores.base import Buffer, IfVersion, ObjectInfo

if TYPE_CHECKING:
    from syncd.stores.azure import AzureStore

RANGE = 128 * 1024**2
"""Bytes that one request copies within the store."""

_MANY_BLOCKS = 25_000
"""Half of what a blob may have: a list that long is made short again."""

_REMEMBERED = 256
"""Blobs whose lists are kept in memory."""

_SHORTEST_ID = 16

REQUESTS = 2
"""Stage and commit; the list of a blob is asked for once."""


class BlockLists:
    """The blocks of the blobs that were appended to, so that each list is asked for once."""

    def __init__(self) -> None:
        self._lists: OrderedDict[str, tuple[str, list[str]]] = OrderedDict()
        self._lock = threading.Lock()

    def find(self, key: str, version: str) -> list[str] | None:
        """The ids of a blob's blocks, if they are known for this version of it."""
        with self._lock:
            known = self._lists.get(key)
            return known[1] if known and known[0] == version else None

    def remember(self, key: str, version: str, ids: list[str]) -> None:
        """Keep the list of a blob that was just made."""
        with self._lock:
            self._lists[key] = (version, ids)
            self._lists.move_to_end(key)
            if len(self._lists) > _REMEMBERED:
                self._lists.popitem(last=False)


def commit_longer(store: AzureStore, key: str, base: ObjectInfo, tail: Buffer) -> Stamp:
    """See ObjectStore.append; what was made, on the condition that the base is there.

    The list, and what is copied from the blob to itself, can only be those of the base: else
    the commit is refused, as a version never comes back.
    """
    try:
        ids = store.blocks.find(key, base.version)
        if ids is None or len(ids) > _MANY_BLOCKS:
            ids = _listed(store, key, base)
        block = _new_id(len(ids[0]) if ids else 0)
        store.ask(
            f"sending the tail of {key}", key, lambda blobs: blobs.put_block(key, block, tail)
        )
        longer, wanted = [*ids, block], IfVersion(base.version)
        made = store.ask(
            f"appending to {key}", key, lambda blobs: blobs.put_block_list(key, longer, wanted)
        )
    except NotFound as error:
        raise Conflict(f"{key} is not there any more") from error
    store.blocks.remember(key, made.version, longer)
    return made


def _listed(store: AzureStore, key: str, base: ObjectInfo) -> list[str]:
    """The ids of the blocks that make the base.

    A blob that was put as a whole has none: then it is taken from itself, by ranges, on the
    server. So is one of very many blocks, and one whose ids are too short to make more of them.
    """
    blocks, _ = store.ask(f"listing the blocks of {key}", key, lambda blobs: blobs.block_list(key))
    ids = list(blocks)
    whole = sum(blocks.values()) == base.size
    if whole and 0 < len(ids) <= _MANY_BLOCKS and len(ids[0]) >= _SHORTEST_ID:
        return ids
    if ids and len(ids[0]) < _SHORTEST_ID:
        raise Permanent(f"{key} has blocks that no other can join")
    fresh: list[str] = []
    for start in range(0, base.size, RANGE):
        fresh.append(_new_id(len(ids[0]) if ids else 0))
        length = min(RANGE, base.size - start)
        request = partial(_take, key, fresh[-1], start, length)
        store.ask(f"copying {key} to itself", key, request)
    return fresh


def _take(key: str, block: str, start: int, length: int, blobs: Blobs) -> None:
    blobs.put_block_from(key, block, key, start, length)


def _new_id(length: int) -> str:
    """The id of a block; those of one blob must all have the same length."""
    return secrets.token_hex(16)[: length or 23].ljust(length, "-")
