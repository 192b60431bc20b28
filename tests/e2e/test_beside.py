"""What lies beside a checkpoint comes back with it, and never instead of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from tests.e2e.processes import Build, Machine, wait_until


def write(machine: Machine, **files: str) -> None:
    machine.checkpoints.mkdir(exist_ok=True)
    for name, text in files.items():
        data = b"\x80\x02X" + len(text).to_bytes(4, "little") + text.encode() + b"."
        (machine.checkpoints / f"{name}.pt").write_bytes(data)
    assert machine.syncd("--once").returncode == 0


def read(machine: Machine) -> dict[str, str]:
    found = machine.checkpoints.glob("*.pt")
    return {path.stem: path.read_bytes()[7:-1].decode() for path in found}


def test_text_that_is_written_after_a_checkpoint_does_not_take_its_place(build: Build) -> None:
    one, other = build("one"), build("two")
    one.write_checkpoint("step-200", {"model.bin": b"weights", "optimizer.bin": b"moments"})
    assert one.syncd("--once").returncode == 0
    one.write_checkpoint("tokenizer", {"tokenizer.json": b"{}" + b" " * 2_000_000})
    one.write_checkpoint("mlruns/0", {"meta.yaml": b"id: 0", "abc/metrics/loss": b"1 2 3"})
    assert one.syncd("--once").returncode == 0
    done = other.syncd("restore")
    assert done.returncode == 0, done.stderr
    assert (other.checkpoints / "step-200/model.bin").read_bytes() == b"weights"
    assert (other.checkpoints / "tokenizer/tokenizer.json").exists()


def test_everything_is_restored_and_nothing_older_lies_over_what_is_newer(build: Build) -> None:
    one, other = build("one"), build("two")
    write(one, optimizer="first")
    write(one, model="second", optimizer="second")
    write(one, ema="third", last="third")
    done = other.syncd("restore", "--all")
    assert done.returncode == 0, done.stderr
    assert "optimizer.pt stays in the store: what is newer lies there" in done.stderr
    third = dict.fromkeys(("ema", "last"), "third")
    assert read(other) == {"model": "second", "optimizer": "second", **third}


def test_a_restore_that_was_cut_off_is_gone_on_with(build: Build) -> None:
    one, other = build("one"), build("two")
    write(one, model="1", optimizer="1")
    write(one, last="2")
    (row, *_) = json.loads(one.syncd("ls", "--json").stdout)
    assert row["checkpoint"] == "last.pt"
    assert other.syncd("restore").returncode == 0
    whole = read(other)
    assert whole == {"model": "1", "optimizer": "1", "last": "2"}
    for name in ("model", "optimizer"):
        (other.checkpoints / f"{name}.pt").unlink()
    again = other.syncd("restore")
    assert (again.returncode, set(read(other))) == (0, {"last"}), "deleted on purpose"
    (other.checkpoints / f".syncd-beside-{row['seq']}").mkdir()
    again = other.syncd("restore")
    assert again.returncode == 0
    assert "going on with the restore of last.pt, which was cut off" in again.stderr
    assert "restored last.pt" not in again.stderr, "that was done before"
    assert read(other) == whole
    assert not list(other.checkpoints.glob(".syncd-beside-*"))


def test_a_tracker_that_was_ahead_of_its_checkpoint_is_set_right_and_said(build: Build) -> None:
    """The small text is in the store long before the gigabytes that it names."""
    one, other = build("one"), build("two")
    write(one, epoch_1="weights")
    (one.checkpoints / "last_checkpoint").write_text("/where/it/ran/epoch_2.pt")
    (one.checkpoints / "epoch_2.pt").write_bytes(b"\x80\x02half of it")
    one.syncd("--once")
    done = other.syncd("restore")
    assert done.returncode == 0
    assert "last_checkpoint names epoch_1.pt now" in done.stderr
    found = (other.checkpoints / "last_checkpoint").read_text()
    assert found == "/where/it/ran/epoch_1.pt"
    assert other.syncd("--once").returncode == 0
    third = build("three")
    assert third.syncd("restore").returncode == 0, "and it is committed as it is now"
    assert (third.checkpoints / "last_checkpoint").read_text() == found


TRAINER = r"""
import logging, pathlib, sys, threading
out = pathlib.Path("checkpoints/out")
out.mkdir(parents=True)
(out / "args.yaml").write_text("rate: 1")
logging.basicConfig(filename=out / "train.log", level="INFO")
events = (out / "events.out.tfevents.1.host").open("ab", buffering=0)
ended = threading.Event()
def log():
    while not ended.wait(0.05):
        logging.info("a line")
        events.write(b"an event")
threading.Thread(target=log).start()
for step in sys.stdin:
    for name in (f"model_{step.strip()}.pth", "optimizer.pth"):
        head = b"\x80\x02X" + len(step).to_bytes(4, "little")
        (out / name).write_bytes(head + step.encode() + b".")
ended.set()
"""


def test_trainer_that_logs_all_the_time_beside_its_checkpoints(build: Build) -> None:
    """Its log and its events are always open, and never at rest."""
    one, other = build("one"), build("two")
    one.start()
    words = [sys.executable, "-c", TRAINER]
    with subprocess.Popen(words, cwd=one.disk, stdin=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdin
        for step in (1, 2):
            print(step, file=trainer.stdin, flush=True)
            wait_until(is_committed(one, f"model_{step}.pth"), f"model_{step}.pth", 30)
        one.kill()
        trainer.kill()
    done = other.syncd("restore")
    assert done.returncode == 0, done.stderr
    found, there = other.checkpoints / "out", one.checkpoints / "out"
    for name in ("model_1.pth", "model_2.pth", "optimizer.pth", "args.yaml"):
        assert (found / name).read_bytes() == (there / name).read_bytes()
    for name in ("train.log", "events.out.tfevents.1.host"):
        assert (there / name).read_bytes().startswith((found / name).read_bytes())
        assert (found / name).stat().st_size > 100
    assert other.syncd("verify").returncode == 0


def is_committed(machine: Machine, name: str) -> Callable[[], bool]:
    commits = machine.disk.parent / "bucket/eigen2/.syncd/commits"
    return lambda: any(f'"{name}"' in path.read_text() for path in commits.glob("*.json"))
