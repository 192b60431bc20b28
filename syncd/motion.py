"""Whether this process gets on with its work, as the kernel sees it, in the midst of a part too."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

_BYTES_ACKED = 120
"""Where linux/tcp.h has tcpi_bytes_acked in its struct tcp_info, since Linux 4.1."""

_READ = 4 << 20
"""Bytes from disk that count as progress: more than modules loaded on the way."""


class Motion:
    """Tells work that goes on from work that is done over and over again.

    What counts is what the far ends have acknowledged and what was read from disk: a part of 8 MiB
    on a thin line, or the digest of a large file, is progress long before it is over. A request
    that is made again, into a network that swallows all, gets no further than the one before it,
    and a connection that is closed is no progress either.
    """

    def __init__(self) -> None:
        self._read = bytes_read()
        self._taken = taken_upstream()
        self._arrived = 0.0

    def goes_on(self, arrived: float) -> bool:
        """Whether there was progress since it was last asked.

        ``arrived`` is another number whenever a part is over: from there on, all that the
        connections carry is new.
        """
        read, taken = bytes_read(), taken_upstream()
        over = arrived != self._arrived
        further = over or taken > self._taken or read >= self._read + _READ
        if further:
            self._read = read
            self._taken = taken if over else max(taken, self._taken)
            self._arrived = arrived
        return further


def taken_upstream() -> int:
    """Bytes that the far ends of all connections open now have acknowledged."""
    taken = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since
            if str(link.readlink()).startswith("socket:"):
                taken += _acknowledged(int(link.name))
    return taken


def bytes_read() -> int:
    """Bytes that this process has read so far, of files and else; 0 where that is not told."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/io").read_text().split()[1])
    return 0


def _acknowledged(fd: int) -> int:
    """Bytes of one TCP connection; 0 for what is none.

    Nothing is opened and nothing closed for it, in no case: whoever closes any descriptor of a
    file gives up all locks that this process holds on it, and the copy of a database that is in
    use would go on without its lock, and be torn. By now ``fd`` may belong to another thread's
    file.
    """
    borrowed = socket.socket(fileno=fd)
    try:
        told = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    finally:
        borrowed.detach()
    if len(told) < _BYTES_ACKED + 8:
        return 0
    return int(struct.unpack_from("Q", told, _BYTES_ACKED)[0])
