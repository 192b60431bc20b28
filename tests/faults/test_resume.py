"""Uploads outlive their daemon: little travels twice, and no part is left behind."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.e2e.processes import ROOT
from tests.servers.s3 import SeaweedFS


def resume(*arguments: str) -> dict[str, Any]:
    """What the rig says; it forks, so it is a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.faults.resume", "--json", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.stdout, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


@pytest.mark.timed
def test_a_daemon_that_is_killed_again_and_again_sends_a_file_once(seaweedfs: SeaweedFS) -> None:
    told = resume("--size", "192M", "--rate", "32M", "--after", "36-52")
    assert told["faults"] == []
    assert told["kills"] >= 4


def test_no_upload_is_left_after_50_kills(seaweedfs: SeaweedFS) -> None:
    told = resume(
        *("--size", "40M", "--rate", "24M", "--every", "0.3-1.2", "--kills", "50"),
        *("--rewrite", "0.3"),
    )
    assert told["faults"] == []
    assert told["kills"] == 50
