"""A file or link that names the newest checkpoint names one that is there, after a restore."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from syncd.trackers import Pointed, point
from tests.workbench import Machine, restorer, tree


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
    "in a folder above": Case(
        "run/step_5/a.pt", "latest_checkpoint.txt", "run/step_5\n", "run/step_10\n"
    ),
    "without its ending": Case("weights_7.pt", "last.txt", "weights_7", "weights_8\n"),
    "a folder of the machine before": Case(
        "step_5/a.pt", "latest", "/home/me/out/step_5", "/home/me/out/step_6"
    ),
    "a link to a file": Case("epoch=0-step=100.ckpt", "last.ckpt", "->epoch=0-step=100.ckpt",
        "->epoch=1-step=200.ckpt"),
    "a link to a directory": Case("step100/model.pt step100/train.pt", "latest", "->step100",
        "->./step200"),
}  # fmt: skip


def set_tracker(machine: Machine, tracker: str, text: str) -> None:
    path = machine.root / tracker
    if text.startswith("->"):
        path.parent.mkdir(parents=True, exist_ok=True)
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
    set_tracker(machine, case.tracker, case.later)
    assert machine.commit_all()
    return machine


def restore(machine: Machine, target: Path) -> Pointed:
    back = restorer(machine.bucket)
    result = back.restore_newest(back.commits(), target)
    there = [result.record, *result.along.brought, *result.along.there]
    return point(target, [one.checkpoint for one in there if one], fresh=True)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_tracker_that_was_ahead_names_what_was_restored(case: Case, tmp_path: Path) -> None:
    machine = lost_in_mid_save(case, tmp_path)
    restore(machine, tmp_path / "two")
    found = held(tmp_path / "two" / case.tracker)
    assert found.strip().replace("./", "") == case.then.strip()
    assert all((tmp_path / "two" / name).exists() for name in case.files.split())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_one_that_names_what_is_there_stays_as_it_is(case: Case, tmp_path: Path) -> None:
    for name in case.files.split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    machine = Machine(tmp_path / "one", tmp_path / "bucket")
    set_tracker(machine, case.tracker, case.then)
    shutil.move(machine.root / case.tracker, tmp_path / case.tracker)
    for checkpoint in case.files.split(), [case.files.partition("/")[0]]:
        assert point(tmp_path, checkpoint, fresh=True) == Pointed()
    assert held(tmp_path / case.tracker) == case.then


LEFT_ALONE = {
    "what was best": ("best_checkpoint.txt", "epoch_9.pth"),
    "what was": ("history.txt", "epoch_9.pth"),
    "of another series": ("last_checkpoint", "weights_9.pth"),
    "another ending": ("last_checkpoint", "epoch_9.pth2"),
    "not text": ("last_checkpoint", b"\xff\xfeepoch_9.pth"),
    "a number of nobody knows what": ("last_epoch.txt", "12"),
    "too long": ("last_checkpoint", "epoch_9.pth\n" + " " * 70_000),
    "a number that no checkpoint can have": ("latest_checkpointed_iteration.txt", "9" * 5000),
    "a word": ("latest_checkpointed_iteration.txt", "release"),
    "results": ("latest_metrics.json", '{"epoch_1": 0.9, "epoch_9": 0.7}'),
    "settings": ("resume.yaml", "lr: 0.3\nworkers: 8\nload_from: /abs/epoch_9.pth\n"),
    "a log": ("latest.log", "saved epoch_1.pth\nsaved epoch_9.pth\n"),
    "of another folder": ("latest", "beta/epoch_9.pth"),
    "of another folder above": ("latest", "../epoch_9.pth"),
    "a link to another folder": ("last.pth", "->beta/epoch_9.pth"),
    "a link that leads out": ("latest", "->../../epoch_9.pth"),
    "a checkpoint itself": ("latest_epoch_9.bin", "epoch_9.pth"),
    "what TensorFlow keeps": ("checkpoint", 'all_model_checkpoint_paths: "epoch_9"\n'),
}


@pytest.mark.parametrize(("name", "content"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_no_tracker_is_left_alone(name: str, content: str | bytes, tmp_path: Path) -> None:
    (tmp_path / "epoch_3.pth").touch()
    (tmp_path / "step_3").mkdir()
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content.startswith("->"):
        (tmp_path / name).symlink_to(content[2:])
    else:
        (tmp_path / name).write_text(content)
    assert point(tmp_path, ["epoch_3.pth", "step_3"], fresh=True) == Pointed()
    kept = tmp_path / name
    assert content == (kept.read_bytes() if isinstance(content, bytes) else held(kept))


NUMBERS = {
    "Orbax": (["100/w.bin"], "latest_step.txt", "200"),
    "of another directory": (["iter_0000100/m.pt", "checkpoint_7.pt"], "count", "100"),
    "that is there": (["iter_0000100/m.pt", "iter_0000200/m.pt"], "count", "200"),
    "of files": (["model_100.pt"], "count", "200"),
}


@pytest.mark.parametrize(("files", "name", "text"), NUMBERS.values(), ids=NUMBERS)
def test_a_number_is_left_alone(files: list[str], name: str, text: str, tmp_path: Path) -> None:
    for path in files:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    tracker = tmp_path / name.replace("count", "latest_checkpointed_iteration.txt")
    tracker.write_text(text)
    checkpoints = [path.partition("/")[0] for path in reversed(files)]
    assert point(tmp_path, checkpoints, fresh=True) == Pointed()
    assert tracker.read_text() == text


def test_of_two_runs_each_tracker_names_its_own(tmp_path: Path) -> None:
    for run, step in (("alpha", 5), ("beta", 9)):
        (tmp_path / run).mkdir()
        (tmp_path / run / f"epoch_{step}.pth").touch()
        (tmp_path / run / "latest").write_text("epoch_10.pth")
    (tmp_path / "latest").write_text("beta/epoch_10.pth")
    done = point(tmp_path, ["beta/epoch_9.pth", "alpha/epoch_5.pth"], fresh=True)
    expected = {
        "beta/latest": "epoch_9.pth", "latest": "epoch_9.pth", "alpha/latest": "epoch_5.pth",
    }  # fmt: skip
    assert done == Pointed(expected)
    assert (tmp_path / "latest").read_text() == "beta/epoch_9.pth"


def test_one_that_names_an_older_one_on_this_disk_names_what_was_restored(tmp_path: Path) -> None:
    """Else the trainer would go on from the older one, though the newer one was brought."""
    for name in ("ckpt_3.pt", "ckpt_7.pt"):
        (tmp_path / name).touch()
    tracker = tmp_path / "latest.txt"
    tracker.write_text("ckpt_3.pt\n")
    assert point(tmp_path, ["ckpt_7.pt"], fresh=False) == Pointed(), "nothing was restored"
    assert point(tmp_path, ["ckpt_7.pt", "ckpt_3.pt"], fresh=True).names
    assert tracker.read_text() == "ckpt_7.pt\n"
    assert point(tmp_path, ["ckpt_3.pt"], fresh=True) == Pointed(), "the newer one is there"


def test_one_that_cannot_be_written_is_named_and_the_others_are_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ckpt_7.pt").touch()
    for name in ("current.txt", "latest.txt"):
        (tmp_path / name).write_text("ckpt_8.pt")

    def read(path: Path) -> bytes:
        if path.name == "current.txt":
            raise PermissionError(13, "Permission denied", str(path))
        with path.open("rb") as file:
            return file.read()

    monkeypatch.setattr(Path, "read_bytes", read)  # root may read everything
    done = point(tmp_path, ["ckpt_7.pt"], fresh=True)
    assert done.names == {"latest.txt": "ckpt_7.pt"}
    assert [words.partition(":")[0] for words in done.failed] == ["current.txt"]


def test_a_folder_is_listed_once(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"model_{number}.pt").touch()
    (tmp_path / "latest.txt").write_text("model_9.pt")
    listed = []

    def counted(path: Path) -> object:
        listed.append(path)
        return scandir(path)

    scandir = os.scandir
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "scandir", counted)
        point(tmp_path, [f"model_{number}.pt" for number in range(1999, 0, -1)], fresh=True)
    assert listed.count(tmp_path) == 1


def test_what_accompanies_another_that_was_brought_comes_too(tmp_path: Path) -> None:
    """Actor and critic have a folder each, and what belongs to it lies there."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for part in ("actor", "critic"):
        machine.write(f"{part}/notes.txt", part)
        machine.write(f"{part}/gen-000001/state.json", "{}")
    machine.commit_all()
    restore(machine, tmp_path / "two")
    assert tree(tmp_path / "two") == tree(machine.root)
