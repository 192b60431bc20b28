"""Logs follow their writer, and what has reached the store stays there."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from syncd.errors import Transient
from syncd.pace import RateLimit
from syncd.stores.base import Buffer, ObjectInfo
from syncd.stores.directory import DirectoryStore
from tests.logbench import LOGS, Counted, Logger, lines, logger
from tests.workbench import Died

MIB = 1024 * 1024


@pytest.fixture
def one(tmp_path: Path) -> Logger:
    return logger(tmp_path)


def test_only_what_is_new_travels(one: Logger) -> None:
    written = b""
    for turn in range(50):
        written += (more := lines(100, turn * 100))
        one.write("run/train.log", more)
        assert one.ship(after=30) == 1
        assert one.there("run/train.log") == written
    assert one.store.bodies == len(written)
    assert one.ship(after=30) == 0


def test_a_line_goes_when_it_is_whole_or_rests_or_at_the_flush(one: Logger) -> None:
    one.write("a.jsonl", b'{"n": 1}\n{"n": ')
    one.ship()
    assert one.there("a.jsonl") == b'{"n": 1}\n'
    one.write("a.jsonl", b'2}\n{"n"')
    one.ship(after=30)
    assert one.there("a.jsonl") == b'{"n": 1}\n{"n": 2}\n'
    one.ship(after=31)
    assert one.there("a.jsonl") == b'{"n": 1}\n{"n": 2}\n'
    one.ship(after=61)
    assert one.there("a.jsonl") == b'{"n": 1}\n{"n": 2}\n{"n"'
    one.write("a.jsonl", b": 3}\n{")
    one.ship(after=31)
    assert one.there("a.jsonl") == b'{"n": 1}\n{"n": 2}\n{"n": 3}\n'
    one.ship(flush=True)
    assert one.there("a.jsonl") == (one.logs / "a.jsonl").read_bytes()
    assert one.store.bodies == len((one.logs / "a.jsonl").read_bytes())


def test_tensorboard_is_whole_events_even_at_the_flush(one: Logger) -> None:
    from tests.unit.test_logframes import tensorboard, tfrecord_edges

    data = tensorboard(one.disk / "written")
    edges = tfrecord_edges(data)
    for at, count in enumerate(range(1, len(data), 1997)):
        one.overwrite("events.out.tfevents.1", data[:count])
        one.ship(after=31, flush=at % 3 == 0)
        best = max(e for e in edges if e <= count)
        assert one.there("events.out.tfevents.1") == (data[:best] or None)
    one.overwrite("events.out.tfevents.1", data)
    one.ship(flush=True)
    assert one.there("events.out.tfevents.1") == data
    assert one.store.bodies == len(data)


def test_what_only_seems_to_have_records_goes_as_it_is(one: Logger) -> None:
    one.write("events.out.tfevents.1", junk := os.urandom(5000))
    one.ship()
    assert one.there("events.out.tfevents.1") is None
    one.ship(after=61)
    assert one.there("events.out.tfevents.1") == junk


def test_rotation_moves_the_objects_and_sends_nothing_again(one: Logger) -> None:
    expected: list[bytes] = []
    sent = 0
    for generation in range(4):
        one.write("train.log", first := lines(2000, generation))
        one.ship(after=31)
        one.write("train.log", more := lines(10, generation))
        for number in range(generation, 0, -1):
            (one.logs / f"train.log.{number}").rename(one.logs / f"train.log.{number + 1}")
        (one.logs / "train.log").rename(one.logs / "train.log.1")
        one.write("train.log", b"begins\n")
        one.ship(after=31)
        expected.insert(0, first + more)
        sent += len(first + more) + len(b"begins\n")
        for number, content in enumerate(expected, start=1):
            assert one.there(f"train.log.{number}") == content
        assert one.there("train.log") == b"begins\n"
        one.overwrite("train.log", b"")
    assert one.names() == {"train.log", *(f"train.log.{n}" for n in range(1, 5))}
    assert one.store.bodies == sent


def test_a_log_that_is_copied_and_cut_is_not_sent_twice(one: Logger) -> None:
    one.write("train.log", first := lines(3000))
    one.ship()
    shutil.copy(one.logs / "train.log", one.logs / "train.log.1")
    one.overwrite("train.log", b"")
    one.write("train.log", second := lines(5))
    one.ship(after=31)
    assert one.there("train.log.1") == first
    assert one.there("train.log") == second
    assert one.names() == {"train.log", "train.log.1"}
    assert one.store.bodies == len(first + second)


def test_a_log_that_is_emptied_costs_no_good_object(one: Logger) -> None:
    one.write("train.log", first := lines(100))
    one.ship()
    one.write("train.log", more := lines(100))
    one.ship(after=31)
    one.overwrite("train.log", b"")
    one.ship(after=31)
    one.ship(flush=True)
    assert one.there("train.log") == first + more
    one.write("train.log", anew := lines(3))
    one.ship(after=31)
    assert one.there("train.log") == anew
    assert one.there("train.log.kept-1") == first + more


def test_a_crash_loop_fills_no_bucket(one: Logger) -> None:
    for life in range(30):
        one.overwrite("train.log", lines(50, life))
        one.ship(after=31)
        one.write("train.log", lines(50, life))
        one.ship(after=31)
    assert one.names() == {"train.log", *(f"train.log.kept-{n}" for n in range(1, 10))}


def test_a_document_that_is_written_again_is_replaced(one: Logger) -> None:
    for turn in range(5):
        content = b'{\n "step": %d' % turn + b"0" * (50 - turn) + b"\n}"
        one.overwrite("state.json", content)
        one.overwrite("table.csv", content := b"a,b\n" + b"%d,%d\n" % (turn, turn) * 9)
        one.ship(after=31)
        assert one.there("table.csv") == content
        assert one.there("state.json") == (one.logs / "state.json").read_bytes()
    assert one.names() == {"state.json", "table.csv"}


def test_what_is_rewritten_in_its_middle_is_noticed(one: Logger) -> None:
    content = bytearray(os.urandom(3 * MIB))
    one.overwrite("profile.bin", bytes(content))
    one.ship()
    content[MIB + MIB // 2] ^= 1
    one.overwrite("profile.bin", bytes(content))
    one.ship(after=1000)
    assert one.there("profile.bin") == bytes(content)


# -- other machines, other lives


def test_a_lost_machines_log_is_kept_beside_its_successors(tmp_path: Path) -> None:
    one, two = logger(tmp_path, "one"), logger(tmp_path, "two")
    one.write("train.log", old := lines(100))
    one.ship()
    two.write("train.log", new := lines(10))
    two.ship()
    assert two.there("train.log") == new
    assert two.there("train.log.kept-1") == old
    two.write("train.log", more := lines(10))
    two.ship(after=31)
    assert two.there("train.log") == new + more


def test_a_log_that_another_machine_goes_on_with_is_continued(tmp_path: Path) -> None:
    one, two = logger(tmp_path, "one"), logger(tmp_path, "two")
    one.write("train.log", old := lines(1000))
    one.ship()
    two.write("train.log", old + (more := lines(10)))
    two.ship()
    assert two.there("train.log") == old + more
    assert two.names() == {"train.log"}
    assert two.store.made["append"] == 1


def test_two_machines_never_take_one_name_from_each_other(tmp_path: Path) -> None:
    one, two = logger(tmp_path, "one"), logger(tmp_path, "two")
    written: dict[str, bytes] = {"one": b"", "two": b""}
    for _ in range(6):
        for machine, name in ((one, "one"), (two, "two")):
            written[name] += (more := lines(20))
            machine.write("train.log", more)
            machine.ship(after=31)
    assert two.there("train.log") == written["two"]
    (beside,) = (n for n in two.names() if "beside" in n)
    assert two.there(beside) == written["one"]
    assert two.names() == {"train.log", "train.log.kept-1", beside}
    one.live()
    one.write("train.log", b"more\n")
    one.ship()
    assert one.there(beside) == written["one"] + b"more\n"


@pytest.mark.parametrize("forget", [False, True])
def test_a_new_life_goes_on_where_the_last_one_was(one: Logger, forget: bool) -> None:
    one.write("train.log", first := lines(4000))
    one.write("large.log", large := os.urandom(5 * MIB).hex().encode() + b"\n")
    one.ship()
    sent = one.store.bodies
    one.live(forget)
    one.write("train.log", more := lines(10))
    one.write("large.log", b"more\n")
    one.ship()
    assert one.there("train.log") == first + more
    assert one.there("large.log") == large + b"more\n"
    assert one.names() == {"train.log", "large.log"}
    assert one.store.bodies == sent + len(more) + len(b"more\n")


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("then", ["grows", "is written again"])
def test_a_death_in_a_request_neither_tears_nor_doubles(
    one: Logger, after: bool, then: str
) -> None:
    one.write("train.log", content := lines(10))
    one.ship()
    one.write("train.log", more := lines(10))
    content += more
    one.store.die_in, one.store.die_after = 0, after
    with pytest.raises(Died):
        one.ship(after=31)
    one.store.die_in = None
    one.live()
    if then == "grows":
        one.write("train.log", more := lines(10))
        content += more
    else:
        one.overwrite("train.log", content := lines(30))
    one.ship()
    assert one.there("train.log") == content
    assert one.names() == {"train.log"}


def test_an_object_that_was_deleted_is_made_anew(one: Logger) -> None:
    one.write("train.log", first := lines(10))
    one.ship()
    one.store.delete([LOGS + "train.log"])
    one.write("train.log", more := lines(10))
    one.ship(after=31)
    assert one.there("train.log") == first + more


# -- databases


def test_a_database_is_one_whole_object(one: Logger) -> None:
    path = one.logs / "runs.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE a (n)")
        for turn in range(3):
            db.execute("INSERT INTO a VALUES (?)", (turn,))
            assert one.ship(after=31) == 1
            (one.disk / "copy.db").write_bytes(one.there("runs.db") or b"")
            with contextlib.closing(sqlite3.connect(one.disk / "copy.db")) as copy:
                assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                assert copy.execute("SELECT MAX(n) FROM a").fetchone() == (turn,)
        assert one.ship(after=31) == 0, "nothing was written"
        assert one.names() == {"runs.db"}
    assert list((one.disk / "state/logs").iterdir()) == []


# -- how often


def test_no_object_is_written_twice_within_a_second(tmp_path: Path) -> None:
    one = logger(tmp_path, metered=True)
    one.interval = 0.0
    one.live()
    content = b""
    for turn in range(12):
        content += (more := lines(5))
        one.write("train.log", more)
        one.ship(flush=turn % 2 == 1)
    assert one.there("train.log") == content
    times = [at for key, at in one.store.writes if key == LOGS + "train.log"]
    assert len(times) >= 12
    assert min(b - a for a, b in itertools.pairwise(times)) >= 1.0


def test_a_small_file_waits_no_longer_than_its_size_is_worth(tmp_path: Path) -> None:
    """Where it is sent as a whole: the older bytes go again each time."""
    one = logger(tmp_path, metered=True, append_from=5 * MIB, append_requests=4)
    one.write("small.log", lines(100))
    one.write("large.log", b"x" * (4 * MIB) + b"\n")
    one.ship()
    since, waits = 0, []
    for turn in range(40):
        one.write("large.log", b"a line\n")
        one.write("small.log", lines(1))
        before = len(one.store.writes)
        one.ship(after=30)
        went = [key for key, _ in one.store.writes[before:]]
        assert LOGS + "small.log" in went
        since += 1
        if LOGS + "large.log" in went:
            waits.append(since)
            since = 0
        del turn
    assert set(waits) == {9}, "270 seconds for 4 MiB"


def test_the_thread_and_a_flush_send_one_log_once(tmp_path: Path) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class Slow(DirectoryStore):
        def put(self, key: str, data: Buffer, condition: Any = None) -> ObjectInfo:
            inside.set()
            assert go_on.wait(30)
            return super().put(key, data, condition)

    one = Logger(tmp_path / "one", Counted(Slow(tmp_path / "bucket")))
    one.write("a.log", b"a\n")
    one.write("b.log", b"b\n")
    with ThreadPoolExecutor(2) as pool:
        thread = pool.submit(one.ship)
        assert inside.wait(30)
        flush = pool.submit(one.ship, flush=True)
        assert one.ship() == 0, "the thread's next turn comes later"
        go_on.set()
        assert thread.result() + flush.result() == 2
    assert one.store.made["put"] == 2


def test_a_flush_that_runs_out_of_time_waits_for_nobody(one: Logger) -> None:
    one.write("a.log", b"a\n")
    with one.shipper._turn(lambda: False, flush=False):
        assert one.shipper.ship(one.transfer, lambda: True, flush=True) == 0


def test_what_the_store_refuses_of_one_log_holds_up_no_other(one: Logger) -> None:
    one.write("taken/a.log", b"a\n")
    one.write("b.log", b"b\n")
    one.store.put(LOGS + "taken", b"a file where a folder must be")
    one.ship()
    assert one.there("b.log") == b"b\n"
    assert one.health.reasons()[0].code == "skipped log taken/a.log"


def test_an_outage_costs_no_line(one: Logger) -> None:
    one.write("train.log", first := lines(10))
    one.ship()
    real, one.store._store = one.store._store, None

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            raise Transient("down")

    one.store._store = Refusing()
    one.clock.sleep(31)
    one.write("train.log", more := lines(10))
    with pytest.raises(Transient):
        one.shipper.ship(_without_patience(one))
    one.store._store = real
    one.ship(after=31)
    assert one.there("train.log") == first + more


def _without_patience(one: Logger) -> Any:
    from syncd.stores.resilient import Resilient
    from syncd.transfer import Transfer

    patient = Resilient(one.store, one.clock, threading.Event(), lambda: 0.0)
    return Transfer(patient, 2, RateLimit(None, one.clock, threading.Event()))
