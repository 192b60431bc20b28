"""Azure Blob Storage: a container of block blobs."""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from syncd.errors import Conflict, Corrupt, NeedsOperator, NotFound, Permanent, Transient
from syncd.stores.base import (
    Buffer,
    Capabilities,
    Condition,
    IfAbsent,
    IfVersion,
    ObjectInfo,
    PendingUpload,
    SideBySide,
)
from syncd.stores.wire import (
    CHUNK,
    CONNECT_TIMEOUT,
    READ_TIMEOUT,
    checked_key,
    enlarge,
    quiet,
    side_by_side,
)

try:
    import requests
    from azure.core import MatchConditions
    from azure.core.exceptions import AzureError
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import BlobBlock, ContainerClient

    from syncd.stores import azureappend
    from syncd.stores.azureerrors import status_of, translate
except ImportError as missing:
    raise NeedsOperator(
        "azure-storage-blob is not installed", hint="pip install 'syncd[azure]'"
    ) from missing

_T = TypeVar("_T")
_FAILURES = (AzureError, requests.RequestException, OSError, ValueError)

_RANGE = 4 * CHUNK
"""The SDK holds one answer in memory whole, so what it asks for at once is kept small."""

_ID_BYTES = 4
"""Of an upload's id; names of blocks have 23 characters, as many as those of logs."""

_LARGEST_PUT = 5000 * 1024 * 1024
_COPY_STALLS = 120.0
"""Seconds without progress after which a copy on the server is given up."""


class AzureStore(SideBySide):
    """A container."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Makes no request; the account and its key are in AZURE_STORAGE_CONNECTION_STRING."""
        super().__init__()
        quiet("azure", "urllib3")
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
        connection = environ.get("AZURE_STORAGE_CONNECTION_STRING", "")
        if not connection:
            raise NeedsOperator(
                "AZURE_STORAGE_CONNECTION_STRING is not set",
                hint="copy it from the storage account's page 'Access keys'",
            )
        session = requests.Session()
        enlarge(session)
        try:
            self._container = ContainerClient.from_connection_string(
                connection,
                bucket,
                # its default of 4 KiB takes more CPU than all else of a restore
                transport=RequestsTransport(session=session, connection_data_block_size=CHUNK),
                retry_total=0,
                connection_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_single_put_size=_LARGEST_PUT,
                max_single_get_size=_RANGE,
                max_chunk_get_size=_RANGE,
            )
        except (AzureError, ValueError):
            raise NeedsOperator(  # the SDK's own words may quote the string
                "AZURE_STORAGE_CONNECTION_STRING or CLOUD_BUCKET cannot be used",
                hint="copy the whole string again from the storage account's page 'Access keys'",
            ) from None

    def ask(self, what: str, request: Callable[[], _T]) -> _T:
        """Make a request; what the SDK raises becomes an error of this package."""
        try:
            return request()
        except _FAILURES as error:
            raise translate(error, what) from error

    def blob(self, key: str) -> Any:
        """The SDK's client of one blob."""
        return self._container.get_blob_client(checked_key(key))

    # -- writing

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. One Put Blob, whose MD5 the server verifies."""
        body = data if isinstance(data, bytes) else bytes(data)
        answer = self.ask(
            f"putting {key}",
            lambda: self.blob(key).upload_blob(
                body,
                length=len(body),
                overwrite=not isinstance(condition, IfAbsent),
                validate_content=True,
                max_concurrency=1,
                **(conditions(condition) if isinstance(condition, IfVersion) else {}),
            ),
        )
        return _info(key, len(body), answer)

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
        bound = conditions(IfVersion(base.version))
        answer = azureappend.commit_longer(self, key, base, tail, bound)
        return _info(key, base.size + len(tail), answer)

    # -- reading

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        """See ObjectStore."""
        if length is not None and length <= 0:
            return
        pinned = conditions(IfVersion(version) if version else None)
        what, sent = f"reading {key}", 0
        try:
            download = self.blob(key).download_blob(
                start or None if length is None else start, length, max_concurrency=1, **pinned
            )
            for chunk in download.chunks():
                sent += len(chunk)
                yield chunk
        except _FAILURES as error:
            if status_of(error) == 416:
                return  # from the very end of a blob there is nothing to read
            raise translate(error, what) from error
        if sent != download.size:
            raise Transient(f"{key} broke off {download.size - sent} bytes before its end")

    def head(self, key: str) -> ObjectInfo:
        """See ObjectStore."""
        found = self.ask(f"looking at {key}", self.blob(key).get_blob_properties)
        return _info(key, found["size"], found)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See ObjectStore."""
        try:
            found = self._container.list_blobs(prefix or None, include=["metadata"])
            for blob in found:
                if (blob.metadata or {}).get("hdi_isfolder") != "true":  # of a Data Lake account
                    yield _info(blob.name, blob.size, {**blob})
        except _FAILURES as error:
            raise translate(error, f"listing {self.name}") from error

    # -- copying and deleting

    def copy(self, source: str, target: str, condition: Condition = None) -> ObjectInfo:
        """See ObjectStore. Within an account the server copies at once, and all or nothing."""
        found, what = self.head(source), f"copying {source} to {target}"
        blob = self.blob(target)
        started = self.ask(
            what,
            lambda: blob.start_copy_from_url(
                self.blob(source).url,
                source_etag=f'"{found.version}"',
                source_match_condition=MatchConditions.IfNotModified,
                **conditions(condition),
            ),
        )
        if started["copy_status"] != "success":
            self._await_copy(blob, started["copy_id"], what)
        return self.head(target)

    def _await_copy(self, blob: Any, copy_id: str, what: str) -> None:
        progress, moved = "", time.monotonic()
        while True:
            state = self.ask(what, blob.get_blob_properties)["copy"]
            if state["id"] != copy_id:
                raise Conflict(f"{what}: somebody else has replaced it")
            if state["status"] == "success":
                return
            if state["status"] != "pending":
                raise Transient(f"{what}: the server gave it up ({state['status']})")
            if state["progress"] != progress:
                progress, moved = state["progress"], time.monotonic()
            elif time.monotonic() - moved > _COPY_STALLS:
                with contextlib.suppress(*_FAILURES):
                    blob.abort_copy(copy_id)
                raise Transient(f"{what}: the server makes no progress")
            time.sleep(0.5)

    def delete(self, keys: Iterable[str]) -> None:
        """See ObjectStore. One by one: the batch request needs rights that few tokens have."""
        side_by_side(keys, self._delete)

    def _delete(self, key: str) -> None:
        delete = self.blob(key).delete_blob
        with contextlib.suppress(NotFound):
            self.ask(f"deleting {key}", lambda: delete(delete_snapshots="include"))

    def pending_uploads(self, prefix: str) -> Iterator[PendingUpload]:
        """See ObjectStore: none. Blocks that are never committed cost nothing after a week."""
        del prefix
        return iter(())

    def discard_upload(self, upload: PendingUpload) -> None:
        """See ObjectStore. Azure can drop single blocks in no way, and does so by itself."""

    def close(self) -> None:
        """See ObjectStore."""
        self._container.close()


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
        self._blob = store.blob(key)
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
        committed, waiting = self._store.ask(
            f"listing the blocks of {self.key}", lambda: self._blob.get_block_list("all")
        )
        self._there = {str(block.id): block.size for block in waiting}
        if any(name.startswith(self.id) for name in self._there):
            return
        self._there = {str(block.id): block.size for block in committed}
        ours = all(name.startswith(self.id) for name in self._there)
        if not ours or sum(self._there.values()) != self._size:
            raise NotFound(f"the blocks of {self.key} are gone")
        self._made = self._store.head(self.key)

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
        address = azureappend.readable(self._store.blob(source.key))
        tag = f"c{secrets.token_hex(4)}"
        self._store.ask(
            f"copying part {number} of {self.key}",
            lambda: self._blob.stage_block_from_url(
                self._name(number, tag), address, start, length
            ),
        )
        return self._came(number, tag, length)

    def send(self, number: int, data: Buffer) -> str:
        """See Upload."""
        body = data if isinstance(data, bytes) else bytes(data)
        tag = f"s{len(body):08x}"
        self._store.ask(
            f"sending part {number} of {self.key}",
            lambda: self._blob.stage_block(
                self._name(number, tag), body, length=len(body), validate_content=True
            ),
        )
        return self._came(number, tag, len(body))

    def finish(self, condition: Condition = None) -> ObjectInfo:
        """See Upload."""
        total = sum(self._lengths.values())
        if total != self._size:
            raise Permanent(f"{self.key}: {total} bytes were sent instead of {self._size}")
        if self._made:
            return self._made
        blocks = [
            BlobBlock(self._name(number, self._tags[number])) for number in sorted(self._tags)
        ]
        answer = self._store.ask(
            f"finishing {self.key}",
            lambda: self._blob.commit_block_list(blocks, **conditions(condition)),
        )
        made = _info(self.key, total, answer)
        if any(tag.startswith("c") for tag in self._tags.values()):
            found = self._store.head(self.key)
            if found.version == made.version and found.size != total:
                raise Corrupt(f"{self.key} has {found.size} bytes instead of {total}")
        return made

    def abort(self) -> None:
        """See Upload. Blocks that are never committed vanish within a week."""

    def leave(self) -> None:
        """See Upload: nothing is held here."""


def conditions(condition: Condition) -> dict[str, Any]:
    """The parameters of a request that make it conditional."""
    if isinstance(condition, IfVersion):
        return {
            "etag": f'"{condition.version}"',
            "match_condition": MatchConditions.IfNotModified,
        }
    if isinstance(condition, IfAbsent):
        return {"match_condition": MatchConditions.IfMissing}
    return {}


def _info(key: str, size: int, answer: Mapping[str, Any]) -> ObjectInfo:
    version = str(answer["etag"]).strip('"')
    return ObjectInfo(key, size, version, answer["last_modified"].timestamp())
