"""The status page in a real browser: light and dark, on a phone, alive, and shut to strangers.

Set SYNCD_PICTURES to a folder to look at the pictures afterwards.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.control import Servers
from syncd.health import Health, Waiting
from syncd.programs import Program
from syncd.records import CommitRecord, FileEntry
from syncd.web import Application
from tests.clocks import FakeClock
from tests.e2e import browser
from tests.e2e.browser import Browser
from tests.e2e.processes import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.found(), reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def chromium(running: Browser) -> Iterator[Browser]:
    running.begin()
    yield running
    running.end()


@pytest.fixture
def servers() -> Iterator[Servers]:
    servers = Servers()
    yield servers
    servers.close()


def a_night(red: bool) -> Health:
    """Some hours of training: commits, a transfer under way, a fault that is over, one that is."""
    import time

    clock = FakeClock(time.time() - 4 * 3600)
    health = Health(clock, "3f9c6a1e20b4")
    health.store, health.watching = "s3://my-bucket", "events and scans"
    for minute in range(240):
        clock.sleep(60)
        if minute % 30 == 10:
            name = f"20261126-0748-c98d/gen-{minute:06}"
            health.waiting([Waiting(name, 48_000_000, "waits")], [])
        if minute % 30 in range(11, 15):
            health.sent("key", 12_000_000)
        if minute % 30 == 15:
            moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(clock.now()))}.000Z"
            wrote = int((clock.now() - 300) * 10**9)
            entry = FileEntry("w.bin", "eigen2/w.bin", 48_000_000, "0" * 64, 0o644, wrote)
            name = f"20261126-0748-c98d/gen-{minute - 5:06}"
            record = CommitRecord(minute // 30 + 1, name, "w", moment, "trainer", files=(entry,))
            health.committed(record)
            health.waiting([], [])
        if minute == 100:
            health.red("unreachable", "the store cannot be reached: SlowDown", "retried")
        if minute == 112:
            health.green("unreachable")
        health.beat()
    health.proven([1, 2, 3, 4], {})
    health.waiting(
        [Waiting("20261126-0748-c98d/gen-000240", 48_000_000, "waits")],
        [Waiting("20261126-0748-c98d/gen-000245", 100, "a process has it open for writing")],
    )
    health.sending("20261126-0748-c98d/gen-000240", 48_000_000)
    clock.sleep(10)
    health.sent("key", 17_000_000)
    if red:
        words = "the bucket my-bucket: AccessDenied"
        health.red("store", words, "the key lacks a right: s3:PutObject below eigen2/ is needed")
    return health


PROGRAMS = [
    Program("keeper", "RUNNING", "pid 12, uptime 4:00:01"),
    Program("syncd", "RUNNING", "pid 13, uptime 4:00:01"),
    Program("trainer", "EXITED", "Nov 26 07:48 AM"),
]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390], ids=["desk", "phone"])
@pytest.mark.parametrize("red", [False, True], ids=["green", "red"])
def test_page_can_be_read(
    chromium: Browser, servers: Servers, tmp_path: Path, red: bool, width: int, dark: bool
) -> None:
    page = Application(a_night(red), programs=lambda: PROGRAMS)
    port = servers.listen_http(page, "127.0.0.1", 0)
    chromium.look_like(width, 844, dark)
    chromium.open(f"http://127.0.0.1:{port}/")
    assert chromium.run("document.documentElement.scrollWidth") <= width  # nothing sticks out
    paper = chromium.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")  # our style is in force
    text = chromium.run("document.body.innerText")
    assert ("needs attention" in text) is red
    assert ("s3:PutObject" in text) is red
    for words in ("recovery point", "gen-000220", "17.0 MB of 48.0 MB", "SlowDown", "EXITED"):
        assert words in text, text
    assert chromium.run("document.querySelectorAll('polyline').length") == 2
    assert chromium.told == []  # nothing failed, nothing was forbidden by our own policy
    folder = Path(os.environ.get("SYNCD_PICTURES", tmp_path))
    name = f"{'red' if red else 'green'}-{width}-{'dark' if dark else 'light'}.png"
    chromium.picture(folder / name)
    assert (folder / name).stat().st_size > 10_000


def test_page_follows_what_happens(chromium: Browser, servers: Servers) -> None:
    health = a_night(red=False)
    port = servers.listen_http(Application(health), "127.0.0.1", 0)
    chromium.open(f"http://127.0.0.1:{port}/")
    health.red("journal", "the disk is full", "free space")
    wait_until(lambda: "the disk is full" in chromium.run("document.body.innerText"), "the fault")
    assert chromium.run("document.title") == "syncd: needs attention"
    servers.close()
    wait_until(lambda: not chromium.run("document.getElementById('stale').hidden"), "a word of it")


def test_token_opens_the_page_and_is_gone_from_the_address(
    chromium: Browser, servers: Servers
) -> None:
    token = "a-token-of-some-length"
    page = Application(a_night(red=False), token=token)
    port = servers.listen_http(page, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{port}"
    chromium.open(base)
    assert "recovery point" not in chromium.run("document.body.innerText")
    chromium.told.clear()
    chromium.open(f"{base}/?token={token}")
    assert "recovery point" in chromium.run("document.body.innerText")
    assert chromium.run("location.href") == f"{base}/"
    assert chromium.run("document.cookie") == ""  # no script can read it
    assert chromium.told == []


def test_name_of_a_file_runs_nothing(chromium: Browser, servers: Servers) -> None:
    health = Health(FakeClock())
    evil = "<img src=x onerror='document.title=1'><script>document.title=2</script>"
    health.waiting([Waiting(evil, 1, evil)], [Waiting(evil, 1, evil)])
    port = servers.listen_http(Application(health), "127.0.0.1", 0)
    chromium.open(f"http://127.0.0.1:{port}/")
    assert chromium.run("document.title") == "syncd: healthy"
    assert evil in chromium.run("document.body.innerText")
