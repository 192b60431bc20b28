"""A hook is told what happens, is given little time and no secret, and never holds anything up."""

from __future__ import annotations

import http.server
import json
import os
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.health import Health
from syncd.hooks import Hooks
from syncd.records import CommitRecord
from tests.clocks import FakeClock
from tests.e2e.processes import wait_until

RECORD = CommitRecord(7, "run/gen-000035", "w", "2027-01-15T08:00:00.000Z", "trainer")


def made(hook: str, limit: float = 10.0) -> tuple[Health, Hooks]:
    health = Health(FakeClock(), "writer")
    health.store = "s3://bucket"
    return health, Hooks(hook, health, FakeClock(), limit)


def noting(path: Path) -> str:
    """A command that notes its input and its environment, a line for each call."""
    code = (
        "import json, os, sys; told = json.load(sys.stdin); told['environ'] = dict(os.environ);"
        f"open({str(path)!r}, 'a').write(json.dumps(told) + '\\n')"
    )
    return shlex.join([sys.executable, "-c", code])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_command_hears_of_commits_and_of_red_and_green(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("SYNCD_HTTP_TOKEN", "hunter2")
    health, hooks = made(noting(tmp_path / "told"))
    health.committed(RECORD)
    health.red("store", "no such bucket", "make it")
    health.red("journal", "full", "free space")  # red already: nothing new turns
    health.green("store")
    health.green("journal")
    hooks.close(30)
    told = lines(tmp_path / "told")
    assert [event["event"] for event in told] == ["committed", "red", "green"]
    assert told[0]["checkpoint"] == {"seq": 7, "name": "run/gen-000035", "bytes": 0, "files": 0}
    assert told[1]["reasons"] == [
        {"code": "store", "message": "no such bucket", "remedy": "make it"}
    ]
    assert [event["healthy"] for event in told] == [True, False, True]
    assert told[0]["environ"]["SYNCD_EVENT"] == "committed"
    assert "hunter2" not in json.dumps(told)


class Listener(http.server.BaseHTTPRequestHandler):
    told: list[dict[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.told.append(json.loads(body))
        self.send_response(500 if self.path == "/broken/secret" else 204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    told: list[dict[str, Any]] = []
    handler = type("Handler", (Listener,), {"told": told})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", told
    server.shutdown()
    server.server_close()
    thread.join()


def test_url_hears_by_post(listener: tuple[str, list[dict[str, Any]]]) -> None:
    url, told = listener
    health, hooks = made(f"{url}/services/secret")
    health.committed(RECORD)
    hooks.close(30)
    assert told[0]["checkpoint"]["name"] == "run/gen-000035"


def test_failure_is_a_line_without_the_address(
    listener: tuple[str, list[dict[str, Any]]], caplog: pytest.LogCaptureFixture
) -> None:
    failing = [f"{listener[0]}/broken/secret", "http://127.0.0.1:9/secret", "http://[secret/",
               "no-such-secret-program", f"{sys.executable} -c exit(3)"]  # fmt: skip
    for hook in failing:
        caplog.clear()
        health, hooks = made(hook)
        health.committed(RECORD)
        hooks.close(30)
        assert "the hook failed for committed" in caplog.text
        assert "secret" not in caplog.text
    assert "exit code 3" in caplog.text


def test_command_that_hangs_is_killed_with_what_it_has_started(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = (
        "import os, subprocess, time; child = subprocess.Popen(['sleep', '1000']);"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid)); time.sleep(1000)"
    )
    health, hooks = made(shlex.join([sys.executable, "-c", code]), limit=3.0)
    health.committed(RECORD)
    hooks.close(30)
    assert "took longer than 3 s" in caplog.text
    pid = int((tmp_path / "pid").read_text())

    def is_gone() -> bool:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        return state == "Z"  # nobody waits for orphans in a bare container

    wait_until(is_gone, "the end of what the hook had started")


def test_nothing_waits_for_a_hook(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1) as deaf:
        health, hooks = made(f"http://127.0.0.1:{deaf.getsockname()[1]}/", limit=2.0)
        began = time.monotonic()
        for _ in range(250):
            health.committed(RECORD)
        assert time.monotonic() - began < 2.0
        assert hooks._events.qsize() <= 100
        assert "an event was dropped" in caplog.text
        hooks.close(0.1)
    assert health.snapshot()["commits"] == 250


def test_without_a_hook_there_is_no_thread() -> None:
    before = threading.active_count()
    health, hooks = made("")
    health.committed(RECORD)
    hooks.close(1)
    assert threading.active_count() == before
    assert os.environ.get("SYNCD_EVENT") is None
