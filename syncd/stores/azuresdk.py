"""azure-storage-blob, opened as the settings say: the road where the lean one does not lead.

Loading it takes a quarter of a second and 24 MiB: only when it is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any

from syncd.errors import NeedsOperator
from syncd.stores.azurelean import Found, Stamp
from syncd.stores.base import Buffer, Condition, IfAbsent, IfVersion, ObjectInfo
from syncd.stores.wire import CHUNK, CONNECT_TIMEOUT, READ_TIMEOUT, checked_key, enlarge, quiet

try:
    import requests
    from azure.core import MatchConditions
    from azure.core.exceptions import AzureError
    from azure.core.pipeline.transport import RequestsTransport
    from azure.storage.blob import (
        BlobBlock,
        BlobSasPermissions,
        ContainerClient,
        generate_blob_sas,
    )
except ImportError as missing:
    raise NeedsOperator(
        "azure-storage-blob is not installed", hint="pip install 'syncd[azure]'"
    ) from missing

FAILURES = (AzureError, requests.RequestException)

_RANGE = 4 * CHUNK
"""The SDK holds one answer in memory whole, so what it asks for at once is kept small."""

_LARGEST_PUT = 5000 * 1024 * 1024


class Sdk:
    """A container, by the SDK; what it raises comes as it is."""

    def __init__(self, container: str, connection: str) -> None:
        """Makes no request; NeedsOperator if the connection string cannot be used."""
        quiet("azure", "urllib3")
        session = requests.Session()
        enlarge(session)
        try:
            self._container = ContainerClient.from_connection_string(
                connection,
                container,
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

    def _blob(self, key: str) -> Any:
        return self._container.get_blob_client(checked_key(key))

    def put_blob(self, key: str, data: Buffer, condition: Condition) -> Stamp:
        """See Blobs."""
        body = data if isinstance(data, bytes) else bytes(data)
        return _stamp(
            self._blob(key).upload_blob(
                body,
                length=len(body),
                overwrite=not isinstance(condition, IfAbsent),
                validate_content=True,
                max_concurrency=1,
                **(_conditions(condition) if isinstance(condition, IfVersion) else {}),
            )
        )

    def put_block(self, key: str, block: str, data: Buffer) -> None:
        """See Blobs."""
        body = data if isinstance(data, bytes) else bytes(data)
        self._blob(key).stage_block(block, body, length=len(body), validate_content=True)

    def put_block_from(self, key: str, block: str, source: str, start: int, length: int) -> None:
        """See Blobs."""
        address = _readable(self._blob(source))
        self._blob(key).stage_block_from_url(block, address, start, length)

    def put_block_list(self, key: str, blocks: Sequence[str], condition: Condition) -> Stamp:
        """See Blobs."""
        listed = [BlobBlock(block) for block in blocks]
        return _stamp(self._blob(key).commit_block_list(listed, **_conditions(condition)))

    def block_list(self, key: str) -> tuple[dict[str, int], dict[str, int]]:
        """See Blobs."""
        committed, waiting = self._blob(key).get_block_list("all")
        one, other = ({str(b.id): int(b.size) for b in kind} for kind in (committed, waiting))
        return one, other

    def read(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> tuple[int, Iterator[Any]]:
        """See Blobs."""
        pinned = _conditions(IfVersion(version) if version else None)
        download = self._blob(key).download_blob(
            start or None if length is None else start, length, max_concurrency=1, **pinned
        )
        return download.size, download.chunks()

    def head(self, key: str) -> Found:
        """See Blobs."""
        found = self._blob(key).get_blob_properties()
        copy = found["copy"]
        told = (str(copy[name] or "") for name in ("id", "status", "progress"))
        return Found(found["size"], _stamp(found), (next(told), next(told), next(told)))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Blobs."""
        for blob in self._container.list_blobs(prefix or None, include=["metadata"]):
            if (blob.metadata or {}).get("hdi_isfolder") != "true":
                yield ObjectInfo(blob.name, blob.size, *_stamp({**blob}))

    def start_copy(
        self, source: str, version: str, target: str, condition: Condition
    ) -> tuple[str, str]:
        """See Blobs."""
        started = self._blob(target).start_copy_from_url(
            self._blob(source).url,
            source_etag=f'"{version}"',
            source_match_condition=MatchConditions.IfNotModified,
            **_conditions(condition),
        )
        return str(started["copy_id"]), str(started["copy_status"])

    def abort_copy(self, key: str, copy_id: str) -> None:
        """See Blobs."""
        self._blob(key).abort_copy(copy_id)

    def delete(self, key: str) -> None:
        """See Blobs."""
        self._blob(key).delete_blob(delete_snapshots="include")

    def close(self) -> None:
        """See Blobs."""
        self._container.close()


def _conditions(condition: Condition) -> dict[str, Any]:
    """The parameters of a request that make it conditional."""
    if isinstance(condition, IfVersion):
        return {
            "etag": f'"{condition.version}"',
            "match_condition": MatchConditions.IfNotModified,
        }
    if isinstance(condition, IfAbsent):
        return {"match_condition": MatchConditions.IfMissing}
    return {}


def _stamp(answer: Mapping[str, Any]) -> Stamp:
    return Stamp(str(answer["etag"]).strip('"'), answer["last_modified"].timestamp())


def _readable(blob: Any) -> str:
    """The address of a blob with a signature that lets the server itself read it."""
    key = getattr(blob.credential, "account_key", None)
    if key is None:
        return str(blob.url)  # a shared access signature is part of it
    token = generate_blob_sas(
        blob.account_name,
        blob.container_name,
        blob.blob_name,
        account_key=key,
        permission=BlobSasPermissions(read=True),
        expiry=datetime.now(timezone.utc) + timedelta(days=1),  # clocks differ
    )
    return f"{blob.url}?{token}"
