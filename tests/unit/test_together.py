"""Which files of a folder make one checkpoint, by their names."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from syncd.profiles import units
from syncd.scan import scan
from tests.workbench import Machine, age, restore_newest, restorer, tree

CASES = {
    "networks of one epoch": ["netG_epoch_5.pth netD_epoch_5.pth", "netG_6.pth netD_6.pth"],
    "generator and discriminator": ["G_1000.pth D_1000.pth", "latest_net_G.pth latest_net_D.pth"],
    "a rank's own, and text": ["model_000100.pt optim_000100_rank0.pt meta_000100.json"],
    "agents": ["agent_0_gen5.pth agent_1_gen5.pth", "agent_0_gen6.pth agent_1_gen6.pth"],
    "written over": ["model.pt optimizer.pt scheduler.pt", "config.json"],
    "moments": ["best_model.pt best_optim.pt", "last_model.pt last_optim.pt"],
    "moments, whole each": ["best.pt", "last.pt", "epoch10.pt"],
    "Lightning": ["epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt", "last.ckpt"],
    "Lightning again": ["epoch=1-step=10.ckpt", "epoch=1-step=10-v1.ckpt"],
    "MMDetection": ["epoch_10.pth", "best_bbox_mAP_epoch_10.pth", "epoch_11.pth"],
    "timm": ["checkpoint-10.pth.tar", "checkpoint-11.pth.tar", "last.pth.tar", "best.pth.tar"],
    "Ultralytics": ["last.pt", "best.pt", "yolov8n.pt"],
    "TensorFlow": ["ckpt-1.index ckpt-1.data-00000-of-00001", "ckpt-2.index"],
    "Hugging Face, at the end": ["model.safetensors training_args.bin", "config.json"],
    "shards": ["model-00001-of-00002.safetensors model-00002-of-00002.safetensors optimizer.pt"],
    "perhaps always open": ["model.pt optimizer.pt", "replay.bin", "optuna.db", "memory.npy"],
    "a database has no step": ["model_1.pt optim_1.pt", "study_1.db"],
    "names by chance": ["3f2a9c1b7d.npz", "9c1b7d3f2a.npz"],
    "one kind": ["model_10.pt", "model_20.pt"],
    "a mark of our own": ["a#.pt", "a1.pt b1.pt", "a2.pt b2.pt"],
}  # fmt: skip


@pytest.mark.parametrize("names", CASES.values(), ids=CASES)
def test_what_belongs_together(names: list[str], tmp_path: Path) -> None:
    for name in " ".join(names).split():
        (tmp_path / name).write_bytes(b"x")
    found = scan(tmp_path)
    assert found
    checkpoints = [{path or unit.path for path, _ in unit.files} for unit in units(found)]
    assert sorted(map(sorted, checkpoints)) == sorted(sorted(line.split()) for line in names)


def test_one_that_others_are_still_to_come_to_is_not_committed(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for name in ("netG_epoch_1.pth", "netD_epoch_1.pth"):
        machine.write(name, b"\x80\x02.")
    (first,) = machine.commit_all()
    assert [entry.path for entry in first.files] == ["netD_epoch_1.pth", "netG_epoch_1.pth"]
    machine.write("netG_epoch_2.pth", b"\x80\x02.")
    assert machine.commit_all() == []
    machine.write("netD_epoch_2.pth", b"\x80\x02.")
    (second,) = machine.commit_all()
    assert second.checkpoint == "netG_epoch_2.pth"
    assert len(second.files) == 2


def test_files_that_are_written_over_come_back_of_one_save(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for content in (b"\x80\x02N.", b"\x80\x02K\x01."):
        machine.write("model.pt", content)
        machine.write("optimizer.pt", content)
        (record,) = machine.commit_all()
        assert record.checkpoint == "model.pt"
        restore_newest(machine.bucket, tmp_path / f"back-{record.seq}")
        assert set(tree(tmp_path / f"back-{record.seq}").values()) == {content}
        assert len(tree(tmp_path / f"back-{record.seq}")) == 2
    machine.write("model.pt", b"\x80\x02K\x02.")
    assert machine.commit_all() == [], "the optimizer, written last before, is of the save before"


def write_over(machine: Machine, content: bytes) -> None:
    for name in ("model.pt", "optimizer.pt"):
        machine.write(name, b"\x80\x02" + content)


def back(machine: Machine, target: Path) -> dict[str, bytes]:
    assert restore_newest(machine.bucket, target)
    return tree(target)


def test_a_restore_brings_the_newest_of_each_file_that_lay_beside_it(tmp_path: Path) -> None:
    """Nobody knows which of them the trainer goes on from."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    age(machine.write("other/run.pt", b"\x80\x02N."), 86400)
    machine.commit_all()
    write_over(machine, b"N.")
    for name in ("epoch_1.pt", "epoch_2.pt", "best.pt"):
        machine.write(name, b"\x80\x02N.")
        machine.commit_all()
    machine.write("replay.bin", b"written last")
    machine.commit_all()
    expected = {"model.pt", "optimizer.pt", "epoch_2.pt", "best.pt", "replay.bin"}
    assert set(back(machine, tmp_path / "two")) == expected


def test_a_file_that_is_written_last_does_not_hide_the_checkpoint_beside_it(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for days, path in ((2, "elsewhere/step-9/a.bin"), (1, "step-1/a.bin"), (0, "step-2/a.bin")):
        age(machine.write(path, path.encode()), days * 86400)
        machine.commit_all()
    machine.write("study.db", b"SQLite, as far as anyone knows")
    machine.commit_all()
    assert set(back(machine, tmp_path / "two")) == {"study.db", "step-2/a.bin"}
    machine.write("step-3/a.bin", b"newer than the study")
    machine.commit_all()
    assert set(back(machine, tmp_path / "three")) == {"study.db", "step-3/a.bin"}


def test_what_was_written_at_the_time_comes_too_wherever_it_lies(tmp_path: Path) -> None:
    """The memory of DreamerV3 lies beside its networks, those of BasicSR in a third folder."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    saves = [
        (90, "old/run.bin"),
        (80, "old/run.bin"),
        (50, "ckpt/agent.bin"),
        (45, "nets/deep/a_1.pth"),
        (20, "ckpt/agent.bin"),
        (15, "nets/deep/a_2.pth"),
        (5, "replay/episode.bin"),
        (0, "replay/other.bin"),
    ]
    for minutes, path in saves:
        age(machine.write(path, b"\x80\x02K" + bytes([minutes]) + b"."), minutes * 60)
        assert machine.commit_all()
    brought = back(machine, tmp_path / "two")
    own = {"replay/episode.bin", "replay/other.bin"}
    assert set(brought) == own | {"ckpt/agent.bin", "nets/deep/a_2.pth"}
    assert brought["ckpt/agent.bin"][3] == 20


def test_what_is_there_already_stays_as_it_is(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    write_over(machine, b"N.")
    machine.commit_all()
    machine.write("replay.bin", b"written last")
    machine.commit_all()
    (tmp_path / "two").mkdir()
    (tmp_path / "two/optimizer.pt").write_bytes(b"mine")
    assert set(back(machine, tmp_path / "two")) == {"optimizer.pt", "replay.bin"}
    assert (tmp_path / "two/optimizer.pt").read_bytes() == b"mine"


def test_one_beside_it_that_is_not_intact_is_named_and_an_older_one_comes(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for name in ("epoch_1.pt", "epoch_2.pt", "last.bin"):
        machine.write(name, b"\x80\x02N.")
        assert machine.commit_all()
    (machine.bucket / "eigen2/checkpoints/epoch_2.pt").write_bytes(b"changed")
    way_back = restorer(machine.bucket)
    result = way_back.restore_newest(way_back.commits(), tmp_path / "two")
    assert set(tree(tmp_path / "two")) == {"epoch_1.pt", "last.bin"}
    assert [words for words in result.rejected if "epoch_2.pt" in words]


def test_what_finds_no_room_beside_it_is_named_and_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for name, size in (("replay.bin", 5000), ("last.bin", 10)):
        machine.write(name, b"x" * size)
        assert machine.commit_all()
    room = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: room)
    way_back = restorer(machine.bucket)
    result = way_back.restore_newest(way_back.commits(), tmp_path / "two")
    assert set(tree(tmp_path / "two")) == {"last.bin"}
    assert result.rejected == []
    assert ["replay.bin needs 0 MB" in words for words in result.left_out] == [True]
