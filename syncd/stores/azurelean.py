"""The requests of Azure Blob Storage that syncd makes, without the SDK.

The SDK (``azuresdk``) takes over wherever something is not understood here; both have the same
calls, and give the same results (``tests/stores/test_azure.py`` asks each of both).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote, unquote, urlsplit
from xml.etree import ElementTree

from syncd.stores import azuresign
from syncd.stores.azuresign import Signer
from syncd.stores.base import Body, Buffer, Condition, IfAbsent, IfVersion, ObjectInfo
from syncd.stores.exchange import Exchange, Request, connect_to, is_fine, sdks_bundle
from syncd.stores.http1 import Answer, Strange, request_head
from syncd.stores.wire import checked_key


class Refused(Exception):
    """The store's refusal; its text is not repeated."""

    def __init__(self, answer: Answer, body: bytes) -> None:
        self.status_code = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self.error_code = answer.headers.get("x-ms-error-code", "")
        if not self.error_code and body:
            try:
                self.error_code = _root(body).findtext("Code") or ""
            except Strange:
                self.error_code = ""
        super().__init__(self.error_code or str(answer.status))


class Stamp(NamedTuple):
    """A version of a blob, and when it was made."""

    version: str
    modified: float


class Found(NamedTuple):
    """What a look at a blob tells; of the last copy to it its id, status and progress."""

    size: int
    stamp: Stamp
    copy: tuple[str, str, str] = ("", "", "")


class Blobs(Protocol):
    """The calls that both roads have. Keys are as they are, escaped by nobody yet."""

    def put_blob(self, key: str, data: Buffer, condition: Condition) -> Stamp:
        """Make a blob in one request, whose MD5 the server verifies."""
        ...

    def put_block(self, key: str, block: str, data: Buffer) -> None:
        """Send a block of that name, whose MD5 the server verifies."""
        ...

    def put_block_from(self, key: str, block: str, source: str, start: int, length: int) -> None:
        """Have the server take a block from a range of another blob."""
        ...

    def put_block_list(self, key: str, blocks: Sequence[str], condition: Condition) -> Stamp:
        """Make a blob of the newest blocks of these names."""
        ...

    def block_list(self, key: str) -> tuple[dict[str, int], dict[str, int]]:
        """The blocks of a blob, and those that wait: their names and sizes, in their order."""
        ...

    def read(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> tuple[int, Iterator[Any]]:
        """How many bytes come, and the bytes."""
        ...

    def head(self, key: str) -> Found:
        """Look at a blob."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All blobs of that prefix, but folders of a Data Lake."""
        ...

    def start_copy(
        self, source: str, version: str, target: str, condition: Condition
    ) -> tuple[str, str]:
        """Have the server copy a blob; the copy's id and status."""
        ...

    def abort_copy(self, key: str, copy_id: str) -> None:
        """Have the server give a copy up."""
        ...

    def delete(self, key: str) -> None:
        """Delete a blob and its snapshots."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class Lean:
    """Speaks to one container over kept-alive connections. Refused, OSError or Strange."""

    def __init__(self, exchange: Exchange, signer: Signer, origin: str, path: str, name: str):
        """``origin`` is the server's address, ``path`` the container's below it, escaped."""
        self._exchange = exchange
        self._signer = signer
        self._origin = origin
        self._path = path
        self._name = name

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Buffer = b"",
    ) -> Request:
        given = {**headers}
        if method == "PUT":
            given["content-length"] = str(len(body))
        target, signed = self._signer.sign(method, path, query, given)
        signed["user-agent"] = "syncd"
        return request_head(method, target, signed), body

    def _call(self, request: Request, has_body: bool = True) -> tuple[Answer, bytes]:
        return _judge(*self._exchange.make(request, has_body))

    def _path_of(self, key: str) -> str:
        return f"{self._path}/{quote(checked_key(key), safe='~/')}"

    def _put(self, key: str, data: Buffer, condition: Condition) -> Request:
        headers = {
            "content-type": "application/octet-stream",
            "content-md5": _md5(data),
            "x-ms-blob-type": "BlockBlob",
            **_conditions(condition),
        }
        return self._request("PUT", self._path_of(key), {}, headers, data)

    def _put_of(self, body: Body) -> Request:
        return self._put(body.key, body.data, body.condition)

    def put_blob(self, key: str, data: Buffer, condition: Condition) -> Stamp:
        """See Blobs."""
        return _stamp(self._call(self._put(key, data, condition))[0])

    def put_each(self, bodies: Iterable[Body]) -> Iterator[tuple[Body, ObjectInfo | Exception]]:
        """Put many small blobs, many in flight; what became of each, in their order."""
        for body, outcome in self._exchange.each_of(bodies, self._put_of):
            try:
                if isinstance(outcome, Exception):
                    yield body, outcome
                else:
                    made = _stamp(_judge(*outcome)[0])
                    yield body, ObjectInfo(body.key, len(body.data), *made)
            except (Refused, Strange) as error:
                yield body, error

    def put_block(self, key: str, block: str, data: Buffer) -> None:
        """See Blobs."""
        query = {"comp": "block", "blockid": _encoded(block)}
        self._call(
            self._request("PUT", self._path_of(key), query, {"content-md5": _md5(data)}, data)
        )

    def put_block_from(self, key: str, block: str, source: str, start: int, length: int) -> None:
        """See Blobs."""
        query = {"comp": "block", "blockid": _encoded(block)}
        readable = self._signer.readable(self._path_of(source), (self._name, source))
        headers = {
            "x-ms-copy-source": self._origin + readable,
            "x-ms-source-range": f"bytes={start}-{start + length - 1}",
        }
        self._call(self._request("PUT", self._path_of(key), query, headers))

    def put_block_list(self, key: str, blocks: Sequence[str], condition: Condition) -> Stamp:
        """See Blobs."""
        inner = "".join(f"<Latest>{_encoded(block)}</Latest>" for block in blocks)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{inner}</BlockList>'.encode()
        headers = {
            "content-type": "application/xml",
            "content-md5": _md5(body),
            "x-ms-blob-content-type": "application/octet-stream",
            **_conditions(condition),
        }
        query = {"comp": "blocklist"}
        return _stamp(self._call(self._request("PUT", self._path_of(key), query, headers, body))[0])

    def block_list(self, key: str) -> tuple[dict[str, int], dict[str, int]]:
        """See Blobs."""
        query = {"comp": "blocklist", "blocklisttype": "all"}
        root = _root(self._call(self._request("GET", self._path_of(key), query, {}))[1])
        committed, waiting = (
            {
                _decoded(_text(b, "Name")): int(_text(b, "Size"))
                for b in root.findall(f"{kind}/Block")
            }
            for kind in ("CommittedBlocks", "UncommittedBlocks")
        )
        return committed, waiting

    def _get(self, key: str, start: int, length: int | None, version: str | None) -> Request:
        headers = _conditions(IfVersion(version) if version else None)
        if start or length is not None:
            last = "" if length is None else start + length - 1
            headers["x-ms-range"] = f"bytes={start}-{last}"
        return self._request("GET", self._path_of(key), {}, headers)

    def read(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> tuple[int, Iterator[Any]]:
        """See Blobs."""
        answer, body = self._exchange.stream(self._get(key, start, length, version))
        if isinstance(body, bytes):
            raise Refused(answer, body)
        if answer.status != 206 and (start or length is not None):
            body.close()
            raise Strange("the range was not heeded")
        return body.length, iter(body)

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | Exception]:
        """Read many small blobs, each up to so many bytes; what became of each, in order."""
        requests = (partial(self._get, key, 0, length, None) for key, length in wanted)
        for outcome in self._exchange.each(requests):
            try:
                yield outcome if isinstance(outcome, Exception) else _judge(*outcome)[1]
            except (Refused, Strange) as error:
                yield error

    def head(self, key: str) -> Found:
        """See Blobs."""
        answer, _ = self._call(self._request("HEAD", self._path_of(key), {}, {}), has_body=False)
        told = answer.headers
        copy = [told.get(f"x-ms-copy-{name}", "") for name in ("id", "status", "progress")]
        try:
            return Found(int(told["content-length"]), _stamp(answer), (copy[0], copy[1], copy[2]))
        except (KeyError, ValueError):
            raise Strange("the size of a blob is not told") from None

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Blobs."""
        marker = ""
        while True:
            query = {"restype": "container", "comp": "list", "include": "metadata"}
            query |= {"prefix": prefix} if prefix else {}
            query |= {"marker": marker} if marker else {}
            root = _root(self._call(self._request("GET", self._path, query, {}))[1])
            for blob in root.findall("Blobs/Blob"):
                if blob.findtext("Metadata/hdi_isfolder") != "true":
                    yield _listed(blob)
            following = root.findtext("NextMarker") or ""
            if following in ("", marker):
                return
            marker = following

    def start_copy(
        self, source: str, version: str, target: str, condition: Condition
    ) -> tuple[str, str]:
        """See Blobs. A token goes with the source's address; a key is the account's own."""
        at = self._path_of(source)
        token = (
            at
            if isinstance(self._signer, azuresign.SharedKey)
            else self._signer.readable(at, ("", ""))
        )
        headers = {
            "x-ms-copy-source": self._origin + token,
            "x-ms-source-if-match": f'"{version}"',
            **_conditions(condition),
        }
        answer, _ = self._call(self._request("PUT", self._path_of(target), {}, headers))
        return answer.headers.get("x-ms-copy-id", ""), answer.headers.get("x-ms-copy-status", "")

    def abort_copy(self, key: str, copy_id: str) -> None:
        """See Blobs."""
        query = {"comp": "copy", "copyid": copy_id}
        headers = {"x-ms-copy-action": "abort"}
        self._call(self._request("PUT", self._path_of(key), query, headers))

    def delete(self, key: str) -> None:
        """See Blobs."""
        headers = {"x-ms-delete-snapshots": "include"}
        self._call(self._request("DELETE", self._path_of(key), {}, headers))

    def close(self) -> None:
        """See Blobs."""
        self._exchange.close()


def told(container: str, connection: str) -> Lean | None:
    """The lean road by a connection string; None where only the SDK knows what it says."""
    try:
        account = azuresign.parse(connection)
        url = urlsplit(account.endpoint) if account else None
        found = connect_to(url, sdks_bundle()) if url else None
    except ValueError:  # no address
        return None
    if not (account and url and found):
        return None
    exchange, host = found
    path = f"{url.path}/{quote(container)}"
    origin = f"{url.scheme}://{url.netloc}"
    return Lean(exchange, azuresign.signer(account, host), origin, path, container)


def _judge(answer: Answer, body: bytes) -> tuple[Answer, bytes]:
    if is_fine(answer):
        return answer, body
    if 300 <= answer.status < 400:
        raise Strange("the store is elsewhere")
    raise Refused(answer, body)


def _conditions(condition: Condition) -> dict[str, str]:
    if isinstance(condition, IfVersion):
        return {"if-match": f'"{condition.version}"'}
    return {"if-none-match": "*"} if isinstance(condition, IfAbsent) else {}


def _stamp(answer: Answer) -> Stamp:
    told = answer.headers
    if "etag" not in told:
        raise Strange("a blob without ETag")
    return Stamp(told["etag"].strip('"'), _seconds(told.get("last-modified", "")))


def _listed(blob: ElementTree.Element) -> ObjectInfo:
    name = blob.find("Name")
    if name is None or not name.text:
        raise Strange("a blob without name")
    key = unquote(name.text) if name.get("Encoded") == "true" else name.text
    size, version = int(_text(blob, "Properties/Content-Length")), _text(blob, "Properties/Etag")
    modified = _seconds(_text(blob, "Properties/Last-Modified"))
    return ObjectInfo(key, size, version.strip('"'), modified)


def _text(element: ElementTree.Element, path: str) -> str:
    found = element.findtext(path)
    if not found:
        raise Strange(f"there is no {path} in the answer")
    return found


@lru_cache(maxsize=64)
def _seconds(date: str) -> float:
    try:
        return parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        raise Strange("a blob without a date") from None


def _root(body: bytes) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(body)  # noqa: S314 - expat itself bounds what it expands
    except ElementTree.ParseError:
        raise Strange("the answer is no XML") from None


def _md5(data: Buffer) -> str:
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()


def _encoded(block: str) -> str:
    return base64.b64encode(block.encode()).decode()


def _decoded(block: str) -> str:
    try:
        return base64.b64decode(block).decode()
    except ValueError:
        raise Strange("a block of another kind of name") from None
