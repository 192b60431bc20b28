"""Machines that save one checkpoint together: real daemons, a disk each, one bucket."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from syncd.parts import MARK_SLACK
from syncd.records import Layout
from tests.e2e.processes import Build, Machine, wait_until
from tests.servers.fixtures import Bucket
from tests.workbench import tree

pytestmark = pytest.mark.first

WORLD = 3

Team = Callable[..., list[Machine]]


def team(build: Build, world: int = WORLD, **settings: str) -> list[Machine]:
    """Machines of one training."""
    return [member(build, rank, world, **settings) for rank in range(world)]


def member(build: Build, rank: int, world: int = WORLD, name: str = "", **more: str) -> Machine:
    ranks = {"SYNCD_RANK": str(rank), "SYNCD_WORLD": str(world)}
    return build(name or f"machine-{rank}", **ranks, **more)


def shard(step: int, rank: int, word: str, size: int = 50_000) -> bytes:
    return f"{step} {word} {rank} ".encode() + bytes([rank, step % 256]) * size


def save(machines: list[Machine], step: int, word: str = "first", size: int = 50_000) -> str:
    """As torch.distributed.checkpoint does: each its shards, then the first one the metadata."""
    name = f"run/step_{step}"
    for rank, machine in enumerate(machines):
        folder = machine.checkpoints / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"__{rank}_0.distcp").write_bytes(shard(step, rank, word, size))
    mark(machines[0], name, word)
    return name


def mark(first: Machine, name: str, word: str = "first") -> None:
    aside = first.checkpoints / name / ".metadata.tmp"
    aside.write_text(f"metadata {word}")
    aside.rename(aside.with_name(".metadata"))


def words_of(folder: Path) -> set[str]:
    """What the files of a checkpoint say of the save that they are of."""
    return {file.read_bytes().split(b" ")[1].decode() for file in folder.iterdir()}


def committed(machine: Machine) -> list[str]:
    return [row["checkpoint"] for row in json.loads(machine.syncd("ls", "--json").stdout)]


def all_have(machines: list[Machine], name: str, patience: float = 60.0) -> None:
    """Wait until this is the recovery point of all."""
    for machine in machines:
        try:
            wait_until(machine.has_committed(name), name, patience)
        except AssertionError:
            pytest.fail(f"{name} is not committed; {waits(machine)} {machine.log()}")


def waits(machine: Machine) -> str:
    state = machine.status() or {}
    return json.dumps([state.get(name) for name in ("incomplete", "backlog", "reasons")])


@pytest.fixture
def shared(tmp_path: Path, bucket: Bucket) -> Iterator[Build]:
    made: list[Machine] = []

    def make(name: str, **settings: str) -> Machine:
        made.append(Machine(tmp_path / name, {**bucket.settings(), **settings}))
        return made[-1]

    yield make
    for machine in made:
        machine.kill()


def test_shards_of_three_machines_are_one_commit_and_come_back_whole_or_each_its_own(
    shared: Build, tmp_path: Path
) -> None:
    machines = team(shared)
    for machine in machines:
        machine.start()
    for step in (10, 20):
        name = save(machines, step)
        all_have(machines, name)
    assert [machine.stop() for machine in machines] == [0, 0, 0]
    assert committed(machines[1]) == ["run/step_20", "run/step_10"]
    assert machines[2].syncd("verify").returncode == 0

    expected: dict[str, bytes] = {}
    for machine in machines:
        expected |= tree(machine.checkpoints / name)
    fresh = member(shared, 1, name="fresh")
    assert fresh.syncd("restore").returncode == 0
    assert tree(fresh.checkpoints / name) == expected
    own = fresh.syncd("restore", "--own", "--to", "own")
    assert own.returncode == 0, own.stderr
    assert set(tree(fresh.disk / "own" / name)) == {".metadata", "__0_0.distcp", "__1_0.distcp"}
    assert fresh.syncd("--once").returncode == 0, "what was just restored is safe"
    assert machines[0].syncd("prune", "--keep", "1").returncode == 0
    assert committed(fresh) == ["run/step_20"]
    assert fresh.syncd("verify").returncode == 0


def in_mirror(machine: Machine, name: str) -> Callable[[], bool]:
    def ask() -> bool:
        mirror = (machine.status() or {}).get("mirror") or {}
        return bool((mirror.get("recovery_point") or {}).get("checkpoint") == name)

    return ask


def test_mirror_has_what_the_machines_saved_together(build: Build, tmp_path: Path) -> None:
    """The mirror's own log decides there, by parts of its own, once all have arrived.

    A restore takes it when it is told to: by itself each machine would decide for itself alone.
    """
    (tmp_path / "mirror").mkdir()
    settings = {"CLOUD_MIRROR": f"file://{tmp_path / 'mirror'}", "SYNCD_RESTORE_RETRY": "1"}
    machines = team(build, 2, **settings)
    for machine in machines:
        machine.start()
    for step in (10, 20):
        name = save(machines, step)
        all_have(machines, name)
        for machine in machines:
            wait_until(in_mirror(machine, name), f"{name} in the mirror; {machine.log()}")
    assert [machine.stop() for machine in machines] == [0, 0]
    expected: dict[str, bytes] = {}
    for machine in machines:
        assert machine.syncd("verify", "--mirror").returncode == 0
        expected |= tree(machine.checkpoints / name)
    behind = tmp_path / "bucket"
    behind.rename(tmp_path / "first")
    fresh = member(build, 1, 2, "fresh", **settings)
    refused = fresh.syncd("restore")
    assert refused.returncode == 1
    assert "the first store cannot help" in refused.stderr
    assert "restore --mirror on every one of them" in refused.stderr
    assert not fresh.checkpoints.exists()
    assert fresh.syncd("restore", "--mirror").returncode == 0
    assert tree(fresh.checkpoints / name) == expected

    (tmp_path / "first").rename(behind)
    (behind / Layout("eigen2").commit(number_of(machines[0], name))).unlink()
    other = member(build, 1, 2, "other", **settings)
    restored = other.syncd("restore")
    assert "the MIRROR IS AHEAD: run/step_20" in restored.stderr
    assert "restore --mirror on every one of them" in restored.stderr
    assert [path.name for path in (other.checkpoints / "run").iterdir()] == ["step_10"]


def number_of(machine: Machine, name: str) -> int:
    rows = json.loads(machine.syncd("ls", "--json").stdout)
    return next(int(row["seq"]) for row in rows if row["checkpoint"] == name)


def test_machine_that_dies_before_its_part_arrives_leaves_the_older_checkpoint(
    build: Build,
) -> None:
    machines = team(build)
    for machine in machines:
        machine.start()
    old = save(machines, 10)
    all_have(machines, old)
    machines[2].kill()
    lost = save(machines, 20)
    for machine in machines[:2]:
        wait_until(lambda m=machine: "the part of machine 2" in waits(m), machine.log())  # type: ignore[misc]
    once = machines[0].syncd("--once", "--timeout", "40", timeout=90)
    assert once.returncode == 1
    assert "the part of machine 2 is not there yet" in once.stderr
    shutil.rmtree(machines[2].disk)

    replaced = member(build, 2, name="replaced")
    assert f"restored {old}" in replaced.syncd("restore").stderr
    replaced.start()
    machines[2] = replaced
    back = machines[0].syncd("restore")
    assert f"{old} is on disk" in back.stderr or f"restored {old}" in back.stderr
    assert f"{lost} was never committed: put aside" in back.stderr

    save(machines, 20, "second")
    all_have(machines, lost)
    fresh = member(build, 0, name="fresh")
    assert fresh.syncd("restore").returncode == 0
    assert words_of(fresh.checkpoints / lost) == {"second"}
    assert len(list((fresh.checkpoints / lost).iterdir())) == WORLD + 1


def test_old_part_is_never_joined_with_the_new_ones_of_the_same_step(build: Build) -> None:
    """The training died when two of three had saved, and saves the same step again."""
    machines = team(build)
    for machine in machines:
        machine.start()
    name = save(machines[:2], 10, "old")
    for machine in machines[:2]:
        wait_until(lambda m=machine: "the part of machine 2" in waits(m), machine.log())  # type: ignore[misc]
    mark = (machines[0].checkpoints / name / ".metadata").stat().st_mtime
    wait_until(
        lambda: time.time() > mark + MARK_SLACK + 2, "a training that begins anew takes long"
    )
    third = machines[2].checkpoints / name
    third.mkdir(parents=True)
    (third / "__2_0.distcp").write_bytes(shard(10, 2, "new"))
    wait_until(lambda: "younger than the mark" in waits(machines[2]), waits(machines[2]))
    assert committed(machines[0]) == []
    save(machines, 10, "new")
    all_have(machines, name)
    fresh = member(build, 0, name="fresh")
    assert fresh.syncd("restore").returncode == 0
    assert words_of(fresh.checkpoints / name) == {"new"}


def test_deepspeed_on_two_machines(build: Build) -> None:
    machines = team(build, 2)
    for machine in machines:
        machine.start()
    for step in (10, 20):
        name = f"ds/global_step{step}"
        for rank, machine in enumerate(machines):
            folder = machine.checkpoints / name
            folder.mkdir(parents=True)
            for process in (2 * rank, 2 * rank + 1):
                file = f"zero_pp_rank_{process}_mp_rank_00_optim_states.pt"
                (folder / file).write_bytes(pickle.dumps(os.urandom(1000)))
        folder = machines[0].checkpoints / name
        (folder / "mp_rank_00_model_states.pt").write_bytes(b"\x80\x02model.")
        (folder.parent / "latest").write_text(f"global_step{step}")
        all_have(machines, name)
    fresh = member(build, 1, 2, name="fresh")
    assert fresh.syncd("restore").returncode == 0
    assert (fresh.checkpoints / "ds/latest").read_text() == "global_step20"
    assert len(list((fresh.checkpoints / name).iterdir())) == 5


def test_what_could_be_mixed_is_refused_in_words(build: Build) -> None:
    one = member(build, 0, 2)
    one.start()
    folder = one.checkpoints / "run/last"
    folder.mkdir(parents=True)
    (folder / "__0_0.distcp").write_bytes(b"x")
    (folder / ".metadata").write_bytes(b"x")
    wait_until(lambda: "its name has no number" in one.reasons(), f"a reason; {one.log()}")
    shutil.rmtree(folder)
    (one.checkpoints / "run/epoch=3.pt").write_bytes(b"\x80\x02N.")
    wait_until(lambda: "one file cannot be a part" in one.reasons(), f"a reason; {one.log()}")
    assert committed(one) == []


def test_second_machine_of_a_rank_fences_the_first_and_no_other(build: Build) -> None:
    machines = team(build, 2)
    for machine in machines:
        machine.start()
    name = save(machines, 10)
    all_have(machines, name)
    twin = member(build, 1, 2, name="twin")
    twin.start()
    wait_until(lambda: "mirroring" in twin.log() or "copying" in twin.log(), twin.log)
    name = save([machines[0], twin], 20)
    all_have([machines[0], twin], name)
    save(machines, 30)
    fenced = "another machine has taken SYNCD_RANK=1"
    wait_until(lambda: fenced in machines[1].reasons(), machines[1].log())
    assert machines[0].reasons() == "[]"
    assert committed(twin)[0] == name


@pytest.mark.figures
@pytest.mark.parametrize("seed", [2])
def test_every_commit_is_of_one_save_whatever_dies(build: Build, seed: int) -> None:
    """Saves that are cut short and made again under one name, daemons killed at any moment."""
    rng = random.Random(seed)
    machines = team(build)
    for machine in machines:
        machine.start()
    over = threading.Event()

    def reaper() -> None:
        while not over.wait(rng.uniform(0.5, 3.0)):
            victim = rng.choice(machines)
            victim.kill()
            if over.wait(rng.uniform(0.0, 1.0)):
                return
            victim.start()

    killer = threading.Thread(target=reaper)
    killer.start()
    until, saves, step = time.monotonic() + 40, 0, 10
    while time.monotonic() < until:
        saves += 1
        word, name = f"save-{saves}", f"run/step_{step}"
        folders = [machine.checkpoints / name for machine in machines]
        for rank, folder in enumerate(folders):  # all begin together
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".metadata").unlink(missing_ok=True)
            (folder / f"__{rank}_0.distcp").write_bytes(b"")
        done = rng.choice((0, 1, 2, 3, 3, 3))
        for rank in rng.sample(range(WORLD), done):
            data = shard(step, rank, word, rng.choice((300_000, 400_000)))
            (folders[rank] / f"__{rank}_0.distcp").write_bytes(data)
            time.sleep(rng.uniform(0.0, 0.3))
        if done == WORLD and rng.random() < 0.8:
            mark(machines[0], name, word)
            step += 10
        time.sleep(rng.uniform(0.2, 6.0))
    over.set()
    killer.join()
    for machine in machines:
        if not machine.daemon:
            machine.start()
    last = save(machines, 100_000, "last", 400_000)
    all_have(machines, last)
    rows = json.loads(machines[0].syncd("ls", "--json").stdout)
    print(f"seed {seed}: {saves} saves, {step // 10 - 1} whole, {len(rows)} commits")
    fresh = member(build, 0, name="fresh")
    for row in rows:
        target = f"at-{row['seq']}"
        back = fresh.syncd("restore", "--at", f"#{row['seq']}", "--to", target)
        assert back.returncode == 0, back.stderr
        folder = fresh.disk / target / row["checkpoint"]
        assert len(words_of(folder)) == 1, (row, words_of(folder))
        assert len(list(folder.iterdir())) == WORLD + 1
