"""Fixtures that every test may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine

pytest_plugins = ["tests.servers.fixtures"]


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
