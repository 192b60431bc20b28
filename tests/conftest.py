"""Fixtures that every test may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine

pytest_plugins = ["tests.servers.fixtures"]


def pytest_configure(config: pytest.Config) -> None:
    """Let each worker be as a machine is: its programs share a session, and no other's.

    Linux shares the processors among sessions first, so a daemon, which is niced, gives way
    to its own test here, and not to all the others, beside which it would starve.
    """
    if hasattr(config, "workerinput"):
        os.setsid()


@pytest.hookimpl(trylast=True)  # when others have left out what is not to run
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal the tests to several workers: to each some that take long, to begin with them.

    Each worker gets a stretch of the list, from its front, and takes from others when it is done.
    What takes long stays with its module, of which the fixtures may take long too.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    modules: dict[Path, list[pytest.Item]] = {}
    rest = []
    for item in items:
        long = item.get_closest_marker("first")
        modules.setdefault(item.path, []).append(item) if long else rest.append(item)
    hands: list[list[pytest.Item]] = [[] for _ in range(workers)]
    for number, module in enumerate(modules.values()):
        hands[number % workers] += module
    left, dealt = len(items), []
    for number, hand in enumerate(hands):
        stretch = left // (workers - number)
        left -= stretch
        more = max(0, stretch - len(hand))
        dealt += hand + rest[:more]
        del rest[:more]
    items[:] = dealt


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Seeds and tables, which a log of CI has to hold even when all is well."""
    for report in terminalreporter.getreports("passed"):
        if "figures" in report.keywords and report.when == "call" and report.capstdout:
            terminalreporter.section(report.nodeid, sep="-")
            terminalreporter.write(report.capstdout)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Machines that share one bucket, a directory; their daemons end with the test."""
    made: list[Machine] = []

    def make(name: str = "one", **settings: str) -> Machine:
        given = {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": str(tmp_path / "bucket"), **settings}
        made.append(Machine(tmp_path / name, given))
        return made[-1]

    yield make
    for machine in made:
        machine.kill()
