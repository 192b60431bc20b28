"""A file or link that names the newest checkpoint names one that is there, after a restore."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from syncd.alongside import noted
from syncd.records import CommitRecord
from tests.workbench import Machine, restore_newest, restorer, tree


@dataclass(frozen=True)
class Case:
    """The first save, and what the tracker held after it and after one that never arrived."""

    files: str
    tracker: str
    then: str
    later: str


CASES = {
    "Detectron2": Case(
        "model_0004999.pth", "last_checkpoint", "model_0004999.pth", "model_0009999.pth"
    ),
    "MMEngine": Case(
        "epoch_1.pth", "last_checkpoint", "/w/work_dirs/x/epoch_1.pth", "/w/work_dirs/x/epoch_2.pth"
    ),
    "DeepSpeed, a tag of one's own": Case(
        "epoch1/mp_rank_00_model_states.pt epoch1/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "latest", "epoch1", "epoch12",
    ),
    "DeepSpeed": Case("global_step10/mp_rank_00_model_states.pt", "latest", "global_step10",
        "global_step20"),
    "verl": Case(
        "global_step_100/actor/model_world_size_1_rank_0.pt global_step_100/data.pt",
        "latest_checkpointed_iteration.txt", "100", "200",
    ),
    "TensorFlow": Case(
        "ckpt-1.index ckpt-1.data-00000-of-00001", "checkpoint",
        'model_checkpoint_path: "ckpt-1"\nall_model_checkpoint_paths: "ckpt-1"\n',
        'model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-1"\n',
    ),
    "JSON": Case(
        "run/step_5/a.pt", "latest_checkpoint.json",
        '{"path": "run/step_5", "loss": 0.5}\n', '{"path": "run/step_10", "loss": 0.5}\n',
    ),
    "without its ending": Case("nets/weights_7.pt", "last.txt", "weights_7", "weights_8\n"),
    "a link to a file": Case("epoch=0-step=100.ckpt", "last.ckpt", "->epoch=0-step=100.ckpt",
        "->epoch=1-step=200.ckpt"),
    "a link to a directory": Case("step100/model.pt step100/train.pt", "latest", "->step100",
        "->./step200"),
}  # fmt: skip


def point(machine: Machine, tracker: str, text: str) -> None:
    path = machine.root / tracker
    if text.startswith("->"):
        path.unlink(missing_ok=True)
        path.symlink_to(text[2:])
    else:
        machine.write(tracker, text)


def held(path: Path) -> str:
    return f"->{path.readlink()}" if path.is_symlink() else path.read_text()


def lost_in_mid_save(case: Case, home: Path) -> Machine:
    """The tracker of the second save is in the bucket, and nothing else of it."""
    machine = Machine(home / "one", home / "bucket").start()
    for name in case.files.split():
        machine.write(name, b"\x80\x02N.")
    point(machine, case.tracker, case.then)
    assert machine.commit_all()
    point(machine, case.tracker, case.later)
    machine.commit_all()
    return machine


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_tracker_that_was_ahead_names_what_was_restored(case: Case, tmp_path: Path) -> None:
    machine = lost_in_mid_save(case, tmp_path)
    record = restore_newest(machine.bucket, tmp_path / "two")
    assert record
    found = held(tmp_path / "two" / case.tracker)
    assert found.strip().replace("./", "") == case.then.strip()
    assert all((tmp_path / "two" / name).exists() for name in case.files.split())


def test_the_daemon_afterwards_commits_what_the_tracker_holds_now(tmp_path: Path) -> None:
    case = CASES["Detectron2"]
    machine = lost_in_mid_save(case, tmp_path)
    restore_newest(machine.bucket, tmp_path / "two/checkpoints")
    other = Machine(tmp_path / "two", machine.bucket).start()
    assert [record.checkpoint for record in other.commit_all()] == [case.tracker]
    restore_newest(machine.bucket, tmp_path / "three")
    assert held(tmp_path / "three" / case.tracker) == case.then


def test_a_restore_that_was_cut_off_before_it_is_gone_on_with(tmp_path: Path) -> None:
    case = CASES["MMEngine"]
    machine = lost_in_mid_save(case, tmp_path)
    back = restorer(machine.bucket)
    commits = back.commits()
    record = restore_newest(machine.bucket, tmp_path / "two")
    assert isinstance(record, CommitRecord)
    (tmp_path / "two" / case.tracker).write_text(case.later)
    with noted(tmp_path / "two", record):
        along = back.bring_along(record, commits, tmp_path / "two")
    assert along.pointed == {case.tracker: "epoch_1.pth"}
    assert held(tmp_path / "two" / case.tracker) == case.then


LEFT_ALONE = {
    "what was best": ("best_checkpoint.txt", "model_0009999.pth"),
    "what was": ("history.json", json.dumps(["model_0000999.pth", "model_0009999.pth"])),
    "of another series": ("last_checkpoint", "weights_0009999.pth"),
    "no name": ("last_checkpoint", "xmodel_0009999.pthx model_0009999.pth2"),
    "not text": ("last_checkpoint", b"\xff\xfemodel_0009999.pth"),
    "a number of nobody knows what": ("last_epoch.txt", "12"),
    "too long": ("last_checkpoint", "model_0009999.pth\n" + " " * 70_000),
}


@pytest.mark.parametrize(("name", "content"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_no_tracker_is_left_alone(name: str, content: str | bytes, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("model_0004999.pth", b"\x80\x02N.")
    machine.write(name, content)
    machine.commit_all()
    restore_newest(machine.bucket, tmp_path / "two")
    expected = content if isinstance(content, bytes) else content.encode()
    assert tree(tmp_path / "two")[name] == expected


def test_what_it_names_stays_if_that_is_there(tmp_path: Path) -> None:
    """Of several names only those are changed that lead nowhere."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("ckpt_1.pt", b"\x80\x02N.")
    machine.commit_all()
    two = tmp_path / "two"
    two.mkdir()
    shutil.copy(machine.root / "ckpt_1.pt", two / "ckpt_3.pt")
    for text in ("ckpt_3.pt", "ckpt_3.pt ckpt_1.pt"):
        (two / "latest.txt").write_text(text)
        (two / "ckpt_1.pt").unlink(missing_ok=True)
        restore_newest(machine.bucket, two)
        assert held(two / "latest.txt") == text
    (two / "latest.txt").write_text("ckpt_3.pt ckpt_4.pt")
    (two / "ckpt_1.pt").unlink()
    restore_newest(machine.bucket, two)
    assert held(two / "latest.txt") == "ckpt_3.pt ckpt_1.pt"


def test_one_that_names_an_older_one_on_this_disk_names_what_was_restored(tmp_path: Path) -> None:
    """Else the trainer would go on from the older one, though the newer one was brought."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("ckpt_7.pt", b"\x80\x02N.")
    machine.commit_all()
    two = tmp_path / "two"
    two.mkdir()
    shutil.copy(machine.root / "ckpt_7.pt", two / "ckpt_3.pt")
    (two / "latest.txt").write_text("ckpt_3.pt\n")
    restore_newest(machine.bucket, two)
    assert held(two / "latest.txt") == "ckpt_7.pt\n"


def test_what_accompanies_another_that_was_brought_comes_too(tmp_path: Path) -> None:
    """Actor and critic have a folder each, and what belongs to it lies there."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for part in ("actor", "critic"):
        machine.write(f"{part}/notes.txt", part)
        machine.write(f"{part}/gen-000001/state.json", "{}")
    machine.commit_all()
    restore_newest(machine.bucket, tmp_path / "two")
    assert tree(tmp_path / "two") == tree(machine.root)
