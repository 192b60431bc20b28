"""Small markets, small settings and real trainer processes for the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.unit.trainer import forked
from trainer import market, state, synthetic
from trainer.cache import Prepared
from trainer.environment import Exchange, Rules
from trainer.market import Market
from trainer.settings import Settings
from trainer.state import TrainState
from trainer.table import Table

REPO = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")

SMALL = replace(
    Settings(), context=4, horizon=10, episodes=2, population=5, hidden=12,
    updates=6, batch=8, replay=300, validate_every=2, threads=1,
)  # fmt: skip
FLAGS = [
    "--context", "4", "--horizon", "10", "--episodes", "2", "--population", "5", "--hidden", "12",
    "--updates", "6", "--batch", "8", "--replay", "300", "--threads", "1",
    "--validate-every", "2", "--checkpoint-every", "2", "--generations", "9", "--device", "cpu",
]  # fmt: skip


def priced(rows: Sequence[Sequence[tuple[float, float] | None]]) -> Table:
    """A table from (open, close) by day and series; None: no row that day."""
    values = np.full((len(rows), len(rows[0]), 5), np.nan)
    for day, cells in enumerate(rows):
        for series, cell in enumerate(cells):
            if cell is not None:
                first, last = cell
                values[day, series] = (first, max(cell), min(cell), last, 100.0)
    dates = [f"2024-{1 + day // 28:02d}-{1 + day % 28:02d}" for day in range(len(rows))]
    return Table(dates, [f"T{i}" for i in range(len(rows[0]))], values)


def world(rows: Sequence[Sequence[tuple[float, float] | None]]) -> Market:
    """The market of a few hand-written days, whatever its length."""
    settings = replace(Settings(), context=1, horizon=1)
    filler = [list(rows[-1]) for _ in range(40)]
    return market.build(Path("toy"), Prepared.of(priced([*rows, *filler])), "hash", settings, CPU)


def exchange(folder: Path, settings: Settings = SMALL) -> Exchange:
    """A made market of 160 days and five series, one listed late and one delisted."""
    path = folder / "toy.csv"
    if not path.exists():
        synthetic.write_market(path, days=160, tickers=5, seed=3)
    return Exchange(market.load(path, settings, CPU), Rules.of(settings))


def fresh(folder: Path, settings: Settings = SMALL) -> tuple[TrainState, Exchange]:
    """A run at generation 0 and its exchange."""
    place = exchange(folder, settings)
    return state.fresh(settings, place, CPU), place


def digest(current: TrainState) -> str:
    """The state's digest, as a checkpoint would have it."""
    return state.digest(current.files(), current.record(), current.settings.identity())


def environment() -> dict[str, str]:
    """Of a trainer: nothing of ours but where the code is, and one thread."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("TRAINER_", "COV"))}
    clean.pop("CHECKPOINT_DIR", None)
    clean.pop("LOG_DIR", None)
    return {
        **clean,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO), clean.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": "1",
    }


class Process:
    """A real `python -m trainer` in a folder of its own."""

    def __init__(self, folder: Path, *arguments: str, python: Sequence[str] = ()) -> None:
        self.folder = folder
        self.child = subprocess.Popen(
            [sys.executable, *python, "-m", "trainer", *arguments], cwd=folder, env=environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def wait(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        out, err = self.child.communicate(timeout=240)
        return self.child.returncode, out, err

    def until(self, ready: Callable[[], bool]) -> bool:
        """Poll until something is there; False when the process has ended before."""
        deadline = time.monotonic() + 120
        while not ready():
            if self.child.poll() is not None:
                return False
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.001)
        return True

    def generations(self) -> int:
        """How many generations it has logged."""
        logs = list(self.folder.glob("logs/*/generations.jsonl"))
        return sum(log.read_text().count("\n") for log in logs)

    def kill(self) -> None:
        """The machine is lost."""
        self.child.send_signal(signal.SIGKILL)
        self.wait()


def run(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """A trainer from start to end, forked from one that has torch already."""
    return forked.run(folder, arguments, environment())


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints of a folder, oldest first."""
    return sorted(folder.glob("checkpoints/*/gen-*"))


def state_of(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json."""
    content: dict[str, Any] = json.loads((path / "state.json").read_text())
    return content
