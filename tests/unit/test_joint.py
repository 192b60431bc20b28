"""One of several machines: who commits, where two do at once; what it does not go on from."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from syncd import manual
from syncd.clock import SystemClock
from syncd.commitlog import CommitLog
from syncd.config import Environment, load_settings
from syncd.errors import Awaits, NeedsOperator
from syncd.joint import JointPublisher
from syncd.journal import Journal
from syncd.others import as_part
from syncd.pace import RateLimit
from syncd.records import CommitRecord
from syncd.scan import scan
from syncd.stores.base import ObjectStore
from syncd.stores.directory import DirectoryStore
from syncd.transfer import Transfer
from syncd.units import Unit, units
from tests.workbench import LAYOUT, restore_newest


class Together:
    """A store that holds each append of a commit until another machine is about to append too."""

    def __init__(self, store: ObjectStore, barrier: threading.Barrier) -> None:
        self._store = store
        self._barrier = barrier
        self.name = store.name
        self.capabilities = store.capabilities

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def put(self, key: str, data: bytes, condition: Any = None) -> Any:
        if key.startswith(LAYOUT.commits):
            # the second try of the loser has no companion
            with contextlib.suppress(threading.BrokenBarrierError):
                self._barrier.wait(5)
        return self._store.put(key, data, condition)


def publisher(disk: Path, store: Any, rank: int, world: int = 2) -> JointPublisher:
    (disk / "checkpoints").mkdir(parents=True, exist_ok=True)
    clock = SystemClock()
    transfer = Transfer(store, 2, RateLimit(None, clock, threading.Event()))
    made = JointPublisher(
        disk / "checkpoints",
        store,
        Journal(disk / "journal.sqlite", "test"),
        LAYOUT,
        transfer,
        clock,
        f"writer{rank}",
        rank=rank,
        world=world,
    )
    made.join_log()
    return made


def unit_of(disk: Path, rank: int, path: str = "run/step_10") -> Unit:
    tree = scan(disk / "checkpoints")
    assert tree
    return as_part(next(unit for unit in units(tree) if unit.path == path), rank)


def until_done(publish: Callable[[], CommitRecord | None]) -> CommitRecord | None:
    while True:
        try:
            return publish()
        except Awaits as reason:
            SystemClock().sleep(min(reason.pause, 0.2))


def test_two_that_join_at_the_same_moment_make_one_commit(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    store = DirectoryStore(tmp_path / "bucket")
    (tmp_path / "bucket").mkdir()
    disks = [tmp_path / "0", tmp_path / "1"]
    made = [publisher(disk, Together(store, barrier), n) for n, disk in enumerate(disks)]
    for rank, disk in enumerate(disks):
        folder = disk / "checkpoints/run/step_10"
        folder.mkdir(parents=True)
        (folder / f"__{rank}_0.distcp").write_bytes(bytes([rank]) * 1000)
    (disks[0] / "checkpoints/run/step_10/.metadata").write_bytes(b"meta")

    def work(rank: int) -> CommitRecord | None:
        return until_done(lambda: made[rank].publish(unit_of(disks[rank], rank), "dcp"))

    with ThreadPoolExecutor(2) as pool:
        records = list(pool.map(work, (0, 1)))
    assert CommitLog(store, LAYOUT).numbers() == [1]
    assert [record.seq for record in records if record] == [1] * len([r for r in records if r])
    record = CommitLog(store, LAYOUT).read(1)
    assert [entry.path for entry in record.files] == [".metadata", "__0_0.distcp", "__1_0.distcp"]
    assert record.ranks == (2, 1)
    assert [*store.list("eigen2/.syncd/parts/")] == []


def test_older_step_that_is_joined_after_a_newer_one_stands_behind_it(tmp_path: Path) -> None:
    """Each machine sends in an order of its own, and knows nothing yet of what another commits."""
    store = DirectoryStore(tmp_path / "bucket")
    (tmp_path / "bucket").mkdir()
    disks = [tmp_path / "0", tmp_path / "1"]
    made = [publisher(disk, store, n) for n, disk in enumerate(disks)]
    for second, step in enumerate(("run/step_1", "run/step_2", "run/step_3")):
        for rank, disk in enumerate(disks):
            folder = disk / "checkpoints" / step
            folder.mkdir(parents=True)
            (folder / f"__{rank}_0.distcp").write_bytes(bytes([rank, second]) * 1000)
            if rank == 0:
                (folder / ".metadata").write_bytes(b"meta")
            for path in folder.iterdir():  # the clock of the second machine is an hour off
                os.utime(path, (1_700_000_000 + second + 3600 * rank,) * 2)

    def commit(step: str) -> None:
        def work(rank: int) -> CommitRecord | None:
            return until_done(lambda: made[rank].publish(unit_of(disks[rank], rank, step), "dcp"))

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(work, (0, 1)))

    for step in ("run/step_2", "run/step_1", "run/step_3"):
        commit(step)
    log = CommitLog(store, LAYOUT)
    assert [(log.read(n).checkpoint, log.read(n).behind) for n in log.numbers()] == [
        ("run/step_2", 0), ("run/step_1", 1), ("run/step_3", 0),
    ]  # fmt: skip
    for one in made:
        one._ranks.look()
        point = one.recovery_point()
        assert point is not None
        assert point.checkpoint == "run/step_3"


def test_store_that_overwrites_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    store = DirectoryStore(tmp_path / "bucket")
    heedless = Together(store, threading.Barrier(1))
    heedless.capabilities = replace(store.capabilities, put_if_absent=False)
    with pytest.raises(NeedsOperator, match="cannot save together"):
        publisher(tmp_path / "0", heedless, 0)


def test_only_the_first_machine_has_a_mark() -> None:
    """Of DCP's files the others have shards alone, and are complete all the same."""
    from syncd.profiles import by_name

    profile = by_name("dcp")
    assert profile
    unit = Unit("run/step_10", profile, ())
    assert as_part(unit, 0) == unit
    assert as_part(unit, None) == unit
    assert as_part(unit, 1).profile.marker is None


def test_local_checkpoint_of_one_of_several_is_not_gone_on_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints/run/gen-000005"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")
    environ = {
        "CLOUD_PROVIDER": "s3",
        "CLOUD_BUCKET": "bucket",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "SYNCD_STATE_DIR": str(tmp_path / "state"),
    }
    for more, code in (({}, 0), ({"SYNCD_RANK": "0", "SYNCD_WORLD": "2"}, 1)):
        settings = load_settings(Environment({**environ, **more}, tmp_path / ".env"))
        assert manual.restore(settings, None, None, False, False, 0.0) == code
    assert "is not gone on from: others may lack it" in capsys.readouterr().err


def test_no_rank_copies_from_a_plain_key_that_another_has_refreshed(tmp_path: Path) -> None:
    """A counter of one digit, which a small file of the next step equals as it was before."""
    store = DirectoryStore(tmp_path / "bucket")
    (tmp_path / "bucket").mkdir()
    disks = [tmp_path / "0", tmp_path / "1"]
    made = [publisher(disk, store, n) for n, disk in enumerate(disks)]

    def count(text: str) -> None:
        path = disks[0] / "checkpoints/run/epoch.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        tree = scan(disks[0] / "checkpoints")
        assert tree
        unit = next(unit for unit in units(tree) if unit.path == "run/epoch.txt")
        assert unit.companion
        assert made[0].publish(unit, "companion")
        made[1]._ranks.look()

    for rank, disk in enumerate(disks):  # a step lies there, so that the counter is no set
        for step in (5, 10):
            folder = disk / f"checkpoints/run/step_{step}"
            folder.mkdir(parents=True)
            (folder / f"__{rank}_0.distcp").write_bytes(bytes([step + rank]) * 1000)
            (folder / f"rank_{rank}.txt").write_text(str(rank))
            if rank == 0:
                (folder / ".metadata").write_bytes(b"meta")
    for text in ("1", "2"):
        count(text)

    def work(rank: int) -> CommitRecord | None:
        path = "run/step_10"
        return until_done(lambda: made[rank].publish(unit_of(disks[rank], rank, path), "dcp"))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0, 1)))
    record = restore_newest(tmp_path / "bucket", tmp_path / "back")
    assert record
    assert record.checkpoint == "run/step_10"
    assert (tmp_path / "back/run/step_10/rank_1.txt").read_text() == "1"
