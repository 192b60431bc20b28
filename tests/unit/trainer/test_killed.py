"""Killed at one file operation after another: nothing torn is ever taken, and the end is the same.

A process here is forked from the tests' own, which has torch already: so there can be many of them.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.trainer.worlds import FLAGS, checkpoints, state_of
from trainer import checkpoint, synthetic
from trainer.cli import main

pytestmark = pytest.mark.first

TOUCHES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
BUSY = ["--checkpoint-every", "1", "--keep-last", "2", "--run", "r"]


def live(folder: Path, arguments: list[str], last_touch: int) -> None:
    """A life of the trainer; it is killed before it touches its checkpoints for the Nth time."""
    touched = 0

    def watch(event: str, about: tuple[Any, ...]) -> None:
        nonlocal touched
        if event in TOUCHES and "checkpoints" in str(about[0]):
            touched += 1
            if touched == last_touch:
                os.kill(os.getpid(), signal.SIGKILL)

    os.chdir(folder)
    with (folder / "said").open("a") as said:
        sys.stdout = sys.stderr = said
        sys.addaudithook(watch)
        code = main(arguments)
    os._exit(code)


def one_life(folder: Path, arguments: list[str], last_touch: int = 0) -> int | None:
    """Its exit code; minus the signal's number when it was killed."""
    child = multiprocessing.get_context("fork").Process(
        target=live, args=(folder, arguments, last_touch)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child.start()
    child.join()
    return child.exitcode


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["injected", "everyone"])
def test_killed_at_one_file_operation_after_another_the_end_is_the_same(
    tmp_path: Path, scheme: str
) -> None:
    data = tmp_path / "toy.csv"
    synthetic.write_market(data, days=160, tickers=5, seed=3)
    variation = "proximal" if scheme == "everyone" else "plain"
    asked = ["--data", str(data), *FLAGS, *BUSY, "--scheme", scheme, "--variation", variation,
             "--distil-updates", "2"]  # fmt: skip
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    folder.mkdir()
    assert one_life(whole, asked) == 0, (whole / "said").read_text()
    draw, lives, code = random.Random(5), 0, None
    while code != 0:
        lives += 1
        # a save and what follows it are some 60 touches: each life gets through one, now and then
        touches = draw.randint(2, 110) if lives <= 16 else 0
        code = one_life(folder, ["--resume", *asked], touches)
        assert code in (0, -signal.SIGKILL), (folder / "said").read_text()
        loaded, refused = checkpoint.newest(folder / "checkpoints", "r")
        assert refused == [], "what has its name is whole"
    assert loaded is not None
    expected = state_of(checkpoints(whole)[-1])
    assert loaded.state["state_digest"] == expected["state_digest"]
    assert loaded.state["history"] == expected["history"]
    names = sorted(path.name for path in (folder / "checkpoints/r").iterdir())
    assert names[-1] == "gen-000009"
    # which one is beside it: a save that is under way lets the next wait; and nobody deletes the
    # oldest any more where the last life was lost between its last save and that
    assert len(names) in (2, 3)
    assert all(re.fullmatch(r"gen-\d{6}", name) for name in names), "nothing half-written is left"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 150 kB at checkpoints/: one checkpoint and a half."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=148k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_no_training_and_costs_no_checkpoint(
    small_disk: Path, tmp_path: Path
) -> None:
    data = tmp_path / "toy.csv"
    synthetic.write_market(data, days=160, tickers=5, seed=3)
    asked = ["--data", str(data), *FLAGS, "--run", "r", "--resume"]
    assert one_life(tmp_path, asked) == 1
    said = (tmp_path / "said").read_text()
    assert "could NOT be saved: " in said
    assert "No space left on device" in said
    assert "generation 9/9" in said, "training went on"
    assert "free some disk space and" in said
    kept = [path.name for path in small_disk.glob("r/*")]
    assert kept == ["gen-000002"], "the older one is whole, and nothing half-written takes space"
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert one_life(tmp_path, asked) == 0
    loaded, refused = checkpoint.newest(small_disk, "r")
    assert (loaded is not None, refused) == (True, [])
