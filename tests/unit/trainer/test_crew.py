"""Several workers, really started by torchrun: the same bits, and a lost one is no loss."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.unit.trainer.worlds import FLAGS, Process, checkpoints, state_of
from trainer import synthetic

pytestmark = pytest.mark.first

MANY = [*FLAGS, "--group", "1", "--learners", "2", "--variation", "proximal",
        "--distil-updates", "2", "--generations", "4", "--checkpoint-every", "1"]  # fmt: skip


class Workers(Process):
    """torchrun with some workers of the trainer."""

    def __init__(self, folder: Path, count: int, *arguments: str, restarts: int = 0) -> None:
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count),
                    "--max-restarts", str(restarts), "--monitor-interval", "0.1"]  # fmt: skip
        super().__init__(folder, *arguments, python=torchrun)

    def worker(self, rank: int) -> int:
        """The process id of a worker."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                mother = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                words = (entry / "environ").read_bytes().split(b"\0")
            except (OSError, IndexError):
                continue
            if mother == self.child.pid and f"RANK={rank}".encode() in words:
                return int(entry.name)
        raise AssertionError(f"there is no worker {rank}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "toy.csv"
    synthetic.write_market(path, days=160, tickers=5, seed=3)
    return str(path)


@pytest.fixture(scope="module")
def alone(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    code, _, err = Process(folder, "--data", data, "--run", "r", *MANY).wait()
    assert code == 0, err
    return checkpoints(folder)[-1]


def assert_same(last: Path, alone: Path) -> None:
    mine, theirs = state_of(last), state_of(alone)
    assert mine["history"] == theirs["history"], "fitness, bit for bit"
    assert mine["state_digest"] == theirs["state_digest"]


@pytest.mark.slow
def test_four_workers_come_to_the_same_bits_as_one(data: str, alone: Path, tmp_path: Path) -> None:
    code, out, err = Workers(tmp_path, 4, "--data", data, *MANY).wait()
    assert code == 0, err
    assert out.count("finished at generation 4") == 1, "one of them speaks"
    assert_same(checkpoints(tmp_path)[-1], alone)
    logs = list(tmp_path.glob("logs/*/generations.jsonl"))
    assert [log.read_text().count("\n") for log in logs] == [4]


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "sign"), [(1, "gen-*"), (0, ".tmp-gen-000002-*/agents")])
def test_a_lost_worker_ends_in_a_restart_from_the_newest_checkpoint(
    data: str, alone: Path, tmp_path: Path, rank: int, sign: str
) -> None:
    crew = Workers(tmp_path, 2, "--data", data, *MANY, restarts=1)
    assert crew.until(lambda: bool(list(tmp_path.glob(f"checkpoints/*/{sign}"))))
    os.kill(crew.worker(rank), signal.SIGKILL)
    code, out, err = crew.wait()
    assert code == 0, err
    assert "resumed run crew-" in out
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1, "the same run goes on"
    assert_same(checkpoints(tmp_path)[-1], alone)


@pytest.mark.slow
def test_a_signal_to_one_worker_stops_all_between_two_generations(
    data: str, tmp_path: Path
) -> None:
    crew = Workers(tmp_path, 2, "--data", data, *MANY, "--generations", "500")
    assert crew.until(lambda: len(checkpoints(tmp_path)) >= 1)
    os.kill(crew.worker(1), signal.SIGTERM)
    code, out, _ = crew.wait()
    assert code != 0
    assert "asked to stop: saving generation" in out
    assert "saved checkpoints/crew-" in out
