"""The programs of the supervisord that this daemon runs under, if there is one."""

from __future__ import annotations

import http.client
import threading
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncd.control import SocketConnection

_TIMEOUT = 2.0
"""Seconds for an answer: the page must not wait for a supervisor that hangs."""

_FRESH = 3.0
"""Seconds for which an answer is used again."""


@dataclass(frozen=True)
class Program:
    """One program: its state in supervisord's words, and what it says of it."""

    name: str
    state: str
    words: str


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = SocketConnection(self._path, _TIMEOUT)
        self._connection = host, connection  # what close() closes
        return connection


class Programs:
    """Asks supervisord through its socket: SUPERVISOR_SERVER_URL, else the one beside ours."""

    def __init__(self, environ: Mapping[str, str], state_dir: Path) -> None:
        url = environ.get("SUPERVISOR_SERVER_URL", "")
        socket = url.removeprefix("unix://") if url.startswith("unix://") else ""
        self._path = Path(socket) if socket else state_dir / "supervisor.sock"
        self._lock = threading.Lock()
        self._asked = float("-inf")
        self._found: list[Program] = []

    def __call__(self) -> list[Program]:
        """All programs by name; none where nobody answers."""
        with self._lock:
            now = time.monotonic()
            if now - self._asked > _FRESH:
                self._asked = now
                self._found = self._ask() if self._path.exists() else []
            return self._found

    def _ask(self) -> list[Program]:
        server = xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(self._path))
        try:
            answer: Any = server.supervisor.getAllProcessInfo()
            return [
                Program(str(row["name"]), str(row["statename"]), str(row["description"]))
                for row in answer
            ]
        except (OSError, http.client.HTTPException, xmlrpc.client.Error, KeyError, TypeError):
            return []
        finally:
            server("close")()
