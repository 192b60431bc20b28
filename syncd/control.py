"""How others ask the daemon: the same small web application on a socket file and on loopback.

The socket in the state directory belongs to the daemon's user and can also ask for a flush; the
address of SYNCD_HTTP only ever answers questions.
"""

from __future__ import annotations

import contextlib
import html
import http.client
import itertools
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from syncd.health import Health

log = logging.getLogger(__name__)

SOCKET = "control.sock"

_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"

Flush = Callable[[Callable[[dict[str, Any]], None]], None]
"""Asks for a flush; the callback gets its report when it is done."""

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class Application:
    """The web application: /status, /healthz, /metrics, and on the socket /flush."""

    def __init__(self, health: Health, flush: Flush | None = None) -> None:
        self._health = health
        self._flush = flush
        self._numbers = itertools.count(1)
        self._reports: dict[int, dict[str, Any] | None] = {}

    def __call__(self, environ: dict[str, Any], start: StartResponse) -> Iterable[bytes]:
        """Answer one request (WSGI)."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "/")
        status, kind, body = self._answer(method, path)
        start(status, [("Content-Type", kind), ("Cache-Control", "no-store")])
        return [body]

    def _answer(self, method: str, path: str) -> tuple[str, str, bytes]:
        if self._flush and path.startswith("/flush"):
            return self._answer_flush(method, path)
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", "text/plain", b"only questions are answered here\n"
        pages: dict[str, Callable[[], tuple[str, str, bytes]]] = {
            "/": lambda: ("200 OK", "text/html; charset=utf-8", _page(self._health.snapshot())),
            "/status": lambda: _json("200 OK", self._health.snapshot()),
            "/healthz": self._healthz,
            "/metrics": lambda: ("200 OK", _PROMETHEUS, metrics(self._health)),
        }
        if path not in pages:
            return "404 Not Found", "text/plain", b"/status, /healthz and /metrics are here\n"
        return pages[path]()

    def _healthz(self) -> tuple[str, str, bytes]:
        reasons = self._health.reasons()
        if not reasons:
            return "200 OK", "text/plain; charset=utf-8", b"ok\n"
        text = "".join(f"{reason.message} ({reason.hint})\n" for reason in reasons)
        return "503 Service Unavailable", "text/plain; charset=utf-8", text.encode()

    def _answer_flush(self, method: str, path: str) -> tuple[str, str, bytes]:
        if method == "POST" and path == "/flush" and self._flush:
            number = next(self._numbers)
            self._reports[number] = None
            self._flush(lambda report: self._reports.__setitem__(number, report))
            return _json("202 Accepted", {"id": number})
        number = int(path.rpartition("/")[2] or 0) if path[7:].isdigit() else 0
        if number not in self._reports:
            return _json("404 Not Found", {"error": "no such flush"})
        report = self._reports[number]
        return _json("200 OK", {"done": report is not None, "report": report})


def _json(status: str, document: dict[str, Any]) -> tuple[str, str, bytes]:
    return status, "application/json", json.dumps(document).encode() + b"\n"


def metrics(health: Health) -> bytes:
    """The state in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

    state = health.snapshot()
    point = state["recovery_point"]

    class Collector:
        def collect(self) -> Iterator[Any]:
            gauge, counter = GaugeMetricFamily, CounterMetricFamily
            yield gauge("syncd_healthy", "1 while nothing is wrong", float(state["healthy"]))
            if point:
                age = point["age_seconds"]
                yield gauge("syncd_recovery_point_age_seconds", "What would be lost now", age)
                yield gauge("syncd_recovery_point_seq", "Number of the newest commit", point["seq"])
            yield gauge(
                "syncd_backlog_checkpoints", "Complete, not committed", len(state["backlog"])
            )
            yield gauge("syncd_backlog_bytes", "Bytes not committed", state["backlog_bytes"])
            yield gauge(
                "syncd_throughput_bytes_per_second",
                "Bytes taken by the store, over a minute",
                state["throughput_bytes_per_second"],
            )
            yield counter("syncd_sent_bytes", "Bytes taken by the store", state["sent_bytes"])
            yield counter("syncd_commits", "Checkpoints committed", state["commits"])
            yield counter("syncd_errors", "Errors met", state["errors"])

    registry = CollectorRegistry()
    registry.register(Collector())
    return bytes(generate_latest(registry))


def _page(state: dict[str, Any]) -> bytes:
    point = state["recovery_point"]
    rows = [
        ("state", "healthy" if state["healthy"] else "needs attention"),
        ("store", state["store"] or "none"),
        (
            "recovery point",
            f"{point['checkpoint']} (commit {point['seq']}, {point['age_seconds']:.0f} s old)"
            if point
            else "none yet",
        ),
        ("backlog", f"{len(state['backlog'])} checkpoints, {state['backlog_bytes'] / 1e6:.1f} MB"),
        ("throughput", f"{state['throughput_bytes_per_second'] / 1e6:.1f} MB/s"),
    ]
    rows += [("problem", f"{r['message']} — {r['hint']}") for r in state["reasons"]]
    cells = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(value))}</td></tr>"
        for name, value in rows
    )
    return (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=refresh content=5><title>syncd</title>"
        "<style>:root{color-scheme:light dark}body{font:16px system-ui;margin:2rem auto;"
        "max-width:50rem;padding:0 1rem}th{text-align:left;padding-right:1rem;"
        "vertical-align:top}</style>"
        f"<h1>syncd</h1><table>{cells}</table>"
    ).encode()


class Servers:
    """The listening sides, each in a thread of its own."""

    def __init__(self) -> None:
        self._servers: list[tuple[Any, threading.Thread]] = []
        self._closing = threading.Event()

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
        """Stop listening."""
        self._closing.set()
        for server, thread in self._servers:
            server.task_dispatcher.shutdown()
            server.close()
            thread.join(2)
        self._servers.clear()

    def _run(self, server: Any) -> None:
        try:
            server.run()
        except OSError:
            if not self._closing.is_set():  # else its sockets were closed under it, as intended
                raise

    def _start(self, application: Application, **address: Any) -> None:
        from waitress.server import create_server

        logging.getLogger("waitress").setLevel(logging.ERROR)
        server = create_server(application, map={}, threads=2, **address)
        thread = threading.Thread(target=self._run, args=(server,), name="http", daemon=True)
        thread.start()
        self._servers.append((server, thread))


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name for a socket that fits its 107 bytes, however deep the folder lies."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("syncd", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        with _short_path(self._path) as path:
            self.sock.connect(path)


class Client:
    """Asks the daemon of a state directory."""

    def __init__(self, state_dir: Path, timeout: float = 10.0) -> None:
        self._path = state_dir / SOCKET
        self._timeout = timeout

    def ask(self, path: str, method: str = "GET") -> dict[str, Any] | None:
        """The JSON answer; None when no daemon answers."""
        connection = _Connection(self._path, self._timeout)
        try:
            connection.request(method, path)
            document = json.loads(connection.getresponse().read())
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return document if isinstance(document, dict) else None
