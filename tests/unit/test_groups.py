"""Several files that make one checkpoint though they share a folder (Stable-Baselines3)."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest

from syncd.errors import Permanent
from syncd.restored import Replace
from syncd.retention import prune_local
from syncd.scan import scan
from syncd.units import units
from tests.workbench import Machine, restore_newest, restorer, tree


def model(text: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("policy.pth", text)
    return buffer.getvalue()


def save(machine: Machine, step: int, text: str = "") -> dict[str, bytes]:
    """A checkpoint as CheckpointCallback writes it; its files by their paths."""
    files = {
        f"ppo/rl_model_{step}_steps.zip": model(f"{step}{text}"),
        f"ppo/rl_model_replay_buffer_{step}_steps.pkl": pickle.dumps([step, text]),
        f"ppo/rl_model_vecnormalize_{step}_steps.pkl": pickle.dumps((step, text)),
    }
    for path, content in files.items():
        machine.write(path, content)
    return files


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "one", tmp_path / "bucket").start()


def test_files_of_one_step_are_one_checkpoint(machine: Machine) -> None:
    save(machine, 500)
    save(machine, 1000)
    machine.write("ppo/best_model.zip", model("best"))
    machine.write("ppo/monitor.csv", "r,l,t\n")
    found = scan(machine.root)
    assert found
    seen = {unit.path: [path for path, _ in unit.files] for unit in units(found)}
    assert seen == {
        f"ppo/rl_model_{step}_steps.zip": [
            f"rl_model_{step}_steps.zip",
            f"rl_model_replay_buffer_{step}_steps.pkl",
            f"rl_model_vecnormalize_{step}_steps.pkl",
        ]
        for step in (500, 1000)
    } | {"ppo/best_model.zip": [""], "ppo/monitor.csv": [""]}


def test_they_keep_their_own_names_in_the_store_and_come_back_together(
    machine: Machine, tmp_path: Path
) -> None:
    save(machine, 500)
    newest = save(machine, 1000)
    records = machine.commit_all()
    assert [len(record.files) for record in records] == [3, 3]
    plain = tree(machine.bucket / "eigen2/checkpoints")
    assert plain.keys() == tree(machine.root).keys()
    record = restore_newest(machine.bucket, tmp_path / "two")
    assert record
    assert record.checkpoint == "ppo/rl_model_1000_steps.zip"
    assert tree(tmp_path / "two") == newest


def test_a_changed_group_is_committed_as_a_whole(machine: Machine, tmp_path: Path) -> None:
    first = save(machine, 500)
    machine.commit_all()
    second = save(machine, 500, "again")
    (record,) = machine.commit_all()
    assert len(record.files) == 3
    restore_newest(machine.bucket, tmp_path / "two")
    assert tree(tmp_path / "two") == second
    back = restorer(machine.bucket)
    commits = back.commits()
    back.restore(commits[-1], tmp_path / "three")  # type: ignore[arg-type]
    assert tree(tmp_path / "three") == first


def test_a_model_that_was_alone_is_joined_by_its_replay_buffer(
    machine: Machine, tmp_path: Path
) -> None:
    machine.write("ppo/rl_model_500_steps.zip", model("5"))
    assert len(machine.commit_all()) == 1
    machine.write("ppo/rl_model_replay_buffer_500_steps.pkl", pickle.dumps(5))
    (record,) = machine.commit_all()
    assert len(record.files) == 2
    assert record.files[0].key == "eigen2/checkpoints/ppo/rl_model_500_steps.zip"
    restore_newest(machine.bucket, tmp_path / "two")
    assert tree(tmp_path / "two") == tree(machine.root)


def test_what_is_in_its_place_is_refused_or_kept(machine: Machine, tmp_path: Path) -> None:
    good = save(machine, 500)
    machine.commit_all()
    other = tmp_path / "two/ppo"
    other.mkdir(parents=True)
    (other / "rl_model_replay_buffer_500_steps.pkl").write_bytes(b"old")
    (other / "rl_model_900_steps.zip").write_bytes(b"mine")
    back = restorer(machine.bucket)
    with pytest.raises(Permanent, match="is there already"):
        back.restore_newest(back.commits(), tmp_path / "two")
    kept = back.restore_newest(back.commits(), tmp_path / "two", Replace.KEEP).put_aside
    assert kept
    assert tree(kept) == {"rl_model_replay_buffer_500_steps.pkl": b"old"}
    there = tree(tmp_path / "two")
    assert {path: there[path] for path in good} == good
    assert there["ppo/rl_model_900_steps.zip"] == b"mine"


def test_damage_to_one_of_them_falls_back_to_the_step_before(
    machine: Machine, tmp_path: Path
) -> None:
    older = save(machine, 500)
    save(machine, 1000)
    machine.commit_all()
    damaged = machine.bucket / "eigen2/checkpoints/ppo/rl_model_vecnormalize_1000_steps.pkl"
    damaged.write_bytes(b"rubbish")
    restore_newest(machine.bucket, tmp_path / "two")
    assert tree(tmp_path / "two") == older


def test_retention_on_disk_takes_all_of_an_old_one(machine: Machine) -> None:
    save(machine, 500)
    newest = save(machine, 1000)
    machine.commit_all()
    found = scan(machine.root)
    assert found
    gone = prune_local(machine.root, list(units(found)), 1, lambda _unit: True)
    assert gone == ["ppo/rl_model_500_steps.zip"]
    assert tree(machine.root) == newest
