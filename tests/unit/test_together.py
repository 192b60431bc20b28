"""Which files of a folder make one checkpoint, by their names."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from syncd.alongside import cut_off, noted
from syncd.clock import SystemClock
from syncd.errors import Transient
from syncd.records import CommitRecord
from syncd.retention import Retention
from syncd.scan import scan
from syncd.stores.directory import DirectoryStore
from syncd.units import units
from tests.workbench import LAYOUT, Machine, age, restore_newest, restorer, tree

CASES = {
    "networks of one epoch": ["netG_epoch_5.pth netD_epoch_5.pth", "netG_6.pth netD_6.pth"],
    "generator and discriminator": ["G_1000.pth D_1000.pth", "latest_net_G.pth latest_net_D.pth"],
    "a rank's own": ["model_000100.pt optim_000100_rank0.pt", "meta_000100.json"],
    "decimals": ["ema_0.9999_100000.pt model100000.pt opt100000.pt", "model200000.pt"],
    "written over": ["model.pt optimizer.pt lr_scheduler.pt model_ema.pt", "config.json"],
    "skorch": ["params.pt optimizer.pt criterion.pt", "history.json"],
    "moments": ["best_model.pt best_optim.pt", "lastModel.pt lastOptim.pt", "crashModel.pt"],
    "moments, whole each": [
        "best.pt",
        "last.pt",
        "epoch10.pt",
        "lowest_loss.pt",
        "INTERRUPTED.pth",
    ],
    "of two trainers": ["sac_actor.pt sac_critic.pt", "td3_actor.pt td3_critic.pt", "dqn.pt"],
    "epochs": ["model_ep1.pt", "model_ep2.pt", "ep_1.pth"],
    "weights under another name": ["last.pt optimizer.pt", "best.pt", "epoch_6.pt", "epoch_7.pt"],
    "of a step": ["checkpoint_5.pt optimizer_5.pt", "checkpoint_6.pt optim_6.pt sched_6.pt"],
    "of a moment": ["last.pt last_optimizer.pt", "best.pt best_optimizer.pt"],
    "of an epoch": ["epoch_5.pt optimizer_epoch_5.pt", "epoch_6.pt"],
    "weights by name": ["model.pt optimizer.pt", "last.pt", "checkpoint.pt"],
    "nobody knows which": ["last.pt", "checkpoint.pt", "optimizer.pt"],
    "no optimizer": ["last.pt", "ema.pt scheduler.pt"],
    "agents": ["agent_0.pt", "agent_1.pt", "worker_0.pt"],
    "Lightning": ["epoch=1-step=10.ckpt", "epoch=2-step=20.ckpt", "last.ckpt"],
    "Lightning again": ["epoch=1-step=10.ckpt", "epoch=1-step=10-v1.ckpt"],
    "MMDetection": ["epoch_10.pth", "best_bbox_mAP_epoch_10.pth", "epoch_11.pth"],
    "timm": ["checkpoint-10.pth.tar", "checkpoint-11.pth.tar", "model_best.pth.tar"],
    "Ultralytics": ["last.pt", "best.pt", "yolov8n.pt", "epoch8.pt", "ResNet50.pt", "MobileNet.pt"],
    "TensorFlow": ["ckpt-1.index ckpt-1.data-00000-of-00001 ckpt-1.meta", "ckpt-2.index"],
    "shards": ["model-00001-of-00002.safetensors model-00002-of-00002.safetensors optimizer.pt"],
    "perhaps always open": ["model.pt optimizer.pt", "replay.bin", "history.pkl", "memory.npz"],
    "names by chance": ["3f2a9c1b7d.npz", "9c1b7d3f2a.npz"],
    "one kind": ["model_10.pt", "model_20.pt"],
    "scores": ["best_model_1_loss=-4.57.pt", "best_model_1_loss=-6.83.pt", "checkpoint_1.pt"],
    "Paddle": ["latest.pdopt latest.pdparams latest.states", "3.pdparams 3.pdopt 3.pdema"],
    "letters": ["e5.pt", "model_5.pt", "model_e5.pt", "best_1e-4.pt", "model.pt", "model_e.pt"],
    "a memory": ["model_1.pt", "random_states_1.pkl", "states.pkl", "training_1.pt", "trainer.pt"],
    "Marian": [
        "model.npz model.npz.optimizer.npz model.npz.progress.yml model.npz.yml",
        "model.npz.best-bleu.npz",
        "model.npz.best-bleu.npz.decoder.yml",
        "model.npz.tmp.npz",
    ],
    "gensim": ["x.model x.model.wv.vectors.npy x.model.syn1neg.npy", "y.model", "z.kv"],
    "of other moments": ["model.pt", "model.pt.best.pt", "model.pt.2.pt", "best.ckpt.pth"],
    "texts beside": ["model_1.pt", "model_1.pt.json", "model_1.pt.md5", "model_1.pt.1"],
    "AllenNLP": ["model_state_e4_b0.th training_state_e4_b0.th", "best.th"],
    "KAIR": ["20000_G.pth 20000_E.pth 20000_optimizerG.pth", "15000_G.pth"],
    "TD3": ["X-v2_0_actor X-v2_0_actor_optimizer X-v2_0_critic X-v2_0_critic_optimizer", "actor"],
    "names without an ending": ["model", "policy", "value", "LICENSE", "0d", "0e", "0g"],
    "a mark of our own": ["model#.pt", "model1.pt optim1.pt", "model2.pt optim2.pt"],
}


WHOLE = (
    "checkpoint.pth 1epoch.pth 2epoch.pth",
    "checkpoint_latest.pth checkpoint_best.pth",
    "checkpoint_final.pth",
    "model_best.pth model_0999.pth model_1999.pth model_final.pth",
    "model_epoch_1.pt model_epoch_2.pt",
    "last.ckpt epoch=1-step=10.ckpt epoch=2-step=20.ckpt",
)
PARTS = (
    "model.safetensors",
    "model.safetensors model_ema.safetensors",
    "model_0.pt model_1.pt",
    "model-00001-of-00003.safetensors model-00003-of-00003.safetensors",
    "last.pt optimizer.pt",
    "last.pt replay.bin",
    "agent_5.pt agent_9.pt",
    "netG.pth netD.pth",
)


@pytest.mark.parametrize(("names", "whole"), [*((n, 1) for n in WHOLE), *((n, 0) for n in PARTS)])
def test_what_is_whole_though_a_configuration_lies_beside_it(
    names: str, whole: int, tmp_path: Path
) -> None:
    """Detectron2, ESPnet, nnU-Net: a folder with texts in it is one set where parts are in it."""
    for name in [*names.split(), "config.yaml", "train.log", "plots/loss.png"]:
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"x")
    found = scan(tmp_path)
    assert found
    checkpoints = {unit.path for unit in units(found) if not unit.companion}
    assert checkpoints == ({f"run/{name}" for name in names.split()} if whole else {"run"})


@pytest.mark.parametrize(
    ("folder", "names", "whole"),
    [
        ("epoch_5", "checkpoint.pt", False),
        ("000500", "checkpoint.pt", False),
        ("epoch_5", "last.pt best.pt", False),
        ("fold_0", "checkpoint_latest.pth checkpoint_best.pth", True),
        ("run-2026", "G_20.pth D_20.pth G_40.pth D_40.pth", True),
        ("44k", "G_20.pth D_20.pth", True),
        ("44k", "G_0.pth D_0.pth", False),
        ("out", "checkpoint.pt trainer_state.json", False),
        ("out", "G_20.pth D_20.pth G_40.pth D_40.pth trainer_state.json", False),
    ],
)
def test_folder_of_a_step_is_one_checkpoint_whatever_is_in_it(
    folder: str, names: str, whole: bool, tmp_path: Path
) -> None:
    """Its series is that of the folders: of the files in it each would be one of its own."""
    (tmp_path / "run" / folder).mkdir(parents=True)
    for name in [*names.split(), "config.yaml", "plots_7/sample.png"]:
        (tmp_path / "run" / folder / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / folder / name).write_bytes(b"x")
    (tmp_path / "run" / folder / "metrics.json").write_bytes(bytes(2_000_000))  # a long log
    found = scan(tmp_path)
    assert found
    assert (f"run/{folder}" not in {unit.path for unit in units(found)}) == whole


@pytest.mark.parametrize(
    "files",
    [
        "checkpoint_000005/meta.bin checkpoint_000005/model/checkpoint.pt",
        "gen-5/meta.json gen-5/optim/o.bin gen-5/model/checkpoint.pt",
        "latest/model.bin latest/agent/best.pt latest/agent/last.pt",
        "latest/meta.json latest/optim/o.bin latest/model/checkpoint.pt",
        "last/model.bin last/state/random_states_0.pkl last/state/optimizer.bin",
    ],
)
def test_folder_in_a_set_is_a_part_of_it(files: str, tmp_path: Path) -> None:
    for name in files.split():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"x")
        (tmp_path / "run" / name).with_name("config.json").write_text("{}")
    found = scan(tmp_path)
    assert found
    assert [unit.path for unit in units(found)] == [f"run/{files.partition('/')[0]}"]


def test_state_of_accelerate_in_a_run_is_not_all_of_the_run(tmp_path: Path) -> None:
    for name in (
        "out/random_states_0.pkl",
        "out/checkpoint-500/model.bin",
        "out/checkpoint-1000/model.bin",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = scan(tmp_path)
    assert found
    assert {"out/checkpoint-500", "out/checkpoint-1000"} <= {unit.path for unit in units(found)}


def test_what_is_whole_is_part_of_a_set_with_a_state_in_a_folder_beside_it(tmp_path: Path) -> None:
    for name in ("run/last.pt", "run/config.yaml", "run/rng/rank0.bin"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = scan(tmp_path)
    assert found
    assert [unit.path for unit in units(found)] == ["run"]


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
    assert first.checkpoint == "netD_epoch_1.pth"
    assert [entry.path for entry in first.files] == ["netD_epoch_1.pth", "netG_epoch_1.pth"]
    machine.write("netG_epoch_2.pth", b"\x80\x02.")
    assert machine.commit_all() == []
    (waiting,) = machine.pipeline.look().incomplete
    assert waiting.reason.startswith("there is no file like netD_epoch_1.pth")
    machine.write("netD_epoch_2.pth", b"\x80\x02.")
    (second,) = machine.commit_all()
    assert second.checkpoint == "netD_epoch_2.pth"
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


def test_weights_under_another_name_come_back_with_their_optimizer(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for content in (b"\x80\x02N.", b"\x80\x02K\x01."):
        for name in ("optimizer.pt", "last.pt"):
            machine.write(name, content)
        (record,) = machine.commit_all()
        assert record.checkpoint == "last.pt"
    machine.write("optimizer.pt", b"\x80\x02K\x02.")
    assert machine.commit_all() == [], "the weights, written last before, are of the save before"
    restore_newest(machine.bucket, tmp_path / "back")
    assert [*tree(tmp_path / "back").values()] == [content] * 2


def write_over(machine: Machine, content: bytes) -> None:
    for name in ("model.pt", "optimizer.pt"):
        machine.write(name, b"\x80\x02" + content)


def back(machine: Machine, target: Path) -> dict[str, bytes]:
    assert restore_newest(machine.bucket, target)
    return tree(target)


def test_a_restore_brings_the_newest_of_each_file_that_lay_beside_it(tmp_path: Path) -> None:
    """Nobody knows which of them the trainer goes on from."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for name in ("other/run.pt", "old_7.pt"):
        age(machine.write(name, b"\x80\x02N."), 2 * 86400)
        machine.commit_all()
    write_over(machine, b"N.")
    for seconds, name in ((30, "epoch_1.pt"), (20, "epoch_2.pt"), (15, "best.pt")):
        age(machine.write(name, b"\x80\x02N."), seconds)
        machine.commit_all()
    age(machine.write("replay.bin", b"written last"), 10)
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
        (89, "old/run.bin"),
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
    for seconds, name in ((30, "epoch_1.pt"), (20, "epoch_2.pt"), (10, "last.bin")):
        age(machine.write(name, b"\x80\x02N."), seconds)
        assert machine.commit_all()
    (machine.bucket / "eigen2/checkpoints/epoch_2.pt").write_bytes(b"changed")
    way_back = restorer(machine.bucket)
    result = way_back.restore_newest(way_back.commits(), tmp_path / "two")
    assert set(tree(tmp_path / "two")) == {"epoch_1.pt", "last.bin"}
    assert [words for words in result.along.rejected if "epoch_2.pt" in words]


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
    assert result.along.rejected == []
    assert ["replay.bin needs 0 MB" in words for words in result.along.left_out] == [True]


def saved(number: int) -> bytes:
    return b"\x80\x02K" + bytes([number]) + b"."


def test_a_file_that_was_committed_alone_is_followed_by_whole_saves(tmp_path: Path) -> None:
    """The first file of the first save, or what an older version has left in the bucket."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("model.pt", saved(1))
    assert len(machine.commit_all()) == 1
    machine.write("optimizer.pt", saved(1))
    (first,) = machine.commit_all()
    assert len(first.files) == 2
    for number in (2, 3):
        machine.write("model.pt", saved(number))
        assert machine.commit_all() == []
        machine.write("optimizer.pt", saved(number))
        (record,) = machine.commit_all()
        assert len(record.files) == 2
        assert set(back(machine, tmp_path / f"back-{number}").values()) == {saved(number)}


def test_one_that_is_left_of_several_is_committed_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    write_over(machine, b"N.")
    machine.commit_all()
    (machine.root / "optimizer.pt").unlink()
    machine.write("model.pt", saved(2))
    assert machine.commit_all() == [], "perhaps it was deleted to be written anew"
    machine.write("model.pt", saved(3))
    (record,) = machine.commit_all()
    assert not record.beside
    assert back(machine, tmp_path / "two") == {"model.pt": saved(3)}


def test_a_step_is_not_whole_without_the_file_that_named_the_one_before(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    parts = ("model", "optimizer", "scheduler")
    for part in parts:
        machine.write(f"{part}_1.pt", saved(1))
    assert len(machine.commit_all()) == 1
    for part in parts[1:]:
        machine.write(f"{part}_2.pt", saved(2))
        assert machine.commit_all() == []
    machine.write("model_2.pt", saved(2))
    (record,) = machine.commit_all()
    assert len(record.files) == 3


def test_a_step_is_not_whole_because_the_one_before_was_deleted(tmp_path: Path) -> None:
    """The room for a step is made before it is written; and what was there only the log knows."""
    for life in ("one", "two"):
        machine = Machine(tmp_path / life, tmp_path / "bucket", life).start()
        for part in ("model", "optimizer"):
            if life == "one":
                machine.write(f"{part}_1.pt", saved(1))
        assert len(machine.commit_all()) == (life == "one")
        for path in machine.root.glob("*_1.pt"):
            path.unlink()
        machine.write("model_2.pt", saved(2))
        assert machine.commit_all() == []
        (waiting,) = machine.pipeline.look().incomplete
        assert waiting.reason.startswith("there is no file like optimizer_1.pt")


def test_a_second_step_alone_is_the_new_manner(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for name in ("model_1.pt", "optim_1.pt"):
        machine.write(name, saved(1))
    machine.commit_all()
    machine.write("model_2.pt", saved(2))
    assert machine.commit_all() == []
    machine.write("model_3.pt", saved(3))
    both = machine.commit_all() + machine.commit_all()
    assert [record.checkpoint for record in both] == ["model_3.pt", "model_2.pt"]
    assert both[1].behind == both[0].seq
    machine.write("model_4.pt", saved(4))
    assert len(machine.commit_all()) == 1


def test_a_file_lacks_nothing_that_a_directory_of_its_name_had(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for name in ("model_1/weights.bin", "model_1/optimizer.bin"):
        machine.write(name, saved(1))
    assert len(machine.commit_all()) == 1
    machine.write("model_2", b"a" * (2 << 20))
    assert [record.profile for record in machine.commit_all()] == ["file"]


def test_what_is_being_written_aside_holds_up_the_files_it_belongs_to(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    write_over(machine, b"N.")
    machine.write("optimizer.pt.tmp", b"half")
    found = scan(machine.root)
    assert found
    (unit,) = units(found)
    assert [name for name, _ in unit.unfinished] == ["optimizer.pt.tmp"]


def test_a_part_that_comes_later_leaves_the_checkpoint_its_name(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    write_over(machine, b"N.")
    machine.commit_all()
    machine.write("ema.pt", saved(1))
    (record,) = machine.commit_all()
    assert (record.checkpoint, len(record.files)) == ("model.pt", 3)


def test_a_link_of_any_length_beside_a_checkpoint_is_passed_over(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("model.pt", saved(1))
    (machine.root / "best").symlink_to("x" * 300)
    assert len(machine.commit_all()) == 2
    assert back(machine, tmp_path / "two") == {"model.pt": saved(1)}


@pytest.mark.parametrize("ends", [KeyboardInterrupt, Transient("the store does not answer")])
def test_a_restore_that_ends_before_all_is_there_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: BaseException
) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    write_over(machine, b"N.")
    machine.commit_all()
    machine.write("replay.bin", b"written last")
    machine.commit_all()
    way_back, two = restorer(machine.bucket), tmp_path / "two"
    commits = way_back.commits()
    real = way_back.restore

    def dies(record: CommitRecord, *args: Any, **kwargs: Any) -> Path | None:
        if record.beside:
            raise ends
        return real(record, *args, **kwargs)

    monkeypatch.setattr(way_back, "restore", dies)
    with pytest.raises((KeyboardInterrupt, Transient)):
        way_back.restore_newest(commits, two)
    monkeypatch.undo()
    assert set(tree(two)) == {"replay.bin"}
    half = cut_off(two, commits)
    assert half
    with noted(two, half):
        along = way_back.bring_along(half, commits, two)
    assert [record.checkpoint for record in along.brought] == ["model.pt"]
    assert set(tree(two)) == {"replay.bin", "model.pt", "optimizer.pt"}
    assert cut_off(two, commits) is None
    assert scan(two)
    assert not list(two.glob(".syncd-*"))


def save(machine: Machine, number: int, at: float, model: bool = True) -> None:
    """The state first, then the model; ``at`` is how many seconds ago."""
    age(machine.write("state.json", f'{{"epoch": {number}}}'), at)
    machine.commit_all()
    if model:
        age(machine.write("model.pt", b"\x80\x02K" + bytes([number]) + b"."), at - 5)
        assert machine.commit_all()


def test_text_of_a_save_that_never_arrived_is_not_mixed_with_the_model_before(
    tmp_path: Path,
) -> None:
    """The text is in the store at once, the model after an hour, or never."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    age(machine.write("config.yaml", "rate: 1"), 10_000)
    for number, at in ((1, 3000), (2, 2000)):
        save(machine, number, at)
    save(machine, 3, 1000, model=False)
    age(machine.write("config.yaml", "rate: 2"), 500)
    machine.commit_all()
    model = b"\x80\x02K\x02."
    expected = {"model.pt": model, "state.json": b'{"epoch": 2}', "config.yaml": b"rate: 2"}
    assert back(machine, tmp_path / "two") == expected
    for path in machine.bucket.rglob("*"):  # the one that belongs cannot be read any more
        if path.is_file() and path.read_bytes() == expected["state.json"]:
            path.write_bytes(b"#")
    result = restorer(machine.bucket)
    along = result.restore_newest(result.commits(), tmp_path / "three").along
    assert [words.partition(" ")[0] for words in along.rejected] == ["state.json"]
    assert (tmp_path / "three/state.json").read_bytes() == b'{"epoch": 3}'


def test_pruning_leaves_the_text_of_the_step_that_stays(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number, at in ((1, 300), (2, 200), (3, 100)):
        age(machine.write(f"meta_{number}.json", "{}"), at)
        machine.commit_all()
        if number < 3:
            age(machine.write(f"model_{number}.pt", b"\x80\x02N."), at - 5)
            machine.commit_all()
    Retention(DirectoryStore(machine.bucket), LAYOUT, SystemClock()).prune(1)
    expected = {"meta_2.json", "meta_3.json", "model_2.pt"}
    assert set(back(machine, tmp_path / "two")) == expected


def test_texts_that_differ_in_a_number_come_back_of_one_save(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number, at in ((1, 3000), (2, 1000)):
        age(machine.write("model.pt", b"\x80\x02K" + bytes([number]) + b"."), at)
        machine.commit_all()
        for rank in range(4):
            text = f'{{"save": {number}}}'
            age(machine.write(f"rank_{rank}.json", text), at - 0.01 * (rank + 1) ** 2)
            machine.commit_all()
    found = back(machine, tmp_path / "two")
    assert {found[f"rank_{rank}.json"] for rank in range(4)} == {b'{"save": 2}'}


def test_of_logs_and_code_the_newest_comes(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    age(machine.write("model.pt", b"\x80\x02N."), 1000)
    for at, text in ((1001, "epoch 1"), (400, "epoch 1\nTraceback")):
        age(machine.write("train.log", text), at)
        age(machine.write("train.ipynb", text), at)
        machine.commit_all()
    found = back(machine, tmp_path / "two")
    assert found["train.log"] == found["train.ipynb"] == b"epoch 1\nTraceback"


def test_a_text_belongs_to_the_checkpoint_in_its_own_folder(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for generation, at, arrives in ((1, 996, True), (2, 106, False)):
        age(machine.write("critic/progress.json", f"{generation}"), at)
        machine.commit_all()
        if arrives:
            age(machine.write("critic/gen-000001/state.json", "{}"), at - 1)
            machine.commit_all()
    for generation, at in ((1, 600), (2, 105)):
        age(machine.write(f"actor/gen-00000{generation}/state.json", "{}"), at)
        machine.commit_all()
    assert back(machine, tmp_path / "two")["critic/progress.json"] == b"1"


def test_pruning_leaves_the_text_that_belongs_to_the_newest_checkpoint(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    save(machine, 1, 3000)
    save(machine, 2, 2000)
    for number, at in ((3, 1000), (4, 900)):
        save(machine, number, at, model=False)
    Retention(DirectoryStore(machine.bucket), LAYOUT, SystemClock()).prune(1)
    commits = [c for c in restorer(machine.bucket).commits() if isinstance(c, CommitRecord)]
    assert sorted(c.checkpoint for c in commits) == ["model.pt", "state.json", "state.json"]
    assert back(machine, tmp_path / "two")["state.json"] == b'{"epoch": 2}'


def test_a_run_with_steps_in_it_is_no_set_of_all_of_them(tmp_path: Path) -> None:
    """Ray's trials, and scripts with a folder for each epoch beside their settings."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for path in (
        "exp/trial_1/checkpoint_000000/model.pt",
        "exp/trial_1/checkpoint_000000/inner/epoch_1/a.pt",
        "exp/trial_1/result.json", "exp/trial_1/params.pkl", "exp/experiment_state.json",
        "run7/epoch_1/model.pt", "run7/epoch_1/optimizer.pt", "run7/config.json",
        "step_5/iter_1/a.pt", "step_5/b.pt",
    ):  # fmt: skip
        machine.write(path, "{}" if path.endswith("json") else b"\x80\x02N.")
    records = {record.checkpoint: len(record.files) for record in machine.commit_all()}
    assert records == {
        "exp/trial_1/checkpoint_000000": 2, "exp/trial_1/result.json": 1,
        "exp/trial_1/params.pkl": 1, "exp/experiment_state.json": 1,
        "run7/epoch_1": 2, "run7/config.json": 1, "step_5": 2,
    }  # fmt: skip
    machine.write("run7/epoch_2/model.pt", b"\x80\x02N.")
    machine.write("run7/epoch_2/optimizer.pt", b"\x80\x02N.")
    assert [record.checkpoint for record in machine.commit_all()] == ["run7/epoch_2"]
    assert restore_newest(machine.bucket, tmp_path / "two")
    found = tree(tmp_path / "two")
    assert {"run7/epoch_2/model.pt", "run7/epoch_2/optimizer.pt", "run7/config.json"} <= set(found)
