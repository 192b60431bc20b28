"""google-cloud-storage, opened as the settings say: the road where the lean one does not lead.

Whole objects, copies and listings go through the library; the chunks of a resumable upload and
streamed reads through the same session, as the library has no call for one of them. Loading it
takes a quarter of a second and 40 MiB: only when it is needed.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from syncd.errors import NeedsOperator, Permanent
from syncd.stores.base import Buffer, Condition, IfAbsent, IfVersion, ObjectInfo
from syncd.stores.gcsobjects import Told, checked, server, span
from syncd.stores.wire import CHUNK, CONNECT_TIMEOUT, READ_TIMEOUT, checked_key, enlarge, quiet

try:
    import requests
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud import storage
    from urllib3.exceptions import HTTPError

    from syncd.stores.gcslogin import open_session
except ImportError as missing:
    raise NeedsOperator(
        "google-cloud-storage is not installed", hint="pip install 'syncd[gcs]'"
    ) from missing

FAILURES = (GoogleAPIError, GoogleAuthError, requests.RequestException, HTTPError)

_TIMEOUT = (CONNECT_TIMEOUT, READ_TIMEOUT)
_NO_RETRY: dict[str, Any] = {"retry": None, "timeout": _TIMEOUT}
_OCTETS = "application/octet-stream"


class Sdk:
    """A bucket, by the SDK; what it raises comes as it is."""

    def __init__(self, bucket: str, environ: Mapping[str, str]) -> None:
        """Looks for credentials, which may ask the machine's own server."""
        quiet("google", "urllib3")
        self._session = open_session(environ)
        enlarge(self._session)
        emulated = bool(environ.get("STORAGE_EMULATOR_HOST"))
        self._client: Any = storage.Client(
            project=environ.get("GOOGLE_CLOUD_PROJECT") or "syncd",
            credentials=self._session.credentials,
            _http=self._session,
            client_options={"api_endpoint": server(environ)} if emulated else None,
        )
        self._bucket: Any = self._client.bucket(bucket)

    def _blob(self, key: str, **options: Any) -> Any:
        return self._bucket.blob(checked_key(key), **options)

    def put(self, key: str, data: Buffer, condition: Condition) -> ObjectInfo:
        """See Objects."""
        blob = self._blob(key)
        blob.upload_from_file(
            io.BytesIO(data),
            size=len(data),
            content_type=_OCTETS,
            checksum="crc32c",
            **_conditions(condition),
            **_NO_RETRY,
        )
        return checked(_info(blob), data, blob.crc32c)

    def start_session(self, key: str, size: int, generation: str) -> str:
        """See Objects."""
        return str(
            self._blob(key).create_resumable_upload_session(
                size=size,
                content_type=_OCTETS,
                if_generation_match=int(generation),
                **_NO_RETRY,
            )
        )

    def session(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Told:
        """See Objects."""
        answer = self._session.request(
            method,
            url,
            data=body,
            headers=headers,
            timeout=_TIMEOUT,
            allow_redirects=False,  # 308 says "go on" here
        )
        answer.raise_for_status()
        told = {name.lower(): value for name, value in answer.headers.items()}
        return Told(answer.status_code, told, answer.content)

    def read(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> tuple[int, Iterator[Any]]:
        """See Objects."""
        answer = self._session.request(
            "GET",
            self._address(key),
            params={"alt": "media", **({"ifGenerationMatch": version} if version else {})},
            headers=span(start, length),
            timeout=_TIMEOUT,
            stream=True,
        )
        answer.raise_for_status()
        if answer.status_code != 206 and (start or length is not None):
            answer.close()
            raise Permanent(f"the store does not answer ranges of {key}")
        told = answer.headers.get("Content-Length")
        if told is None:
            answer.close()
            raise Permanent(f"the store does not tell the length of {key}")
        return int(told), _chunks(answer, int(told))

    def _address(self, key: str) -> str:
        name = quote(checked_key(key), safe="")
        bucket = quote(self._bucket.name)
        return f"{self._client.api_endpoint}/download/storage/v1/b/{bucket}/o/{name}"

    def head(self, key: str) -> ObjectInfo:
        """See Objects."""
        blob = self._blob(key)
        blob.reload(**_NO_RETRY)
        return _info(blob)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Objects."""
        for blob in self._client.list_blobs(self._bucket, prefix=prefix or None, **_NO_RETRY):
            yield _info(blob)

    def look(self, prefix: str) -> None:
        """See Objects."""
        wanted = {"prefix": prefix, "max_results": 1, **_NO_RETRY}
        next(iter(self._client.list_blobs(self._bucket, **wanted)), None)

    def rewrite(self, source: str, target: str, condition: Condition) -> ObjectInfo:
        """See Objects."""
        old, new, token = self._blob(source), self._blob(target), None
        while True:
            token, _, _ = new.rewrite(old, token=token, **_conditions(condition), **_NO_RETRY)
            if token is None:
                return _info(new)

    def compose(self, key: str, sources: Mapping[str, str], generation: str) -> ObjectInfo:
        """See Objects."""
        whole = self._blob(key)
        whole.content_type = _OCTETS
        generations = [int(version) for version in sources.values()]
        whole.compose(
            [self._blob(name, generation=int(version)) for name, version in sources.items()],
            if_generation_match=int(generation),
            if_source_generation_match=generations,
            **_NO_RETRY,
        )
        return _info(whole)

    def delete(self, key: str) -> None:
        """See Objects."""
        self._blob(key).delete(**_NO_RETRY)

    def close(self) -> None:
        """See Objects."""
        self._client.close()


def _conditions(condition: Condition) -> dict[str, int]:
    """The parameters of a request that make it conditional."""
    if isinstance(condition, IfVersion):
        return {"if_generation_match": int(condition.version)}
    return {"if_generation_match": 0} if isinstance(condition, IfAbsent) else {}


def _chunks(answer: Any, left: int) -> Iterator[Any]:
    try:
        while left > 0 and (chunk := answer.raw.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
    finally:
        answer.close()


def _info(blob: Any) -> ObjectInfo:
    if blob.size is None or not blob.generation:
        raise ValueError("an object that is not described whole")
    modified = blob.updated.timestamp() if blob.updated else 0.0
    return ObjectInfo(blob.name, int(blob.size), str(blob.generation), modified)
