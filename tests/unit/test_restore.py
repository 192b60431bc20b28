"""Restore: proven byte for byte, into place by one rename, never out of its root."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.clock import SystemClock
from syncd.comeback import Comeback, Request
from syncd.config import Settings
from syncd.errors import Corrupt, Permanent
from syncd.place import STAGING, clear_staging
from syncd.records import CommitRecord
from syncd.restore import Restorer
from syncd.restored import Replace
from syncd.retention import Retention
from syncd.stores.directory import DirectoryStore
from tests.workbench import LAYOUT, Machine, age, restore_newest, restorer, tree


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number in (5, 10):
        machine.write(f"run/gen-{number:06}/agents/a.bin", os.urandom(100))
        machine.write(f"run/gen-{number:06}/state.json", json.dumps({"generation": number}))
        machine.commit_all()
    return machine


def test_brings_back_names_bytes_modes_and_times(machine: Machine, tmp_path: Path) -> None:
    machine.write("run/gen-000015/agents/a.bin", "weights")
    path = machine.write("run/gen-000015/state.json", "{}")
    path.chmod(0o600)
    age(path, -100)
    (path.parent / "link").symlink_to("state.json")
    machine.commit_all()
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    got = tmp_path / "two/run/gen-000015"
    assert tree(got) == {"agents/a.bin": b"weights", "state.json": b"{}"}
    assert (got / "state.json").stat().st_mode & 0o777 == 0o600
    assert (got / "state.json").stat().st_mtime_ns == path.stat().st_mtime_ns
    assert (got / "link").readlink() == Path("state.json")
    assert not list((tmp_path / "two").glob(f"{STAGING}*"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "longer"])
def test_damaged_newest_falls_back_to_the_one_before(
    machine: Machine, tmp_path: Path, damage: str
) -> None:
    victim = tmp_path / "bucket/eigen2/checkpoints/run/gen-000010/agents/a.bin"
    data = victim.read_bytes()
    if damage == "gone":
        victim.unlink()
    else:
        changed = {
            "flipped": bytes([data[0] ^ 1]) + data[1:],
            "cut": data[:-1],
            "longer": data + b"x",
        }
        victim.write_bytes(changed[damage])
    back = restorer(tmp_path / "bucket")
    result = back.restore_newest(back.commits(), tmp_path / "two")
    assert result.record is not None
    assert result.record.checkpoint == "run/gen-000005"
    assert "run/gen-000010" in result.rejected[0]
    assert tree(tmp_path / "two") == tree(machine.root / "run/gen-000005", "run/gen-000005/")
    with pytest.raises(Corrupt):
        back.verify(next(c for c in back.commits() if isinstance(c, CommitRecord)))


def test_broken_record_is_passed_over(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bucket" / LAYOUT.commit(2)).write_bytes(b'{"format": 1')
    back = restorer(tmp_path / "bucket")
    result = back.restore_newest(back.commits(), tmp_path / "two")
    assert result.record is not None
    assert (result.record.seq, len(result.rejected)) == (1, 1)


def test_what_is_there_is_not_replaced_unless_asked(machine: Machine, tmp_path: Path) -> None:
    target = tmp_path / "two"
    restore_newest(tmp_path / "bucket", target)
    (target / "run/gen-000010/state.json").write_text("mine")
    back = restorer(tmp_path / "bucket")
    with pytest.raises(Permanent, match="there already"):
        back.restore_newest(back.commits(), target)
    back.restore_newest(back.commits(), target, Replace.DROP)
    assert tree(target / "run/gen-000010") == tree(machine.root / "run/gen-000010")


def test_what_was_replaced_can_be_kept(machine: Machine, tmp_path: Path) -> None:
    target = tmp_path / "two"
    (target / "run/gen-000010").mkdir(parents=True)
    (target / "run/gen-000010/torn").write_text("half")
    back = restorer(tmp_path / "bucket")
    aside = back.restore_newest(back.commits(), target, Replace.KEEP).put_aside
    assert aside is not None
    assert aside.parent.name == ".syncd-replaced"
    assert tree(aside) == {"torn": b"half"}
    assert tree(target / "run/gen-000010") == tree(machine.root / "run/gen-000010")


def test_tampered_record_writes_nothing_outside(machine: Machine, tmp_path: Path) -> None:
    path = tmp_path / "bucket" / LAYOUT.commit(2)
    document: dict[str, Any] = json.loads(path.read_bytes())
    document["files"][0]["path"] = "../../../escaped"
    path.write_text(json.dumps(document))
    restore_newest(tmp_path / "bucket", tmp_path / "deep/two")
    assert not list(tmp_path.rglob("escaped"))


def test_link_in_the_way_is_not_followed(machine: Machine, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "two"
    target.mkdir()
    (target / "run").symlink_to(outside)
    with pytest.raises(Permanent, match="in the way"):
        restore_newest(tmp_path / "bucket", target)
    assert list(outside.iterdir()) == []


def test_companions_come_back_beside_their_checkpoint(machine: Machine, tmp_path: Path) -> None:
    machine.write("run/config.yaml", "lr: 0.1")
    (machine.root / "run/best").symlink_to("gen-000010")
    (machine.root / "run/old").symlink_to("gen-000005")
    machine.commit_all()
    record = restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert record is not None
    assert record.checkpoint == "run/gen-000010"
    assert (tmp_path / "two/run/config.yaml").read_text() == "lr: 0.1"
    assert (tmp_path / "two/run/best").readlink() == Path("gen-000010")
    assert not (tmp_path / "two/run/old").is_symlink()


def test_a_program_that_was_written_last_is_not_what_is_brought_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("ds/global_step20/shard.bin", b"x")
    machine.write("ds/latest", "global_step20")
    machine.commit_all()
    machine.write("ds/zero_to_fp32.py", "print()\n")
    machine.commit_all()
    record = restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert record is not None
    assert record.checkpoint == "ds/global_step20"
    assert (tmp_path / "two/ds/zero_to_fp32.py").exists()


def test_tracker_names_what_was_brought_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("ds/global_step20/shard.bin", b"x")
    machine.write("ds/latest", "global_step20")
    machine.commit_all()
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert (tmp_path / "two/ds/latest").read_text() == "global_step20"


def save(machine: Machine, when: float, number: int, *paths: str) -> None:
    """One save, so many seconds ago."""
    for path in paths:
        age(machine.write(path, pickled(number)), when)
    machine.commit_all()


def pickled(number: int) -> bytes:
    return b"\x80\x02K" + bytes([number]) + b"."


def test_best_one_that_a_state_names_comes_too(tmp_path: Path) -> None:
    """Hugging Face loads it at the end: `load_best_model_at_end`."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for step in (40, 80, 120):
        machine.write(f"out/checkpoint-{step}/model.bin", str(step))
        state = {"global_step": step, "best_model_checkpoint": "/gone/out/checkpoint-40"}
        machine.write(f"out/checkpoint-{step}/trainer_state.json", json.dumps(state))
        machine.commit_all()
    record = restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert record
    assert record.checkpoint == "out/checkpoint-120"
    assert sorted(tree(tmp_path / "two/out")) == [
        "checkpoint-120/model.bin", "checkpoint-120/trainer_state.json",
        "checkpoint-40/model.bin", "checkpoint-40/trainer_state.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "state", ["[]", "{}", '{"best_model_checkpoint": null}', '{"best_model_checkpoint": "../x"}',
        '{"best_model_checkpoint": 5}', '{"best_model_checkpoint": "out/checkpoint-7"}'],
)  # fmt: skip
def test_state_that_names_no_best_one_is_no_fault(state: str, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("checkpoint-9/model.bin", "9")
    machine.write("checkpoint-9/nested/trainer_state.json", state)
    machine.commit_all()
    assert restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert len(tree(tmp_path / "two")) == 2


def test_best_one_of_long_ago_comes_beside_the_last(tmp_path: Path) -> None:
    """Lightning's `save_top_k=1` with `save_last`: the state in `last.ckpt` names the best."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    save(machine, 900, 0, "epoch=0-step=40.ckpt", "last.ckpt")
    save(machine, 880, 1, "epoch=1-step=80.ckpt", "last.ckpt")
    for epoch in (2, 3, 4):
        save(machine, 800 - 100 * epoch, epoch, "last.ckpt")
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    there = {"last.ckpt": pickled(4), "epoch=1-step=80.ckpt": pickled(1)}
    assert tree(tmp_path / "two") == there


def test_best_one_of_long_ago_comes_by_its_name(tmp_path: Path) -> None:
    """Ignite's and MMEngine's: a best one is never due, and nobody's state names it."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    save(machine, 900, 0, "checkpoint_0.pt", "best_model_1_loss=0.9.pt")
    save(machine, 880, 1, "checkpoint_1.pt", "best_model_1_loss=0.8.pt")
    for epoch in (2, 3, 4):
        save(machine, 800 - 100 * epoch, epoch, f"checkpoint_{epoch}.pt")
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    there = {"checkpoint_4.pt": pickled(4), "best_model_1_loss=0.8.pt": pickled(1)}
    assert tree(tmp_path / "two") == there


def test_trials_of_a_sweep_that_have_ended_come_too(tmp_path: Path) -> None:
    """The state of a sweep of Ray Tune names what each trial has saved; other runs stay away."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    save(machine, 990, 9, "old/run_1/checkpoint_0/w.bin")
    save(machine, 980, 9, "old/run_1/checkpoint_1/w.bin")
    for number, when in ((0, 900), (1, 890)):
        save(machine, when, number, f"exp/trial_0/checkpoint_{number}/w.bin")
        save(machine, when - 700, number, f"exp/trial_1/checkpoint_{number}/w.bin")
    age(machine.write("exp/experiment_state-2026-11-28_07-00-00.json", "{}"), 180)
    machine.commit_all()
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert sorted(tree(tmp_path / "two")) == [
        "exp/experiment_state-2026-11-28_07-00-00.json",
        "exp/trial_0/checkpoint_1/w.bin",
        "exp/trial_1/checkpoint_1/w.bin",
    ]


def test_leftovers_of_a_killed_restore_are_cleared(tmp_path: Path) -> None:
    (tmp_path / f"{STAGING}1-abc/content").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    clear_staging(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_disk_that_is_too_small_is_said_before_anything_is_fetched(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=10))
    with pytest.raises(Permanent, match="free"):
        restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert tree(tmp_path / "two") == {}


def test_restored_machine_sends_nothing_again(machine: Machine, tmp_path: Path) -> None:
    from tests.workbench import CountingStore

    store = CountingStore(DirectoryStore(tmp_path / "bucket"))
    restore_newest(tmp_path / "bucket", tmp_path / "two/checkpoints")
    other = Machine(tmp_path / "two", tmp_path / "bucket", "writer-b", store=store).start()
    assert other.commit_all() == []
    assert store.sent_bytes == 0


def test_recipe_state_of_an_epoch_whose_weights_never_came_is_not_brought(tmp_path: Path) -> None:
    """As torchtune writes them: the weights, then all else over that of the epoch before."""
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for epoch, when in enumerate((300, 200)):
        age(machine.write(f"out/epoch_{epoch}/config.json", "{}"), when)
        save(machine, when, epoch, f"out/epoch_{epoch}/model.safetensors.bin")
        save(machine, when - 3, epoch, "out/recipe_state/recipe_state.pt")
    save(machine, 97, 2, "out/recipe_state/recipe_state.pt")
    record = restore_newest(machine.bucket, tmp_path / "two")
    assert record
    assert record.checkpoint == "out/epoch_1"
    assert (tmp_path / "two/out/recipe_state/recipe_state.pt").read_bytes() == pickled(1)


class Pruned:
    """A store in which training goes on elsewhere while the second large file is fetched."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._store = DirectoryStore(machine.bucket)
        self._reads = 0
        self.name, self.capabilities = self._store.name, self._store.capabilities

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, key: str, *args: Any, **kwargs: Any) -> Iterator[bytes]:
        self._reads += "/checkpoints/" in key
        if self._reads == 2:
            for step in (3, 4, 5):
                save_large(self._machine, step)
            Retention(self._store, LAYOUT, SystemClock()).prune(2)
        return self._store.read(key, *args, **kwargs)


def save_large(machine: Machine, step: int) -> None:
    for name in ("model", "optim"):
        machine.write(f"run/step-{step}/{name}.bin", bytes([step]) * 3_000_000)
    machine.commit_all()


def test_what_retention_deletes_while_it_is_fetched_is_left_for_what_is_newer(
    machine: Machine, tmp_path: Path
) -> None:
    for step in (1, 2):
        save_large(machine, step)
    store: Any = Pruned(machine)
    words: list[str] = []
    root = tmp_path / "two"
    settings = Settings(checkpoint_dir=root, state_dir=tmp_path / "state", cloud_prefix="eigen2")
    back = Restorer(store, LAYOUT, machine.transfer.files)
    comeback = Comeback(settings, back, machine.transfer, words.append)
    assert comeback.run(Request()) == 0
    assert sorted(tree(root / "run/step-5")) == ["model.bin", "optim.bin"]
    assert not (root / "run/step-2").exists()
    assert "syncd: retention has deleted run/step-2 (commit 4) meanwhile: looking again" in words


def test_what_a_trainer_writes_while_it_is_fetched_stays(machine: Machine, tmp_path: Path) -> None:
    """Where nothing may be replaced: what is brought beside a checkpoint, or asked for by name."""
    save_large(machine, 1)
    target = tmp_path / "two/run/step-1"

    class Trained(DirectoryStore):
        def read(self, key: str, *args: Any, **kwargs: Any) -> Iterator[bytes]:
            if "optim" in key:
                target.mkdir(parents=True)
                (target / "model.bin").write_bytes(b"mine")
            return super().read(key, *args, **kwargs)

    store = Trained(machine.bucket)
    back = Restorer(store, LAYOUT, machine.transfer.files)
    with pytest.raises(Permanent, match="is there already"):
        back.restore_newest(back.commits(), tmp_path / "two")
    assert tree(tmp_path / "two") == {"run/step-1/model.bin": b"mine"}
