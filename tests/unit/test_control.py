"""Health and the ways to ask for it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.control import Client, Servers
from syncd.errors import NeedsOperator
from syncd.health import Health, Waiting
from syncd.records import CommitRecord
from syncd.web import Application
from tests.clocks import FakeClock

RECORD = CommitRecord(4, "run/gen-000005", "w", "2026-11-23T20:00:00.000Z", "trainer")


def health() -> Health:
    health = Health(FakeClock(), "writer")
    health.store = "s3://bucket"
    return health


def test_red_with_a_reason_until_it_is_gone() -> None:
    state = health()
    assert state.red("store", NeedsOperator("no such bucket", hint="make it"))
    assert not state.red("store", NeedsOperator("no such bucket", hint="make it"))
    snapshot = state.snapshot()
    assert not snapshot["healthy"]
    assert snapshot["reasons"][0]["message"] == "no such bucket"
    assert snapshot["reasons"][0]["hint"] == "make it"
    assert state.green("store")
    assert state.snapshot()["healthy"]


def test_recovery_point_grows_old() -> None:
    clock = FakeClock()
    state = Health(clock)
    assert state.snapshot()["recovery_point"] is None
    state.committed(RECORD)
    clock.sleep(90)
    assert state.snapshot()["recovery_point"]["age_seconds"] == 90


def test_backlog_and_throughput() -> None:
    clock = FakeClock()
    state = Health(clock)
    state.waiting([Waiting("a", 10, "")], [Waiting("b", 5, "being written")])
    clock.sleep(10)
    state.sent("k", 1000)
    clock.sleep(10)
    snapshot = state.snapshot()
    assert (snapshot["backlog_bytes"], snapshot["incomplete"][0]["path"]) == (10, "b")
    assert snapshot["throughput_bytes_per_second"] == 100
    clock.sleep(100)
    assert state.snapshot()["throughput_bytes_per_second"] == 0


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


def test_http_answers_and_changes_nothing(servers: Servers) -> None:
    state = health()
    port = servers.listen_http(Application(state), "127.0.0.1", 0)
    base = f"http://127.0.0.1:{port}"
    assert ask(f"{base}/healthz") == (200, "ok\n")
    state.red("store", "it burns", "call for help")
    state.committed(RECORD)
    code, text = ask(f"{base}/healthz")
    assert (code, text) == (503, "it burns (call for help)\n")
    code, text = ask(f"{base}/metrics")
    assert "syncd_healthy 0.0" in text
    assert "syncd_recovery_point_seq 4.0" in text
    assert "it burns" in ask(f"{base}/")[1]
    assert ask(f"{base}/flush")[0] == 404
    assert ask(f"{base}/none")[0] == 404


def test_socket_in_a_deep_folder_answers_and_flushes(tmp_path: Path, servers: Servers) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 10)
    folder.mkdir(parents=True)
    state = health()
    flushes: list[Callable[[dict[str, Any]], None]] = []
    assert Client(folder).ask("/status") is None
    servers.listen_socket(Application(state, flushes.append), folder)
    client = Client(folder)
    assert (client.ask("/status") or {})["store"] == "s3://bucket"
    asked = client.ask("/flush", "POST")
    assert asked
    assert client.ask(f"/flush/{asked['id']}") == {"done": False, "report": None}
    flushes[0]({"safe": True})
    assert client.ask(f"/flush/{asked['id']}") == {"done": True, "report": {"safe": True}}
    assert (folder / "control.sock").stat().st_mode & 0o777 == 0o600


def test_taken_port_is_a_warning(servers: Servers) -> None:
    port = servers.listen_http(Application(health()), "127.0.0.1", 0)
    assert port
    assert servers.listen_http(Application(health()), "127.0.0.1", port) is None
