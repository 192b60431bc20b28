"""Fixtures that every test may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine

pytest_plugins = ["tests.servers.fixtures"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers take the tests from the front: the longest must not be met at the end."""
    items.sort(key=lambda item: item.get_closest_marker("first") is None)


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
