"""A TCP proxy that does to a connection what networks do: cuts it, changes a byte."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time

SLOW_DOWN = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/xml\r\n"
    b"Content-Length: 62\r\nConnection: close\r\n\r\n"
    b"<Error><Code>SlowDown</Code><Message>not now</Message></Error>"
)
"""What an overloaded S3 says."""

_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (/\S*) HTTP/1\.1\r\n")


class Wire:
    """Between a client and a server; plain http only, as it looks at the bytes.

    ``cut_after``: reset the connection once the client has sent so many bytes on it.
    ``replace``: this in the client's stream becomes that, of the same length.
    ``rate``: bytes per second that pass on each connection, upward.
    ``refuse``: while it is set, each request is answered with these bytes by nobody but the wire.
    ``said``: where it is a list, what each read from a client began with.
    ``flows``: while it is not set nothing passes any more, and nobody is told: a black hole.
    """

    def __init__(self, target_port: int) -> None:
        self._target = target_port
        self.cut_after: int | None = None
        self.replace: tuple[bytes, bytes] | None = None
        self.rate: float | None = None
        self.upward = 0
        self.refuse = b""
        self.refused = 0
        self.connections = 0
        self.cuts = 0
        self.said: list[bytes] | None = None
        self.requests: list[str] = []
        """Method and path of each request that has gone up."""
        self.flows = threading.Event()
        self.flows.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            server = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, upward in ((client, server, True), (server, client, False)):
                threading.Thread(
                    target=self._pump, args=(source, sink, upward), daemon=True
                ).start()

    def _pump(self, source: socket.socket, sink: socket.socket, upward: bool) -> None:
        passed = 0
        try:
            while data := source.recv(65536):
                self.flows.wait()
                passed += len(data)
                if upward:
                    self.upward += len(data)
                    if self.rate:
                        time.sleep(len(data) / self.rate)
                    if self.said is not None:
                        self.said.append(data[:4096])
                    self.requests += [b" ".join(head).decode() for head in _REQUEST.findall(data)]
                if upward and self.refuse:
                    self.refused += 1
                    source.sendall(self.refuse)
                    break
                if upward and self.replace:
                    data = data.replace(*self.replace)
                if upward and self.cut_after is not None and passed > self.cut_after:
                    self.cuts += 1
                    for end in (source, sink):  # a reset, not an orderly end
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    break
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
