"""On a GPU: what is recorded is what is done, bit for bit, and a resumed run as well."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.benchmarks.trainer_gpu import resumed_apart
from tests.unit.trainer.worlds import SMALL
from trainer import market, recorder, rollout, state, synthetic
from trainer.environment import Exchange, Rules
from trainer.recorder import Recorder, Tensors
from trainer.session import _make_exact
from trainer.state import TrainState
from trainer.training import advance

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


class Unrecorded(Recorder):
    """Launches everything one by one."""

    def run(
        self, key: object, work: recorder.Work, given: Tensors, *, keep: bool = True
    ) -> Tensors:
        return work({name: t.detach().clone() for name, t in given.items()})


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Exchange:
    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = torch.device("cuda", 0)
    _make_exact(SMALL, device)
    synthetic.write_market(tmp_path / "m.csv", days=400, tickers=6, seed=1)
    return Exchange(market.load(tmp_path / "m.csv", SMALL, device), Rules.of(SMALL))


def unrecorded(place: Exchange) -> Exchange:
    return Exchange(place.market, place.rules, Unrecorded())


def fresh(place: Exchange) -> TrainState:
    return state.fresh(SMALL, place, torch.device("cuda", 0))


def test_a_recording_takes_new_numbers_and_gives_results_of_its_own() -> None:
    recordings = Recorder()

    def double(given: Tensors) -> Tensors:
        return {"twice": given["x"] * 2}

    x = torch.arange(4.0, device="cuda")
    first = recordings.run("double", double, {"x": x})["twice"]
    x += 1  # in place: the same tensor, other numbers
    second = recordings.run("double", double, {"x": x})["twice"]
    third = recordings.run("double", double, {"x": x[:2]})["twice"]
    assert (first.tolist(), second.tolist()) == ([0, 2, 4, 6], [2, 4, 6, 8])
    assert third.tolist() == [2, 4]


def test_episodes_are_the_same_bits_recorded_and_not(place: Exchange) -> None:
    current = fresh(place)
    for days in ([10, 60], [30, 11]):
        one = rollout.play(place, current.actors, days)
        other = rollout.play(unrecorded(place), current.actors, days)
        assert torch.equal(one.returns, other.returns)
        for name, column in one.transitions.items():
            assert torch.equal(column, other.transitions[name]), name


def test_generations_are_the_same_bits_recorded_and_not(place: Exchange) -> None:
    one, other, plain = fresh(place), fresh(place), unrecorded(place)
    for _ in range(4):
        advance(one, place)
        advance(other, plain)
    assert one.history == other.history
    found = other.files()
    for file, tensors in one.files().items():
        for name, tensor in tensors.items():
            assert torch.equal(tensor, found[file][name]), (file, name)


def test_a_resumed_run_is_the_same_bits(place: Exchange, tmp_path: Path) -> None:
    assert resumed_apart(SMALL, place, torch.device("cuda", 0), tmp_path) == (0.0, True)


def test_work_that_cannot_be_recorded_is_done_with_a_warning() -> None:
    recordings = Recorder()

    def looks(given: Tensors) -> Tensors:
        return {"x": given["x"] * float(given["x"].sum())}  # the CPU waits for the GPU

    x = torch.ones(3, device="cuda")
    with pytest.warns(UserWarning, match="cannot be recorded on this GPU"):
        assert recordings.run("a look", looks, {"x": x})["x"].tolist() == [3, 3, 3]
    assert recordings.run("a look", looks, {"x": 2 * x})["x"].tolist() == [12, 12, 12]
    assert float((x @ x).sum()) == 3, "and the GPU computes on"
