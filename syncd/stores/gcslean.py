"""The requests of Google Cloud Storage that syncd makes, by its JSON interface, without the SDK.

The SDK (``gcssdk``) takes over wherever something is not understood here; both have the same
calls, and give the same results (``tests/stores/test_gcs.py`` asks each of both).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

from syncd.errors import Corrupt
from syncd.stores.base import Body, Buffer, Condition, IfAbsent, IfVersion, ObjectInfo
from syncd.stores.exchange import Exchange, Request, connect_to, is_fine, sdks_bundle
from syncd.stores.gcsobjects import Told, checked, crc32c_of, seconds, server, span
from syncd.stores.http1 import Answer, Strange, request_head
from syncd.stores.wire import checked_key

_SDK_ONLY = (
    "GOOGLE_API_USE_CLIENT_CERTIFICATE",
    "GOOGLE_API_USE_MTLS_ENDPOINT",
    "GOOGLE_CLOUD_UNIVERSE_DOMAIN",
    "API_ENDPOINT_OVERRIDE",
)
"""Settings of the SDK that lead to other servers, or ask for certificates of ours."""

_GO_ON = 308
_OCTETS = "application/octet-stream"
_JSON = "application/json; charset=UTF-8"
_FIELDS = "name,size,generation,updated"


class Refused(Exception):
    """The store's refusal; its text is not repeated."""

    def __init__(self, answer: Answer, body: bytes) -> None:
        self.status_code = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self.text = body.decode("utf-8", "replace")
        super().__init__(str(answer.status))


class Login(Protocol):
    """What lets a request in."""

    def head(self, method: str, url: str) -> Mapping[str, str]:
        """The headers to send with a request."""
        ...

    def renew(self, since: float) -> bool:
        """Whether the headers are others than at that time, on the monotonic clock, by now."""
        ...


class Lean:
    """Speaks to one bucket over kept-alive connections. Refused, OSError or Strange.

    What the login server says is raised as google-auth does.
    """

    def __init__(
        self, exchange: Exchange, origin: str, host: str, bucket: str, login: Login | None
    ) -> None:
        """``origin`` is the server's address with what is before the paths of the interface."""
        self._exchange = exchange
        self._origin = origin
        self._base = urlsplit(origin).path
        self._host = host
        self._bucket = f"/storage/v1/b/{quote(bucket, safe='~')}"
        self._login = login

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        headers: Mapping[str, str] | None = None,
        body: Buffer = b"",
    ) -> Request:
        """``path`` is escaped, and below what all addresses of the server begin with."""
        target = f"{self._base}{path}" + (f"?{urlencode(query)}" if query else "")
        head = {"host": self._host, "user-agent": "syncd", **(headers or {})}
        if method != "GET":
            head["content-length"] = str(len(body))
        if self._login:
            head |= self._login.head(method, self._origin + path)
        return request_head(method, target, head), body

    def _make(self, request: Callable[[], Request]) -> tuple[Answer, bytes]:
        began = time.monotonic()
        made = self._exchange.make(request())
        return self._exchange.make(request()) if self._is_renewed(made[0], began) else made

    def _is_renewed(self, answer: Answer, began: float) -> bool:
        """Whether the token was not taken any more, and the request is worth one more try."""
        return answer.status == 401 and self._login is not None and self._login.renew(began)

    def _call(self, method: str, path: str, query: Mapping[str, str], **more: Any) -> Any:
        """Make a request; the JSON of its answer."""
        made = self._make(partial(self._request, method, path, query, **more))
        return _json(_judge(*made)[1])

    def _path_of(self, key: str) -> str:
        return f"{self._bucket}/o/{quote(checked_key(key), safe='~')}"

    def _put(self, key: str, data: Buffer, condition: Condition) -> Request:
        about = {
            "name": checked_key(key),
            "contentType": _OCTETS,
            "crc32c": crc32c_of(data),
        }
        boundary = secrets.token_hex(16)
        lines = (
            f"--{boundary}",
            f"content-type: {_JSON}",
            "",
            json.dumps(about),
            f"--{boundary}",
            f"content-type: {_OCTETS}",
            "\r\n",
        )
        body = b"".join(("\r\n".join(lines).encode(), data, f"\r\n--{boundary}--".encode()))
        query = {"uploadType": "multipart", **_conditions(condition)}
        headers = {"content-type": f'multipart/related; boundary="{boundary}"'}
        return self._request("POST", f"/upload{self._bucket}/o", query, headers=headers, body=body)

    def _put_of(self, body: Body) -> Request:
        return self._put(body.key, body.data, body.condition)

    def put(self, key: str, data: Buffer, condition: Condition) -> ObjectInfo:
        """See Objects."""
        made = self._make(partial(self._put, key, data, condition))
        return _arrived(key, data, _judge(*made)[1])

    def put_each(self, bodies: Iterable[Body]) -> Iterator[tuple[Body, ObjectInfo | Exception]]:
        """Put many small objects, many in flight; what became of each, in their order."""
        for body, outcome in self._exchange.each_of(bodies, self._put_of):
            try:
                if isinstance(outcome, Exception):
                    yield body, outcome
                else:
                    yield body, _arrived(body.key, body.data, _judge(*outcome)[1])
            except (Refused, Strange, Corrupt) as error:
                yield body, error

    def start_session(self, key: str, size: int, generation: str) -> str:
        """See Objects."""
        headers = {
            "content-type": _JSON,
            "x-upload-content-type": _OCTETS,
            "x-upload-content-length": str(size),
        }
        body = json.dumps({"name": checked_key(key), "contentType": _OCTETS}).encode()
        query = {"uploadType": "resumable", "ifGenerationMatch": generation}
        path = f"/upload{self._bucket}/o"
        answer, _ = _judge(
            *self._make(partial(self._request, "POST", path, query, headers=headers, body=body))
        )
        if not answer.headers.get("location"):
            raise Strange("an upload without an address")
        return answer.headers["location"]

    def session(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Told:
        """See Objects. A token goes to no other server than it was made for."""
        if not url.startswith(f"{self._origin}/"):
            raise Strange("an upload at another address")
        path = url.removeprefix(self._origin)
        answer, text = self._make(
            partial(self._request, method, path, {}, headers=headers, body=body)
        )
        if answer.status != _GO_ON:
            _judge(answer, text)
        return Told(answer.status, answer.headers, text)

    def _get(self, key: str, start: int, length: int | None, version: str | None) -> Request:
        query = {"alt": "media", **({"ifGenerationMatch": version} if version else {})}
        path = f"/download{self._path_of(key)}"
        return self._request("GET", path, query, headers=span(start, length))

    def read(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> tuple[int, Iterator[Any]]:
        """See Objects."""
        request, began = partial(self._get, key, start, length, version), time.monotonic()
        answer, body = self._exchange.stream(request())
        if self._is_renewed(answer, began):
            answer, body = self._exchange.stream(request())
        if isinstance(body, bytes):
            _judge(answer, body)
            raise Strange("no content")
        if answer.status != 206 and (start or length is not None):
            body.close()
            raise Strange("the range was not heeded")
        return body.length, iter(body)

    def read_each(self, wanted: Iterable[tuple[str, int]]) -> Iterator[bytes | Exception]:
        """Read many small objects, each up to so many bytes; what became of each, in order."""
        asked = [*wanted]
        requests = (partial(self._get, key, 0, length, None) for key, length in asked)
        for (_, length), outcome in zip(asked, self._exchange.each(requests), strict=True):
            try:
                if isinstance(outcome, Exception):
                    yield outcome
                else:
                    body = _judge(*outcome)[1]
                    yield body if len(body) <= length else Strange("the range was not heeded")
            except (Refused, Strange) as error:
                yield error

    def head(self, key: str) -> ObjectInfo:
        """See Objects."""
        return _info(self._call("GET", self._path_of(key), {"fields": _FIELDS}))

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See Objects."""
        token = ""
        while True:
            query = {"fields": f"nextPageToken,items({_FIELDS})"}
            query |= {"prefix": prefix} if prefix else {}
            query |= {"pageToken": token} if token else {}
            page = self._call("GET", f"{self._bucket}/o", query)
            for item in page.get("items") or ():
                yield _info(item)
            following = page.get("nextPageToken") or ""
            if following in ("", token):
                return
            token = following

    def look(self, prefix: str) -> None:
        """See Objects."""
        self._call("GET", f"{self._bucket}/o", {"maxResults": "1", "prefix": prefix})

    def rewrite(self, source: str, target: str, condition: Condition) -> ObjectInfo:
        """See Objects. Within a bucket the first call mostly rewrites all of it."""
        path, token = f"{self._path_of(source)}/rewriteTo{self._path_below(target)}", ""
        while True:
            query = {**_conditions(condition), **({"rewriteToken": token} if token else {})}
            found = self._call("POST", path, query)
            if found.get("done") is not False and "resource" in found:
                return _info(found["resource"])
            token = found.get("rewriteToken") or ""
            if not token:
                raise Strange("a copy that neither ended nor goes on")

    def _path_below(self, key: str) -> str:
        return self._path_of(key).removeprefix("/storage/v1")

    def compose(self, key: str, sources: Mapping[str, str], generation: str) -> ObjectInfo:
        """See Objects."""
        wanted = [
            {
                "name": checked_key(name),
                "generation": version,
                "objectPreconditions": {"ifGenerationMatch": version},
            }
            for name, version in sources.items()
        ]
        about = {"sourceObjects": wanted, "destination": {"contentType": _OCTETS}}
        path, query = f"{self._path_of(key)}/compose", {"ifGenerationMatch": generation}
        headers, body = {"content-type": _JSON}, json.dumps(about).encode()
        return _info(self._call("POST", path, query, headers=headers, body=body))

    def delete(self, key: str) -> None:
        """See Objects."""
        _judge(*self._make(partial(self._request, "DELETE", self._path_of(key), {})))

    def close(self) -> None:
        """See Objects."""
        self._exchange.close()


def told(bucket: str, environ: Mapping[str, str]) -> Lean | None:
    """The lean road by the settings; None where only the SDK knows what they say."""
    if any(environ.get(name) or os.environ.get(name) for name in _SDK_ONLY):
        return None
    try:
        url = urlsplit(server(environ))
        found = connect_to(url, sdks_bundle())
    except ValueError:  # no address
        return None
    if not found or url.query or url.username:
        return None
    exchange, host = found
    login: Login | None = None
    if not environ.get("STORAGE_EMULATOR_HOST"):
        from syncd.stores.gcslogin import Token

        login = Token(environ)
    return Lean(exchange, f"{url.scheme}://{url.netloc}{url.path}", host, bucket, login)


def _arrived(key: str, data: Buffer, body: bytes) -> ObjectInfo:
    found = _json(body)
    info = _info(found)
    if info.key != key:
        raise Strange("the answer is about another object")
    return checked(info, data, found.get("crc32c"))


def _judge(answer: Answer, body: bytes) -> tuple[Answer, bytes]:
    if is_fine(answer):
        return answer, body
    if 300 <= answer.status < 400 and answer.status != 304:
        raise Strange("the store is elsewhere")
    raise Refused(answer, body)


def _conditions(condition: Condition) -> dict[str, str]:
    if isinstance(condition, IfVersion):
        return {"ifGenerationMatch": condition.version}
    return {"ifGenerationMatch": "0"} if isinstance(condition, IfAbsent) else {}


def _json(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        raise Strange("the answer is no JSON") from None
    if not isinstance(found, dict):
        raise Strange("the answer is no object of JSON")
    return found


def _info(found: Mapping[str, Any]) -> ObjectInfo:
    try:
        size, version = int(found["size"]), str(found["generation"])
        return ObjectInfo(found["name"], size, version, seconds(found["updated"]))
    except (KeyError, TypeError, ValueError):
        raise Strange("an object that is not described whole") from None
