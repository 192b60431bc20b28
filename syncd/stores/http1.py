"""HTTP/1.1 as the way of the bytes needs it: kept-alive connections, no copy of a body, few calls.

A request is written by the caller, signed and whole; here it goes out and its answer comes in.
What this does not understand raises Strange: the caller may take another road.
"""

from __future__ import annotations

import re
import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from syncd.stores.base import Buffer

_BREAKS = re.compile("[\r\n\0]")
_HEAD_LIMIT = 64 * 1024
_JOINED = 64 * 1024
"""Bodies up to so many bytes go out in one piece with their head."""

_IDLE = 20.0
"""Seconds after which a connection that waits is not trusted any more."""


_TIMED_OUT = (BlockingIOError, TimeoutError)


class Broken(OSError):
    """The connection ended or timed out before the answer was whole."""


class Strange(Exception):
    """An answer that is no error, but in a form that is not understood here."""


@dataclass
class Answer:
    """The head of an answer; names of headers are in lower case."""

    status: int
    headers: dict[str, str]
    length: int | None = None
    """Bytes of the body; None: it comes in chunks."""
    body: bytes = field(default=b"", repr=False)
    keeps: bool = True
    """Whether the connection may be used again once the body was read."""
    to_end: bool = False
    """Whether the body ends with the connection."""


@dataclass(frozen=True)
class Address:
    """Where the server listens, and how it proves who it is (None: it does not)."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


class Connection:
    """One connection; used by one thread at a time."""

    def __init__(self, address: Address, connect_timeout: float, timeout: float) -> None:
        """Connect; OSError if that fails."""
        self._tls = address.tls is not None
        plain = socket.create_connection((address.host, address.port), connect_timeout)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._socket = (
                address.tls.wrap_socket(plain, server_hostname=address.host)
                if address.tls
                else plain
            )
            self._bound(timeout)
        except BaseException:
            plain.close()
            raise
        self._early = b""
        """What came with the head of the answer, and belongs to its body."""
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)
        self.spoilt = False
        self.used = time.monotonic()

    def _bound(self, timeout: float) -> None:
        """Have no call wait longer than that for the server.

        By the kernel where that is enough: a time-out of Python's asks before each call whether it
        would wait. Under TLS Python would take the kernel's for a reason to try again, for ever.
        """
        self._socket.settimeout(timeout if self._tls else None)
        if not self._tls:
            interval = struct.pack("ll", int(timeout), int(timeout % 1 * 1e6))
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                self._socket.setsockopt(socket.SOL_SOCKET, option, interval)

    def send(self, head: bytes, body: Buffer = b"") -> None:
        """Send a request. A server that refuses it early may have closed: its answer tells why."""
        try:
            if len(body) <= _JOINED:
                self._socket.sendall(head + body)
            else:
                self._socket.sendall(head)
                self._socket.sendall(body)
        except (BrokenPipeError, ConnectionResetError):
            self.spoilt = True
        except _TIMED_OUT:
            raise Broken("the server takes nothing") from None

    def receive(self, has_body: bool = True) -> Answer:
        """The head of the answer; its body too, unless the caller reads that: see ``body``."""
        while True:
            head, self._early = self._read_head()
            answer = _parse(head, has_body)
            if answer.status >= 200:
                break
        if not has_body or answer.status in (204, 304):
            answer.length = 0
        return answer

    def _read_head(self) -> tuple[bytes, bytes]:
        data = self._early
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > _HEAD_LIMIT:
                raise Strange("the head of the answer is too long")
            more = self._recv(_HEAD_LIMIT)
            if not more:
                raise Broken("the server closed the connection")
            data += more
        return data[:end], data[end + 4 :]

    def _recv(self, count: int, flags: int = 0) -> bytes:
        try:
            return self._socket.recv(count, flags)
        except _TIMED_OUT:
            raise Broken("no answer in time") from None

    def read(self, count: int) -> bytes | bytearray:
        """The next ``count`` bytes of a body; Broken if it ends before."""
        early, self._early = self._early[:count], self._early[count:]
        left = count - len(early)
        if not left:
            return early
        if not self._tls:
            whole = self._recv(left, socket.MSG_WAITALL)
            while len(whole) < left:  # a signal has come between
                more = self._recv(left - len(whole), socket.MSG_WAITALL) if whole else b""
                if not more:
                    raise Broken("the answer broke off")
                whole += more
            return early + whole if early else whole
        buffer = bytearray(count)
        buffer[: len(early)] = early
        view, done = memoryview(buffer), len(early)
        while done < count:
            try:
                got = self._socket.recv_into(view[done:])
            except _TIMED_OUT:
                raise Broken("no answer in time") from None
            if not got:
                raise Broken("the answer broke off")
            done += got
        return buffer

    def body(self, answer: Answer, limit: int) -> bytes:
        """The whole body; Strange if it has more than ``limit`` bytes."""
        if answer.length is not None:
            if answer.length > limit:
                raise Strange("the body of the answer is too long")
            return bytes(self.read(answer.length)) if answer.length else b""
        whole = b""
        if answer.to_end:
            whole, self._early = self._early, b""
            while len(whole) <= limit and (more := self._recv(_HEAD_LIMIT)):
                whole += more
            return whole[:limit]
        while size := self._chunk_size():
            if len(whole) + size > limit:
                raise Strange("the body of the answer is too long")
            whole += self.read(size)
            self._line()
        while self._line():
            pass  # trailers
        return whole

    def _chunk_size(self) -> int:
        try:
            return int(self._line().split(b";")[0], 16)
        except ValueError:
            raise Strange("the length of a chunk is no number") from None

    def _line(self) -> bytes:
        while (end := self._early.find(b"\r\n")) < 0:
            more = self._recv(_HEAD_LIMIT) if len(self._early) < _HEAD_LIMIT else b""
            if not more:
                raise Broken("the answer broke off")
            self._early += more
        line, self._early = self._early[:end], self._early[end + 2 :]
        return line

    @property
    def usable(self) -> bool:
        """Whether the server has neither closed the connection nor said anything unasked."""
        if self._early or time.monotonic() - self.used > _IDLE:
            return False
        return not self.ready

    @property
    def ready(self) -> bool:
        """Whether the server has said something that was not read yet, or hung up."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()

    def __del__(self) -> None:
        if hasattr(self, "_socket"):  # of a store that is dropped without being closed
            self.close()


def _parse(head: bytes, has_body: bool = True) -> Answer:
    lines = head.decode("latin-1").split("\r\n")
    try:
        version, status = lines[0].split(" ", 2)[:2]
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        answer = Answer(int(status), headers)
        if "transfer-encoding" not in headers:
            answer.length = int(headers.get("content-length", "-1"))
    except ValueError:
        raise Strange("the answer is no HTTP") from None
    if not version.startswith("HTTP/1."):
        raise Strange("the answer is no HTTP/1")
    answer.keeps = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    told = answer.length != -1 or answer.status in (204, 304) or answer.status < 200
    if has_body and not told:
        if answer.status < 400:  # whoever cuts it short would pass for the whole
            raise Strange("the body of the answer has no length")
        answer.length, answer.keeps, answer.to_end = None, False, True
    return answer


class Pool:
    """Connections to one server that wait for their next request; the youngest goes first."""

    def __init__(self, address: Address, connect_timeout: float, timeout: float, most: int) -> None:
        """``most`` connections wait at a time; more may be in use."""
        self._address = address
        self._timeouts = connect_timeout, timeout
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[Connection] = []

    def take(self) -> Connection:
        """A connection for one request; OSError if none can be made."""
        while True:
            with self._lock:
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return Connection(self._address, *self._timeouts)
            if connection.usable:
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """It may be used again: its last answer was read to the end."""
        connection.used = time.monotonic()
        with self._lock:
            if len(self._idle) < self._most and not connection.spoilt:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Let go of all that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def request_head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    """A request up to its body; ``target`` is escaped already. ValueError for what is no header."""
    lines = [f"{method} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if any(_BREAKS.search(line) for line in lines):
        raise ValueError("a header holds the end of a line")  # its value may be a secret
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
