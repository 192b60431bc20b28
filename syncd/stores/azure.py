"""Azure Blob Storage: a container of block blobs.

Requests go by the lean road (``azurelean``) where that knows the way, else by the SDK, which is
only loaded then.
"""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
from collections.abc import Mapping
from typing import TypeVar

from syncd.errors import (
    Conflict,
    Corrupt,
    NeedsOperator,
    NotFound,
    Permanent,
    StoreError,
    Transient,
)
from syncd.stores import azureappend, azurelean
from syncd.stores.azureerrors import status_of, translate
from syncd.stores.azurelean import Blobs
from syncd.stores.base import (
    Buffer,
    Capabilities,
    Condition,
    ObjectInfo,
    PendingUpload,
)
from syncd.stores.roads import TwoRoads, open_lean
from syncd.stores.wire import check_installed, checked_key

_T = TypeVar("_T")

_ID_BYTES = 4
"""Of an upload's id; names of blocks have 23 characters, as many as those of logs."""

_COPY_STALLS = 120.0
"""Seconds without progress after which a copy on the server is given up."""


class AzureStore(TwoRoads[Blobs]):
    """A container."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Makes no request; the account and its key are in AZURE_STORAGE_CONNECTION_STRING."""
        check_installed("azure.storage.blob", "azure-storage-blob", "azure")
        self.name = f"azure://{bucket}"
        self.capabilities = Capabilities(
            conditional_copy=True,
            min_part_size=1,
            max_part_size=4000 * 1024 * 1024,
            max_parts=50_000,
            append_from=1,
            append_requests=azureappend.REQUESTS,
            copy_range=azureappend.RANGE,
        )
        self.blocks = azureappend.BlockLists()
        self._bucket = bucket
        self._connection = environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
        if not self._connection:
            raise NeedsOperator(
                "AZURE_STORAGE_CONNECTION_STRING is not set",
                hint="copy it from the storage account's page 'Access keys'",
            )
        lean = open_lean(lambda: azurelean.told(bucket, self._connection))
        super().__init__(lean, lean)
        if lean is None:
            self._open()  # it finds out what is wrong with the settings

    def _make_sdk(self) -> Blobs:
        from syncd.stores import azuresdk

        return azuresdk.Sdk(self._bucket, self._connection)

    def _failures(self) -> tuple[type[Exception], ...]:
        sdk = sys.modules.get("syncd.stores.azuresdk")
        return (azurelean.Refused, OSError, ValueError, *(sdk.FAILURES if sdk else ()))

    def _status_of(self, error: BaseException | None) -> int:
        return status_of(error)

    def _translated(self, error: Exception, what: str, key: str) -> StoreError:
        del key
        return translate(error, what)

    def _listing_failed(self, error: Exception) -> StoreError:
        return translate(error, f"listing {self.name}")

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. One Put Blob, whose MD5 the server verifies."""
        made = self.ask(f"putting {key}", key, lambda blobs: blobs.put_blob(key, data, condition))
        return ObjectInfo(key, len(data), *made)

    def start_upload(self, key: str, size: int, copies: bool = False) -> AzureUpload:
        """See ObjectStore. Nothing is sent yet: blocks simply are there until committed."""
        del copies
        return AzureUpload(self, checked_key(key), size, secrets.token_hex(_ID_BYTES))

    def resume_upload(
        self, key: str, upload_id: str, size: int, tags: Mapping[int, str]
    ) -> AzureUpload:
        """See ObjectStore."""
        upload = AzureUpload(self, checked_key(key), size, upload_id)
        upload.take_up(tags)
        return upload

    def append(self, key: str, base: ObjectInfo, tail: Buffer, aside: str) -> ObjectInfo:
        """See ObjectStore."""
        del aside
        made = azureappend.commit_longer(self, key, base, tail)
        return ObjectInfo(key, base.size + len(tail), *made)

    # -- reading

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        found = self.ask(f"looking at {key}", key, lambda blobs: blobs.head(key))
        return ObjectInfo(key, found.size, *found.stamp)

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. Within an account the server copies at once, and all or nothing."""
        found, what = self.head(source), f"copying {source} to {target}"
        copy_id, status = self.ask(
            what, source, lambda blobs: blobs.start_copy(source, found.version, target, condition)
        )
        if status != "success":
            self._await_copy(target, copy_id, what)
        return self.head(target)

    def _await_copy(self, target: str, copy_id: str, what: str) -> None:
        known, moved = "", time.monotonic()
        while True:
            found = self.ask(what, target, lambda blobs: blobs.head(target))
            found_id, status, progress = found.copy
            if found_id != copy_id:
                raise Conflict(f"{what}: somebody else has replaced it")
            if status == "success":
                return
            if status != "pending":
                raise Transient(f"{what}: the server gave it up ({status})")
            if progress != known:
                known, moved = progress, time.monotonic()
            elif time.monotonic() - moved > _COPY_STALLS:
                with contextlib.suppress(StoreError):
                    self.ask(what, target, lambda blobs: blobs.abort_copy(target, copy_id))
                raise Transient(f"{what}: the server makes no progress")
            time.sleep(0.5)

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore. Azure can drop single blocks in no way, and does so by itself."""


class AzureUpload:
    """Blocks that become a blob when their list is committed.

    A request that nobody waits for any more can still be carried out, and puts its block in the
    place of another of the same name. So a name says what is in it: the length of what was sent,
    which is the same bytes whenever it is sent, and for each try to copy a number of its own. The
    names of a blob must all have one length.
    """

    def __init__(self, store: AzureStore, key: str, size: int, upload_id: str) -> None:
        self.key = key
        self.id = upload_id
        self._store = store
        self._size = size
        self._tags: dict[int, str] = {}
        self._lengths: dict[int, int] = {}
        self._there: dict[str, int] = {}
        self._known: Mapping[int, str] = {}
        self._made: ObjectInfo | None = None

    def take_up(self, tags: Mapping[int, str]) -> None:
        """Learn which blocks are there; NotFound if there are none, nor a blob made of them."""
        if len(self.id) != 2 * _ID_BYTES:
            raise NotFound(f"the upload of {self.key} is of an earlier version of syncd")
        self._known = tags
        committed, self._there = self._store.ask(
            f"listing the blocks of {self.key}", self.key, lambda blobs: blobs.block_list(self.key)
        )
        if any(name.startswith(self.id) for name in self._there):
            return
        self._there = committed
        if not self._is_ours(committed):
            raise NotFound(f"the blocks of {self.key} are gone")
        self._made = self._store.head(self.key)

    def _is_ours(self, committed: Mapping[str, int]) -> bool:
        """Whether the blocks of a blob are those of this upload, all of them and no others."""
        ours = bool(committed) and all(name.startswith(self.id) for name in committed)
        return ours and sum(committed.values()) == self._size

    def _name(self, number: int, tag: str) -> str:
        return f"{self.id}{number:06}{tag}"

    def _came(self, number: int, tag: str, length: int) -> str:
        self._tags[number], self._lengths[number] = tag, length
        return tag

    def holds(self, number: int, data: Buffer) -> bool:
        """See Upload. The server has verified the MD5 of each block when it came."""
        return self.has(number, len(data))

    def has(self, number: int, length: int) -> bool:
        """See Upload."""
        tag = self._known.get(number, "")
        if not tag or self._there.get(self._name(number, tag)) != length:
            return False
        self._came(number, tag, length)
        return True

    def copy(self, number: int, source: ObjectInfo, start: int, length: int) -> str:
        """See Upload. The version of the source is not looked at."""
        tag = f"c{secrets.token_hex(4)}"
        name = self._name(number, tag)
        self._store.ask(
            f"copying part {number} of {self.key}",
            self.key,
            lambda blobs: blobs.put_block_from(self.key, name, source.key, start, length),
        )
        return self._came(number, tag, length)

    def send(self, number: int, data: Buffer) -> str:
        """See Upload."""
        tag = f"s{len(data):08x}"
        name = self._name(number, tag)
        self._store.ask(
            f"sending part {number} of {self.key}",
            self.key,
            lambda blobs: blobs.put_block(self.key, name, data),
        )
        return self._came(number, tag, len(data))

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload."""
        total = sum(self._lengths.values())
        if total != self._size:
            raise Permanent(f"{self.key}: {total} bytes were sent instead of {self._size}")
        if self._made:
            return self._made
        blocks = [self._name(number, self._tags[number]) for number in sorted(self._tags)]
        try:
            stamp = self._store.ask(
                f"finishing {self.key}",
                self.key,
                lambda blobs: blobs.put_block_list(self.key, blocks, condition),
            )
        except (Conflict, NotFound):
            made_before = self._made_before()
            if made_before is None:
                raise
            return made_before  # the acknowledgement of an earlier try was lost
        made = ObjectInfo(self.key, total, *stamp)
        if any(tag.startswith("c") for tag in self._tags.values()):
            found = self._store.head(self.key)
            if found.version == made.version and found.size != total:
                raise Corrupt(f"{self.key} has {found.size} bytes instead of {total}")
        return made

    def _made_before(self) -> ObjectInfo | None:
        """The blob, if it is what this upload makes; looked at before its blocks are asked for."""
        with contextlib.suppress(NotFound):
            found = self._store.head(self.key)
            committed, _ = self._store.ask(
                f"listing the blocks of {self.key}",
                self.key,
                lambda blobs: blobs.block_list(self.key),
            )
            if found.size == self._size and self._is_ours(committed):
                return found
        return None

    def abort(self) -> None:
        """See Upload. Blocks that are never committed vanish within a week."""

    def leave(self) -> None:
        """See Upload: nothing is held here."""
