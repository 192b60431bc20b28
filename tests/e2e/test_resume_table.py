"""The table of resume behaviour, each row with real processes and machines that are lost.

A machine runs what a rented one runs: the start script, supervisord, trainer and syncd. It is
lost by SIGKILL to all of them at once, and its disk with it. TEST_GPU=1 trains on the GPU that is
here; then the same bits are asked of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import wait_until
from tests.servers.s3 import SeaweedFS

ROOT = Path(__file__).parents[2]
SMALL = {
    "TRAINER_POPULATION": "4",
    "TRAINER_UPDATES": "20",
    "TRAINER_EPISODES": "2",
    "TRAINER_HORIZON": "20",
    "TRAINER_CHECKPOINT_EVERY": "5",
    "TRAINER_GENERATIONS": "30",
    "TRAINER_THREADS": "1",
}

END = int(SMALL["TRAINER_GENERATIONS"])

PROCESSOR = [] if os.environ.get("TEST_GPU") else ["--cpu"]

pytestmark = [pytest.mark.slow, pytest.mark.first]


def descendants(pid: int) -> list[int]:
    """Every process below one, itself first."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


class Rented:
    """A machine with the project, a disk, and the environment of these tests."""

    def __init__(self, folder: Path, data: Path, settings: dict[str, str]) -> None:
        folder.mkdir()
        self.folder = folder
        shutil.copytree(
            ROOT,
            folder / "project",
            ignore=lambda _, names: {
                name for name in names  # bytecode comes along, but for what is being written
                if name.startswith(".") or ".pyc." in name or name in ("tests", "demo", "docs")
            },
        )  # fmt: skip
        python = folder / "venv/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        python.chmod(0o755)
        digest = hashlib.sha256((folder / "project/pyproject.toml").read_bytes()).hexdigest()
        (folder / "venv/.installed").write_text(
            "".join(f"{digest} {extra} {folder / 'project'}\n" for extra in ("trainer", "s3"))
        )
        self.data = data
        self.environ = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")},
            **SMALL,
            "VENV_DIR": str(folder / "venv"),
            "PROC_1_ENVIRON": "/nonexistent",
            "SYNCD_HTTP": "off",
            "CHECKPOINT_DIR": str(self.checkpoints),
            "LOG_DIR": str(folder / "logs"),
            "SYNCD_STATE_DIR": str(folder / "state"),
            "SYNCD_RESTORE_RETRY": "2",
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def start(self, **more: str) -> None:
        with (self.folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                ["bash", "project/start_vast.sh", *PROCESSOR, "--resume", "--data", str(self.data)],
                cwd=self.folder,
                env={**self.environ, **more},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        return (self.folder / "said").read_text()

    def run(self, **more: str) -> str:
        """Start and come to the end of the training."""
        self.start(**more)
        assert self.process
        assert self.process.wait(240) == 0, self.said()
        return self.said()

    def lose(self) -> None:
        """SIGKILL to all of them at once; stopped first, so that none has a last word."""
        if self.process is None:
            return
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in descendants(self.process.pid):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        self.process.wait()
        self.process = None

    def newest(self) -> dict[str, object]:
        """The state of the newest checkpoint on disk."""
        states = self.checkpoints.glob("*/gen-*/state.json")
        found: list[dict[str, object]] = [json.loads(path.read_text()) for path in states]
        return max(found, key=lambda state: str(state["saved_at"])) if found else {}


Rent = Callable[..., Rented]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "market.csv"
    subprocess.run([sys.executable, "-m", "trainer", "make-data", str(path)], check=True, cwd=ROOT)
    return path


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """Digest of the state at the end of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    machine = Rented(folder / "machine", data, {"CLOUD_PROVIDER": "local"})
    machine.run()
    return machine.newest()["state_digest"]


@pytest.fixture
def rent(tmp_path: Path, data: Path) -> Iterator[Rent]:
    machines: list[Rented] = []
    bucket = str(tmp_path / "bucket")

    def build(name: str, **settings: str) -> Rented:
        given = {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": bucket, **settings}
        machines.append(Rented(tmp_path / name, data, given))
        return machines[-1]

    yield build
    for machine in machines:
        machine.lose()


def commits(bucket: Path) -> list[Path]:
    return sorted(bucket.glob("eigen2/.syncd/commits/*.json"))


def lost_half_way(rent: Rent, bucket: Path, name: str = "one") -> Rented:
    """A machine that is lost once two checkpoints are committed."""
    one = rent(name)
    one.start()
    wait_until(lambda: len(commits(bucket)) >= 2, f"two commits; {one.said()}", 120)
    one.lose()
    assert one.newest()["generation"] != END, "it was lost too late to prove anything"
    return one


def test_fresh_start_then_lost_then_resumed_from_the_cloud_exactly(
    rent: Rent, tmp_path: Path, uninterrupted: object
) -> None:
    bucket = tmp_path / "bucket"
    one = lost_half_way(rent, bucket)
    assert "the store is empty" in one.said()
    shutil.rmtree(one.folder)
    two = rent("two")
    said = two.run()
    assert re.search(r"restored \S+/gen-\d+ \(commit \d+", said)
    assert re.search(r"resumed run \S+ at generation \d+", said)
    assert two.newest()["generation"] == END
    assert two.newest()["state_digest"] == uninterrupted, "bit for bit"


def test_resumed_from_the_local_disk_exactly(
    rent: Rent, tmp_path: Path, uninterrupted: object
) -> None:
    one = lost_half_way(rent, tmp_path / "bucket")
    shutil.rmtree(tmp_path / "bucket")
    shutil.rmtree(one.folder / "state")
    said = one.run()
    assert re.search(r"resumed run \S+ at generation \d+", said)
    assert one.newest()["state_digest"] == uninterrupted
    assert commits(tmp_path / "bucket"), "what was resumed from is committed again"


def test_local_wins_and_says_so_when_the_store_is_ahead(
    rent: Rent, tmp_path: Path, uninterrupted: object
) -> None:
    one = lost_half_way(rent, tmp_path / "bucket")
    behind = one.newest()["generation"]
    rent("two").run()
    said = one.run(TRAINER_GENERATIONS=str(behind))
    assert "the store is AHEAD" in said
    assert one.newest()["generation"] == behind
    said = one.run(RESUME_FROM="newest")
    assert re.search(rf"restored \S+/gen-0000{END} ", said)
    assert one.newest()["state_digest"] == uninterrupted


def test_files_without_commits_come_back_unproven_and_are_committed(
    rent: Rent, tmp_path: Path, uninterrupted: object
) -> None:
    bucket = tmp_path / "bucket"
    lost_half_way(rent, bucket)
    shutil.rmtree(bucket / "eigen2/.syncd")
    two = rent("two")
    said = two.run()
    assert "UNPROVEN" in said
    assert two.newest()["state_digest"] == uninterrupted
    assert commits(bucket)


def test_cloud_that_cannot_be_reached_starts_a_run_of_its_own(rent: Rent, tmp_path: Path) -> None:
    server = SeaweedFS()
    server.start()
    try:
        client = server.client()
        client.create_bucket(Bucket="resume-table")
        settings = {**server.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": "resume-table"}
        settings["TRAINER_GENERATIONS"] = "10"
        one = rent("one", **settings)
        one.run()
        before = {
            item["Key"]: item["ETag"]
            for item in client.list_objects_v2(Bucket="resume-table", Prefix="eigen2/checkpoints")[
                "Contents"
            ]
        }
        server.kill()
        two = rent("two", SYNCD_SHUTDOWN_GRACE="3", SYNCD_RESTORE_RETRY="5", **settings)
        said = two.run()
        assert "A NEW training starts" in said
        assert two.newest()["generation"] == 10, "training runs to its end without the store"
        server.start()
        said = two.run()
        after = {
            item["Key"]: item["ETag"]
            for item in client.list_objects_v2(Bucket="resume-table", Prefix="eigen2/checkpoints")[
                "Contents"
            ]
        }
        client.close()
    finally:
        server.stop()
    assert before.items() <= after.items(), "nothing committed earlier was overwritten"
    runs = {key.split("/")[2] for key in after}
    assert len(runs) == 2
