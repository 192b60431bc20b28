"""The page and its answers: who may ask, what is shown, and that names are only names."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.control import Client, Servers
from syncd.health import Health, Waiting
from syncd.page import render
from syncd.programs import Program
from syncd.records import CommitRecord, FileEntry
from syncd.web import Application
from tests.clocks import FakeClock

TOKEN = "a-token-of-some-length"
FILE = FileEntry("w.bin", "eigen2/checkpoints/w.bin", 10, "0" * 64, 0o644, 1_799_999_000 * 10**9)
RECORD = CommitRecord(
    4, "run/gen-000005", "w", "2027-01-15T08:00:00.000Z", "trainer", files=(FILE,)
)


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


class Page:
    """Asks one server, without following where it leads."""

    def __init__(self, servers: Servers, application: Application) -> None:
        port = servers.listen_http(application, "127.0.0.1", 0)
        assert port
        self.port = port

    def get(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", path, headers=named)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read().decode()
        connection.close()
        return found


def test_nobody_is_answered_without_the_token(servers: Servers) -> None:
    page = Page(servers, Application(Health(FakeClock()), token=TOKEN))
    for path in ("/", "/status", "/history", "/healthz", "/metrics", "/none"):
        assert page.get(path)[0] == 401
        assert page.get(path, Authorization="Bearer wrong-token-of-length")[0] == 401
        assert page.get(path, Cookie=f"syncd={TOKEN}")[0] == 401
        assert page.get(f"{path}?token=wrong")[0] == 401
    assert page.get("/healthz", Authorization=f"Bearer {TOKEN}")[0] == 200


def test_token_in_the_address_is_needed_once_and_leaves_it(servers: Servers) -> None:
    page = Page(servers, Application(Health(FakeClock()), token=TOKEN))
    status, headers, _ = page.get(f"/metrics?token={TOKEN}&a=b")
    assert (status, headers["Location"]) == (303, "/metrics?a=b")
    cookie = headers["Set-Cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert page.get("/", Cookie=cookie.partition(";")[0])[0] == 200
    assert page.get(f"//elsewhere.example/?token={TOKEN}")[1]["Location"].startswith("/elsewhere")


def test_token_is_in_no_answer_and_no_log(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    page = Page(servers, Application(Health(FakeClock()), token=TOKEN))
    for path in ("/", "/status", "/metrics"):
        status, headers, body = page.get(path, Authorization=f"Bearer {TOKEN}")
        assert status == 200
        assert TOKEN not in body + str(headers) + caplog.text
    assert TOKEN not in page.get(f"/?token={TOKEN}")[2] + caplog.text


def test_name_of_another_site_that_leads_here_is_refused(servers: Servers) -> None:
    page = Page(servers, Application(Health(FakeClock())))
    assert page.get("/status", Host="evil.example:8377")[0] == 403
    for host in ("127.0.0.1:8377", "localhost:8377", "[::1]:8377", "localhost"):
        assert page.get("/status", Host=host)[0] == 200


def test_every_answer_forbids_what_is_not_ours(servers: Servers) -> None:
    page = Page(servers, Application(Health(FakeClock())))
    for path in ("/", "/status", "/none"):
        policy = page.get(path)[1]["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'")
        assert "unsafe" not in policy


def test_page_tells_what_there_is(servers: Servers) -> None:
    clock = FakeClock()
    health = Health(clock)
    health.committed(RECORD)
    health.waiting([Waiting("run/gen-000010", 2_000_000, "waits")], [Waiting("half", 5, "busy")])
    health.sending("run/gen-000010", 2_000_000)
    health.sent("k", 500_000)
    health.red("store", "it burnt", "call for help")
    health.green("store")
    health.red("journal", "the disk is full", "free space")
    for _ in range(30):
        clock.sleep(10)
        health.beat()
    programs = [Program("trainer", "RUNNING", "pid 7, uptime 0:01:00")]
    text = render(health.snapshot(), health.history(), programs, clock.now()).decode()
    for words in (
        "needs attention", "the disk is full", "free space", "it burnt", "run/gen-000005",
        "run/gen-000010", "500.0 kB of 2.0 MB", "half", "busy", "trainer", "polyline", "5 min",
    ):  # fmt: skip
        assert words in text, words
    assert "http://" not in text
    assert "https://" not in text


def test_names_are_never_markup() -> None:
    clock = FakeClock()
    health = Health(clock)
    evil = "<script>alert(1)</script>\"'&"
    health.waiting([Waiting(evil, 1, evil)], [Waiting(evil, 1, evil)])
    health.sending(evil, 1)
    health.committed(CommitRecord(1, evil, "w", "2027-01-15T08:00:00.000Z", "trainer"))
    health.proven([], {1: evil})
    health.red(evil, evil, evil)
    health.store = health.watching = evil
    text = render(health.snapshot(), health.history(), [Program(evil, evil, evil)]).decode()
    assert "<script>alert" not in text
    assert text.count("<script>") == 1


def test_verification_is_told_through_the_socket_only(servers: Servers, tmp_path: Path) -> None:
    health = Health(FakeClock())
    health.committed(RECORD)
    servers.listen_socket(Application(health, lambda _done: None), tmp_path)
    client = Client(tmp_path)
    told = {"intact": [4], "broken": {}}
    assert client.ask("/verified", "POST", told) == {"noted": 1}
    assert health.history()["checkpoints"][0]["verified"] == FakeClock().now()
    client.ask("/verified", "POST", {"intact": [], "broken": {"4": "w.bin is cut"}})
    assert "w.bin is cut" in json.dumps(health.snapshot()["reasons"])
    client.ask("/verified", "POST", told)
    assert health.snapshot()["healthy"]
    assert client.ask("/verified", "POST", {"intact": "all"}) != {"noted": 3}


def test_limit_is_set_through_the_socket_only(servers: Servers, tmp_path: Path) -> None:
    health = Health(FakeClock())
    told: list[int | None] = []
    servers.listen_socket(Application(health, lambda _done: None, set_limit=told.append), tmp_path)
    port = servers.listen_http(Application(health, set_limit=told.append), "127.0.0.1", 0)
    client = Client(tmp_path)
    assert client.ask("/limit", "POST", {"bytes_per_second": 5}) == {"limit_bytes_per_second": 5}
    assert client.ask("/limit", "POST", {"bytes_per_second": None})
    for wrong in ({"bytes_per_second": 0}, {"bytes_per_second": True}, {"rate": 1}, {}):
        assert "error" in (client.ask("/limit", "POST", wrong) or {})
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/limit", b'{"bytes_per_second": 1}', method="POST"
    )
    with pytest.raises(urllib.error.HTTPError, match="405"):
        urllib.request.urlopen(request, timeout=10)
    assert told == [5, None]
