"""Requests to one server and their answers, over kept-alive connections, for the lean roads.

How a request is signed and what an answer means is each cloud's own matter (``s3lean``,
``azurelean``, ``gcslean``); here one is made and waited for, or its body comes as a stream, or
many are in flight at a time.
"""

from __future__ import annotations

import importlib.util
import os
import ssl
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult

from syncd.stores.base import Buffer
from syncd.stores.http1 import Address, Answer, Connection, Pool, Strange
from syncd.stores.wire import CHUNK, CONNECT_TIMEOUT, CONNECTIONS, READ_TIMEOUT

_BODY_LIMIT = 64 * 1024 * 1024
_ERROR_LIMIT = 1024 * 1024
_PORTS = {"http": 80, "https": 443}

_A = TypeVar("_A")

IN_FLIGHT = 64
"""Small objects under way at a time; fewer where the store answers at once."""

Request = tuple[bytes, Buffer]
"""The head of a request, signed, and its body."""


class Exchange:
    """Speaks to one server; what an answer says is for the caller to judge."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def make(self, request: Request, has_body: bool = True) -> tuple[Answer, bytes]:
        """Make a request; its answer, and the body of that. OSError, or Strange."""
        connection = self._pool.take()
        try:
            connection.send(*request)
            answer = connection.receive(has_body)
            return answer, self._take_body(answer, connection)
        except BaseException:
            connection.close()
            raise

    def stream(self, request: Request) -> tuple[Answer, bytes | Content]:
        """Make a request for an object, whose content then comes as it is read."""
        connection = self._pool.take()
        try:
            connection.send(*request)
            answer = connection.receive()
            if answer.status not in (200, 206):
                return answer, self._take_body(answer, connection)
            pool = self._pool if answer.keeps else None
            return answer, Content(_length(answer), connection, pool)
        except BaseException:
            connection.close()
            raise

    def each(
        self, requests: Iterable[Callable[[], Request]]
    ) -> Iterator[tuple[Answer, bytes] | Exception]:
        """Make many requests, many in flight; what became of each, in their order.

        A connection that has answered is used again, so there are as many as the store's delay
        makes worth while.
        """
        flying: deque[Connection | Exception] = deque()
        for request in requests:
            while flying and (len(flying) >= IN_FLIGHT or _is_ready(flying[0])):
                yield self._settle(flying.popleft())
            try:
                made = request()
                connection = self._pool.take()
                connection.send(*made)
            except Exception as error:  # noqa: BLE001 - of an SDK too, which renews its keys
                flying.append(error)
            else:
                flying.append(connection)
        while flying:
            yield self._settle(flying.popleft())

    def each_of(
        self, items: Iterable[_A], request: Callable[[_A], Request]
    ) -> Iterator[tuple[_A, tuple[Answer, bytes] | Exception]]:
        """As ``each``, with the item that each outcome is of."""
        sent = deque[_A]()

        def requests() -> Iterator[Callable[[], Request]]:
            for item in items:
                sent.append(item)
                yield partial(request, item)

        for outcome in self.each(requests()):
            yield sent.popleft(), outcome

    def _settle(self, connection: Connection | Exception) -> tuple[Answer, bytes] | Exception:
        if isinstance(connection, Exception):
            return connection
        try:
            answer = connection.receive()
            return answer, self._take_body(answer, connection)
        except (OSError, Strange) as error:
            connection.close()
            return error

    def _take_body(self, answer: Answer, connection: Connection) -> bytes:
        """Read the answer to its end, and give the connection back: from then on it is others'."""
        body = connection.body(answer, _BODY_LIMIT if is_fine(answer) else _ERROR_LIMIT)
        if answer.keeps:
            self._pool.give(connection)
        else:
            connection.close()
        return body

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.close()


class Content:
    """The bytes of an object, as they come; as the SDKs' streams."""

    def __init__(self, left: int, connection: Connection, pool: Pool | None) -> None:
        self.length = left
        self._left = left
        self._connection = connection
        self._pool = pool

    def read(self, count: int) -> bytes | bytearray:
        """The next ``count`` bytes, or what is left; Broken if the connection ends before."""
        count = min(count, self._left)
        chunk = self._connection.read(count) if count else b""
        self._left -= count
        return chunk

    def __iter__(self) -> Iterator[bytes | bytearray]:
        """What is left, in chunks; the connection is given back or closed at the end."""
        try:
            while self._left > 0:
                yield self.read(CHUNK)
        finally:
            self.close()

    def close(self) -> None:
        """Give the connection back, if all was read."""
        pool, self._pool = self._pool, None
        if pool and not self._left:
            pool.give(self._connection)
        else:
            self._connection.close()


def _is_ready(connection: Connection | Exception) -> bool:
    return isinstance(connection, Exception) or connection.ready


def is_fine(answer: Answer) -> bool:
    """Whether the server has done what it was asked."""
    return 200 <= answer.status < 300


def _length(answer: Answer) -> int:
    if answer.length is None or "content-encoding" in answer.headers:
        raise Strange("the length of the object is not told")
    return answer.length


def sdks_bundle() -> str:
    """The authorities that ``requests`` is told to trust, as Google's and Azure's SDKs use it."""
    names = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
    return next((os.environ[name] for name in names if os.environ.get(name)), "")


def connect_to(url: SplitResult, bundle: str = "") -> tuple[Exchange, str] | None:
    """An exchange with the server of an address, and the value of the Host header for it.

    ``bundle`` names the authorities to trust, a file or a folder; empty: those that the SDKs
    trust. None where only an SDK knows the way: through a proxy, or to a name that is no ASCII.
    """
    host = url.hostname or ""
    if url.scheme not in _PORTS or not host or _has_proxy(url.scheme, host):
        return None
    try:
        port = url.port or _PORTS[url.scheme]
        host.encode("ascii")
    except ValueError:
        return None
    tls = _trust(bundle) if url.scheme == "https" else None
    pool = Pool(Address(host, port, tls), CONNECT_TIMEOUT, READ_TIMEOUT, CONNECTIONS + IN_FLIGHT)
    name = f"[{host}]" if ":" in host else host
    return Exchange(pool), name if port == _PORTS[url.scheme] else f"{name}:{port}"


def _trust(bundle: str) -> ssl.SSLContext:
    """The authorities that the SDKs trust."""
    bundle = bundle or os.environ.get("REQUESTS_CA_BUNDLE", "") or _bundled()
    if Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle or None)


def _bundled() -> str:
    for package in ("certifi", "botocore"):
        found = importlib.util.find_spec(package)
        path = Path(found.origin).with_name("cacert.pem") if found and found.origin else None
        if path and path.exists():
            return str(path)
    return ""


def _has_proxy(scheme: str, host: str) -> bool:
    names = (f"{scheme}_proxy", "all_proxy")
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in names):
        return False
    from urllib.request import proxy_bypass

    return not proxy_bypass(host)
