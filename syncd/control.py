"""How others reach the daemon: a socket file in the state directory, and an address.

The socket belongs to the daemon's user and can also ask for a flush; the address of SYNCD_HTTP
only ever answers questions. What is answered is in web.py.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

SOCKET = "control.sock"

_LOOK_ROUND = 30
"""Seconds between looks whether a connection is idle; whatever comes is answered at once."""

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
"""A WSGI application."""


class Servers:
    """The listening sides, each in a thread of its own."""

    def __init__(self) -> None:
        self._servers: list[tuple[Any, dict[int, Any], threading.Thread]] = []
        """Each with its open connections and its thread."""

    def listen_socket(self, application: Application, state_dir: Path) -> None:
        """Listen on the socket file of the state directory."""
        with _short_path(state_dir / SOCKET) as path:
            Path(path).unlink(missing_ok=True)
            self._start(application, unix_socket=path, unix_socket_perms="600")

    def listen_http(self, application: Application, host: str, port: int) -> int | None:
        """Listen on an address; None, with a warning, where that cannot be."""
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            listener = socket.create_server((host, port), family=family)
        except OSError as error:
            log.warning("no status page on %s:%d: %s", host, port, error.strerror)
            return None
        self._start(application, sockets=[listener])
        return int(listener.getsockname()[1])

    def close(self) -> None:
        """Stop listening, and hang up on whoever is still there."""
        from waitress.wasyncore import close_all

        for server, connections, thread in self._servers:
            server.task_dispatcher.shutdown()
            # by its own thread, which else would sleep on, and serve connections kept alive
            server.trigger.pull_trigger(functools.partial(close_all, connections))
            thread.join(2)
        self._servers.clear()

    def _start(self, application: Application, **address: Any) -> None:
        from waitress.server import create_server

        logging.getLogger("waitress").setLevel(logging.ERROR)
        connections: dict[int, Any] = {}
        server = create_server(
            application,
            map=connections,
            threads=2,
            asyncore_loop_timeout=_LOOK_ROUND,
            **address,
        )
        thread = threading.Thread(target=server.run, name="http", daemon=True)
        thread.start()
        self._servers.append((server, connections, thread))


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits its 107 bytes, however deep the folder lies."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


class SocketConnection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket file; OSError where nobody listens."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with _short_path(self._path) as path:
            self.sock.connect(path)


class Client:
    """Asks the daemon of a state directory."""

    def __init__(self, state_dir: Path, timeout: float = 10.0) -> None:
        self._path = state_dir / SOCKET
        self._timeout = timeout

    def ask(
        self, path: str, method: str = "GET", body: dict[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """The JSON answer; None when no daemon answers."""
        connection = SocketConnection(self._path, self._timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            document = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return document if isinstance(document, dict) else None
