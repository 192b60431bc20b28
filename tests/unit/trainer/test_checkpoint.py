"""Checkpoints: whole or not there; refused when damaged; a failed save stops nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.benchmarks.trainer_gpu import gpu, resumed_apart
from tests.unit.trainer.worlds import CPU, SMALL, digest, exchange, fresh, state_of
from trainer import checkpoint
from trainer.errors import UsageFault
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
    assert again.replay.size == current.replay.size > 0
    entry = advance(again, place)
    assert entry["starts"] == advance(current, place)["starts"], "the draws go on"
    assert entry["starts"] != again.history[0]["starts"]
    assert digest(again) == digest(current)


def test_elites_are_the_same_bytes_in_the_next_checkpoint(tmp_path: Path) -> None:
    current = saved(tmp_path, "r", 2)
    champion = f"agents/agent-{current.champion:02d}.safetensors"
    run_dir = tmp_path / "ck" / "r"
    listings = [checkpoint.read_state(p)["files"] for p in sorted(run_dir.glob("gen-*"))]
    assert listings[0][champion] == listings[1][champion]
    assert listings[0]["replay.safetensors"] != listings[1]["replay.safetensors"]


def altered(path: Path, **changed: Any) -> None:
    """A state.json with other entries and a seal that fits them: nobody's accident."""
    state = {**json.loads((path / "state.json").read_text()), **changed}
    state["seal"] = checkpoint.seal(state)
    (path / "state.json").write_text(json.dumps(state))


def cut(path: Path) -> None:
    agent = path / "agents/agent-01.safetensors"
    agent.write_bytes(agent.read_bytes()[:40])


def flip(path: Path) -> None:
    content = bytearray((path / "replay.safetensors").read_bytes())
    content[-3] ^= 1
    (path / "replay.safetensors").write_bytes(content)


def flip_in_the_history(path: Path) -> None:
    text = (path / "state.json").read_text()
    at = text.index('"mean": ') + len('"mean": 0.00')
    (path / "state.json").write_text(text[:at] + str(9 - int(text[at])) + text[at + 1 :])


def flip_in_the_settings(path: Path) -> None:
    text = (path / "state.json").read_text()
    (path / "state.json").write_text(text.replace('"threads": 1', '"threads": 3'))


def no_tensors(path: Path) -> None:
    (path / "best.safetensors").write_bytes(b"rubbish")
    files = {**state_of(path)["files"], "best.safetensors": {
        "size": 7, "sha256": hashlib.sha256(b"rubbish").hexdigest()}}  # fmt: skip
    altered(path, files=files)


def outside(name: str) -> Callable[[Path], None]:
    return lambda path: altered(path, files={name: {"size": 1, "sha256": "0" * 64}})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (cut, "agent-01.safetensors has 40 bytes, not"),
        (flip, "replay.safetensors has another SHA-256"),
        (lambda path: (path / "agents/agent-01.safetensors").unlink(), "cannot be read"),
        (lambda path: (path / "state.json").unlink(), "cannot be read"),
        (lambda path: (path / "state.json").write_text("{"), "not whole JSON"),
        (lambda path: (path / "state.json").write_bytes(b"\xff\x00"), "not whole JSON"),
        (lambda path: (path / "state.json").write_text("[" * 100_000), "not whole JSON"),
        (lambda path: (path / "state.json").write_text("[3]"), "no checkpoint's"),
        (flip_in_the_history, "another SHA-256 than its seal"),
        (flip_in_the_settings, "another SHA-256 than its seal"),
        (lambda path: altered(path, format=99), "its format is 99"),
        (lambda path: altered(path, files=["replay.safetensors"]), "names no files"),
        (lambda path: altered(path, files={"a": "b"}), "names no files"),
        (outside("../gen-000001/replay.safetensors"), "outside the checkpoint"),
        (outside("/etc/passwd"), "outside the checkpoint"),
        (no_tensors, "best.safetensors holds no tensors"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_its_reason(
    tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    saved(tmp_path, "r", 2)
    last = tmp_path / "ck" / "r" / "gen-000002"
    damage(last)
    loaded, refused = checkpoint.newest(tmp_path / "ck", "r")
    assert loaded is not None
    assert loaded.path.name == "gen-000001"
    assert len(refused) == 1
    assert refused[0].startswith(str(last))
    assert reason in refused[0]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("agents/agent-01.safetensors", lambda tensors: {"first.w": torch.zeros(3, 3)}),
        ("learners/learner-00.safetensors", lambda t: {k: v.double() for k, v in t.items()}),
        ("replay.safetensors", lambda t: {**t, "position": torch.tensor(10**6)}),
        ("replay.safetensors", lambda t: {**t, "day": t["day"][1:]}),
        ("best.safetensors", lambda _: None),
    ],
)
def test_tensors_that_do_not_fit_the_settings_are_refused(
    tmp_path: Path, file: str, change: Callable[[Any], Any]
) -> None:
    current = saved(tmp_path, "r", 1)
    loaded = checkpoint.read(tmp_path / "ck/r/gen-000001")
    before = digest(current)
    files = {name: change(t) if name == file else t for name, t in loaded.files.items()}
    files = {name: t for name, t in files.items() if t is not None}
    with pytest.raises(UsageFault, match=f"{file} does not fit"):
        current.load(files, loaded.state)
    assert digest(current) == before


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


def test_the_benchmark_of_a_gpu_finds_a_resumed_run_the_same_and_says_where_there_is_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = exchange(tmp_path)
    assert resumed_apart(SMALL, place, CPU, tmp_path) == (0.0, True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu(SMALL, lambda _device: (SMALL, place))
    assert "nothing was measured" in capsys.readouterr().out


def test_the_digest_does_not_know_time_name_or_length_of_a_run(tmp_path: Path) -> None:
    first, second = saved(tmp_path, "one", 1), saved(tmp_path, "two", 1)
    second.settings = replace(second.settings, generations=77, run="two", data="elsewhere")
    assert digest(first) == digest(second)
