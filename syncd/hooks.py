"""SYNCD_HOOK: a command or a URL that hears when a checkpoint is committed and when health turns.

Events go through a bounded queue to a thread of its own, so nothing ever waits for a hook. What
it gets is described in docs/status.md. Neither the setting itself (a URL may hold a secret) nor a
variable of the environment that may be one is logged or passed on.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import queue
import shlex
import signal
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from syncd.clock import Clock
from syncd.health import Health
from syncd.records import CommitRecord

log = logging.getLogger(__name__)

TIME_LIMIT = 10.0
"""Seconds that one call may take."""

_MOST = 100
"""Events that wait; beyond that the oldest is dropped, since the newest tells more."""

_PASSED = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE")


def payload(
    event: str, record: CommitRecord | None, health: Health, clock: Clock
) -> dict[str, Any]:
    """What a hook is told: names, sizes and times, the reasons for red, and nothing secret."""
    moment = datetime.datetime.fromtimestamp(clock.now(), datetime.timezone.utc)
    state = health.snapshot()
    return {
        "event": event,
        "at": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "store": state["store"],
        "writer": state["writer"],
        "checkpoint": record
        and {
            "seq": record.seq,
            "name": record.checkpoint,
            "bytes": record.size,
            "files": len(record.files),
        },
        "healthy": state["healthy"],
        "reasons": [
            {"code": r["code"], "message": r["message"], "remedy": r["hint"]}
            for r in state["reasons"]
        ],
    }


class Hooks:
    """Calls the hook, one event after the other. Without a hook it does nothing."""

    def __init__(self, hook: str, health: Health, clock: Clock, limit: float = TIME_LIMIT) -> None:
        self._hook = hook
        self._health = health
        self._clock = clock
        self._limit = limit
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue(_MOST)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

        if hook:
            health.listener = self.hear

    def hear(self, event: str, record: CommitRecord | None) -> None:
        """An event has happened; returns at once."""
        self.tell(payload(event, record, self._health, self._clock))

    def tell(self, event: Mapping[str, Any]) -> None:
        """Have this delivered; returns at once."""
        with self._lock:
            if self._events.full():
                with contextlib.suppress(queue.Empty):
                    self._events.get_nowait()
                log.warning("the hook is too slow: an event was dropped")
            self._events.put_nowait(dict(event))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="hook", daemon=True)
                self._thread.start()

    def close(self, seconds: float) -> None:
        """Have what waits delivered, for as long as that."""
        with self._lock:
            if self._thread is None or self._events.full():
                return
            self._events.put_nowait(None)
        self._thread.join(max(0.0, seconds))

    def _run(self) -> None:
        while (event := self._events.get()) is not None:
            try:
                words = self._call(event)
            except Exception as error:  # noqa: BLE001 - a hook is never more than a log line
                words = type(error).__name__  # its text may hold the URL
            if words:
                log.warning("the hook failed for %s: %s", event.get("event"), words)

    def _call(self, event: Mapping[str, Any]) -> str:
        body = json.dumps(event).encode() + b"\n"
        if self._hook.startswith(("http://", "https://")):
            return self._post(body)
        return self._execute(body, str(event.get("event", "")))

    def _post(self, body: bytes) -> str:
        headers = {"Content-Type": "application/json", "User-Agent": "syncd"}
        request = urllib.request.Request(self._hook, body, headers)  # noqa: S310 - http or https
        try:
            urllib.request.urlopen(request, timeout=self._limit).close()  # noqa: S310 - the same
        except urllib.error.HTTPError as error:
            error.close()
            return f"HTTP {error.code}"
        except OSError as error:
            reason = getattr(error, "reason", error)
            return getattr(reason, "strerror", None) or type(reason).__name__
        return ""

    def _execute(self, body: bytes, name: str) -> str:
        environ = {key: os.environ[key] for key in _PASSED if key in os.environ}
        command = subprocess.Popen(
            shlex.split(self._hook),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environ, "SYNCD_EVENT": name},
            start_new_session=True,
        )
        try:
            with contextlib.suppress(BrokenPipeError):  # it need not read its input
                command.communicate(body, self._limit)
        except subprocess.TimeoutExpired:
            return f"it took longer than {self._limit:g} s and was killed"
        finally:
            with contextlib.suppress(ProcessLookupError):  # and what it has started
                os.killpg(command.pid, signal.SIGKILL)
            command.wait()
        return f"exit code {command.returncode}" if command.returncode else ""
