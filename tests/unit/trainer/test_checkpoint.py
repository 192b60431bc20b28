"""Checkpoints: whole or not there; refused when damaged; a failed save stops nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.trainer.worlds import SMALL, digest, fresh
from trainer import checkpoint
from trainer.saver import Saver
from trainer.state import TrainState
from trainer.training import advance


def saved(folder: Path, run: str, generations: int) -> TrainState:
    current, place = fresh(folder)
    saver = Saver(folder / "ck", run, pytest.fail)
    for _ in range(generations):
        advance(current, place)
        assert saver.finish(current)
    return current


def test_a_checkpoint_brings_back_every_tensor_and_the_history(tmp_path: Path) -> None:
    current = saved(tmp_path, "r", 2)
    loaded, refused = checkpoint.newest(tmp_path / "ck", None)
    assert loaded is not None
    assert refused == []
    again, place = fresh(tmp_path)
    again.load(loaded.files, loaded.state)
    assert digest(again) == digest(current) == loaded.state["state_digest"]
    advance(again, place)
    advance(current, place)
    assert digest(again) == digest(current)


def test_elites_are_the_same_bytes_in_the_next_checkpoint(tmp_path: Path) -> None:
    current = saved(tmp_path, "r", 2)
    champion = f"agents/agent-{current.champion:02d}.safetensors"
    run_dir = tmp_path / "ck" / "r"
    listings = [checkpoint.read_state(p)["files"] for p in sorted(run_dir.glob("gen-*"))]
    assert listings[0][champion] == listings[1][champion]
    assert listings[0]["replay.safetensors"] != listings[1]["replay.safetensors"]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("cut", "has 40 bytes, not"),
        ("gone", "cannot be read"),
        ("state", "not whole JSON"),
        ("format", "its format is 99"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_its_reason(
    tmp_path: Path, damage: str, reason: str
) -> None:
    saved(tmp_path, "r", 2)
    last = tmp_path / "ck" / "r" / "gen-000002"
    agent, state = last / "agents/agent-01.safetensors", last / "state.json"
    if damage == "cut":
        agent.write_bytes(agent.read_bytes()[:40])
    elif damage == "gone":
        agent.unlink()
    elif damage == "state":
        state.write_text(state.read_text()[:-20])
    else:
        state.write_text(state.read_text().replace('"format": 2', '"format": 99'))
    loaded, refused = checkpoint.newest(tmp_path / "ck", "r")
    assert loaded is not None
    assert loaded.path.name == "gen-000001"
    assert len(refused) == 1
    assert refused[0].startswith(str(last))
    assert reason in refused[0]


def test_the_run_saved_last_is_the_one_resumed(tmp_path: Path) -> None:
    saved(tmp_path, "older", 3)
    saved(tmp_path, "newer", 1)
    loaded, _ = checkpoint.newest(tmp_path / "ck", None)
    assert loaded is not None
    assert loaded.path.parent.name == "newer"
    named, _ = checkpoint.newest(tmp_path / "ck", "older")
    assert named is not None
    assert named.path.name == "gen-000003"
    assert checkpoint.newest(tmp_path / "ck", "absent") == (None, [])
    assert checkpoint.newest(tmp_path / "nowhere", None) == (None, [])


def test_a_failed_save_warns_leaves_nothing_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current, place = fresh(tmp_path)
    advance(current, place)
    warnings: list[str] = []
    saver = Saver(tmp_path / "ck", "r", warnings.append)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        assert not saver.finish(current)
    assert "No space left on device" in warnings[0]
    assert list((tmp_path / "ck" / "r").iterdir()) == []
    assert saver.finish(current)
    assert [p.name for p in (tmp_path / "ck" / "r").iterdir()] == ["gen-000001"]


def test_local_retention_keeps_the_newest(tmp_path: Path) -> None:
    current, place = fresh(tmp_path, replace(SMALL, keep_last=2))
    saver = Saver(tmp_path / "ck", "r", pytest.fail)
    for _ in range(4):
        advance(current, place)
        assert saver.finish(current)
    names = sorted(p.name for p in (tmp_path / "ck" / "r").iterdir())
    assert names == ["gen-000003", "gen-000004"]


def test_the_digest_does_not_know_time_name_or_length_of_a_run(tmp_path: Path) -> None:
    first, second = saved(tmp_path, "one", 1), saved(tmp_path, "two", 1)
    second.settings = replace(second.settings, generations=77, run="two", data="elsewhere")
    assert digest(first) == digest(second)
