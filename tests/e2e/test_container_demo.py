"""The whole way with everything real: `bash start_vast.sh --demo`, again, after a loss, stopped."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SMALL = {
    "TRAINER_POPULATION": "4",
    "TRAINER_UPDATES": "4",
    "TRAINER_EPISODES": "2",
    "TRAINER_HORIZON": "20",
}

pytestmark = [pytest.mark.slow, pytest.mark.first]


class Machine:
    """A copy of the project whose environment is the one that runs these tests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "eigen2"
        shutil.copytree(
            ROOT,
            self.folder,
            ignore=lambda _, names: {
                name for name in names  # bytecode comes along, but for what is being written
                if name.startswith(".") or ".pyc." in name or name in ("tests", "demo", "docs")
            },
        )  # fmt: skip
        venv = folder / "venv"
        (venv / "bin").mkdir(parents=True)
        python = venv / "bin" / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        digest = hashlib.sha256((self.folder / "pyproject.toml").read_bytes()).hexdigest()
        (venv / ".installed").write_text(f"{digest} trainer {self.folder}\n")
        kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        self.environ = {
            **kept, **SMALL, "VENV_DIR": str(venv), "PROC_1_ENVIRON": "/nonexistent",
            "SYNCD_HTTP": "off", "SYNCD_SETTLE": "0.3",
        }  # fmt: skip
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, *words: str, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["bash", str(self.folder / "start_vast.sh"), *words],
            cwd=self.folder.parent,
            env={**self.environ, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.processes.append(process)
        return process

    def run(self, *words: str, **more: str) -> str:
        process = self.start(*words, **more)
        said, _ = process.communicate(timeout=180)
        assert process.returncode == 0, said
        return said

    def checkpoints(self) -> dict[str, dict[str, str]]:
        """Digest of every file of every finished checkpoint on disk, by generation."""
        return {
            folder.name: {
                str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            }
            for folder in (self.folder / "demo" / "checkpoints").glob("*/gen-*")
        }

    def committed(self) -> list[str]:
        """Each that became the recovery point; at the end the newest goes first."""
        commits = (self.folder / "demo" / "bucket" / "eigen2" / ".syncd" / "commits").glob("*.json")
        records = [json.loads(commit.read_text()) for commit in sorted(commits)]
        return [Path(r["checkpoint"]).name for r in records if not r.get("behind")]

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(60)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout:
                process.stdout.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end()


def test_the_demo_trains_then_goes_on_then_comes_back_from_the_bucket(machine: Machine) -> None:
    first = machine.run("--demo")
    assert "generation 12/12" in first
    assert "the trainer finished (exit 0)" in first
    assert "nothing: all that is complete is in the bucket" in first
    assert "gen-000012 (commit" in first
    assert "bash start_vast.sh --demo goes on from here" in first
    assert machine.committed()[-1] == "gen-000012"

    second = machine.run("--demo")
    assert re.search(r"resumed run \S+ at generation 12 ", second)
    assert machine.committed()[-1] == "gen-000024"

    before = machine.checkpoints()["gen-000024"]
    shutil.rmtree(machine.folder / "demo" / "checkpoints")
    third = machine.run("--demo")
    assert re.search(r"restored \S+/gen-000024 ", third)
    assert re.search(r"resumed run \S+ at generation 24 ", third)
    assert machine.checkpoints()["gen-000024"] == before, "byte for byte"
    assert machine.committed()[-1] == "gen-000036"
    runs = set(re.findall(r"run (\S+) finished", first + second + third))
    assert len(runs) == 1, "one run from beginning to end"


def test_a_stopped_container_commits_its_last_checkpoint_and_goes_on(machine: Machine) -> None:
    process = machine.start("--demo", TRAINER_GENERATIONS="100000")
    until = time.monotonic() + 90
    while not machine.committed():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until, "no checkpoint was committed in time"
        time.sleep(0.1)
    assert machine.run("--demo").startswith("start: already running")

    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    newest = max(machine.checkpoints())
    assert machine.committed()[-1] == newest, said
    assert said.index("stopped: trainer") < said.index("stopped: syncd")

    again = machine.run("--demo", TRAINER_GENERATIONS=str(int(newest[4:]) + 1))
    assert f"at generation {int(newest[4:])} " in again
