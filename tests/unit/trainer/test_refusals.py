"""What the trainer refuses before it begins, each in one line with exit code 2."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
import torch

from tests.unit.trainer.worlds import FLAGS, run
from trainer import synthetic


@pytest.fixture
def data(tmp_path: Path) -> str:
    synthetic.write_market(tmp_path / "toy.csv", days=160, tickers=5, seed=3)
    return str(tmp_path / "toy.csv")


def test_a_run_that_exists_is_not_begun_again(tmp_path: Path, data: str) -> None:
    given = ["--data", data, "--run", "mine", *FLAGS, "--generations", "2"]
    assert run(tmp_path, *given)[0] == 0
    code, _, words = run(tmp_path, *given)
    assert code == 2
    assert "mine exists already; continue it with --resume" in words


def test_two_trainers_on_one_run_are_refused(tmp_path: Path, data: str) -> None:
    folder = tmp_path / "checkpoints/mine"
    folder.mkdir(parents=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        code, _, words = run(tmp_path, "--data", data, "--run", "mine", *FLAGS)
    finally:
        os.close(held)
    assert code == 2
    assert "another trainer is at work on" in words


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path, data: str) -> None:
    code, _, words = run(tmp_path, "--data", data, *FLAGS, "--device", "cuda")
    assert code == 2
    assert "--device: cuda was asked for and torch sees no GPU" in words
