"""A thin line to a server, and bad weather on it: slow, and at times what networks and stores do.

Plain http only, as it looks for where requests begin. In a storm each request may meet

    refusal    a 503 in the server's stead
    reset      the connection is reset after some of the bytes
    deafness   the server does what was asked, and the connection is reset before its answer
    silence    nothing passes on the whole line for a second
    flip       one bit of the body is another one
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from dataclasses import dataclass, field
from typing import Any

_PIECE = 16384
_REFUSAL = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_WEATHER = ("refusal", "reset", "deafness", "silence", "flip")
_OFTEN = (7, 5, 5, 2, 2)


def listener() -> socket.socket:
    """A socket for ``run``; its small window keeps what a dead client had sent from arriving."""
    line = socket.socket()
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    line.bind(("127.0.0.1", 0))
    line.listen(100)
    return line


def run(
    line: socket.socket,
    target: int,
    rate: float | None,
    storm: int | None = None,
    odds: float = 0.06,
    upward: Any = None,
) -> None:
    """Pass everything on to ``target``, ``rate`` bytes per second upwards.

    ``storm`` is a seed; each request then meets a fault with these odds. ``upward``, a
    multiprocessing.Value, counts the bytes that have come from clients.
    """
    link = Link(target, rate, None if storm is None else random.Random(storm), odds, upward)
    asyncio.run(link.serve(line))


@dataclass
class _Request:
    """What is about to happen to the request under way on one connection."""

    fault: str | None = None
    at: int = 0
    passed: int = 0
    answered: bool = True


@dataclass
class Link:
    """The line; all connections share its rate."""

    target: int
    rate: float | None = None
    rng: random.Random | None = None
    odds: float = 0.06
    upward: Any = None
    _free_at: float = 0.0
    _dark_until: float = 0.0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def serve(self, line: socket.socket) -> None:
        """Until cancelled."""
        server = await asyncio.start_server(self._connect, sock=line)
        async with server:
            await server.serve_forever()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, out = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            _reset(writer)
            return
        request = _Request()
        down = asyncio.ensure_future(self._down(back, writer, out, request))
        self._tasks.add(down)
        down.add_done_callback(self._tasks.discard)
        try:
            while data := await reader.read(_PIECE):
                if self.upward is not None:
                    self.upward.value += len(data)
                if request.answered:
                    self._draw(request)
                if not await self._meet(request, data, writer, out):
                    return
                data = self._flipped(request, data)
                request.passed += len(data)
                await self._pace(len(data))
                out.write(data)
                await out.drain()
            out.write_eof()
        except OSError:
            _reset(writer)
            _reset(out)

    def _draw(self, request: _Request) -> None:
        request.answered, request.passed, request.fault = False, 0, None
        if self.rng and self.rng.random() < self.odds:
            request.fault = self.rng.choices(_WEATHER, _OFTEN)[0]
            request.at = int(4096 * 2 ** self.rng.uniform(0, 6))

    async def _meet(
        self,
        request: _Request,
        data: bytes,
        writer: asyncio.StreamWriter,
        out: asyncio.StreamWriter,
    ) -> bool:
        """Let the fault happen; False when the connection is over."""
        loop = asyncio.get_running_loop()
        if request.fault == "refusal":
            writer.write(_REFUSAL)
            await writer.drain()
            writer.close()
            _reset(out)
            return False
        if request.fault == "reset" and request.passed + len(data) > request.at - 4096:
            _reset(writer)
            _reset(out)
            return False
        if request.fault == "silence":
            request.fault = None
            self._dark_until = loop.time() + 1.0
        return True

    def _flipped(self, request: _Request, data: bytes) -> bytes:
        if request.fault != "flip" or not request.passed <= request.at < request.passed + len(data):
            return data
        changed = bytearray(data)
        changed[request.at - request.passed] ^= 4
        return bytes(changed)

    async def _pace(self, count: int) -> None:
        """Wait until so many bytes have passed."""
        now = asyncio.get_running_loop().time()
        start = max(now, self._free_at, self._dark_until)
        self._free_at = start + (count / self.rate if self.rate else 0.0)
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)

    async def _down(
        self,
        back: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        out: asyncio.StreamWriter,
        request: _Request,
    ) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await back.read(65536):
                if not data.startswith(b"HTTP/1.1 100"):
                    request.answered = True
                    if request.fault == "deafness":
                        break
                if self._dark_until > loop.time():
                    await asyncio.sleep(self._dark_until - loop.time())
                writer.write(data)
                await writer.drain()
            else:
                writer.close()
                return
        except OSError:
            pass
        _reset(writer)
        _reset(out)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection by a reset, not in order."""
    end = writer.get_extra_info("socket")
    if end is not None and end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
