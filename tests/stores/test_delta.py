"""A newer version of a large file: only what has changed travels, and the object is whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import syncd.transfer
from syncd.clock import SystemClock
from syncd.errors import Permanent, Transient
from syncd.filestat import Stat
from syncd.journal import Journal
from syncd.records import CommitRecord
from syncd.sealed import Sealed
from syncd.sealing import Sealer
from syncd.stores.base import Condition, ObjectInfo, ObjectStore
from syncd.stores.resilient import Resilient
from syncd.uploadrows import Arrived
from tests.servers.fixtures import Bucket
from tests.servers.wires import Wire
from tests.stores.test_resume import MIB
from tests.workbench import LAYOUT, Machine

PART = 6 * MIB
OLD = os.urandom(5 * PART + 1000)
PLAIN = LAYOUT.plain("w.bin")
NOISE = 200_000
"""Bytes of all requests beside the content."""


class Line:
    """A machine whose line to the store is counted."""

    def __init__(self, bucket: Bucket, wire: Wire, disk: Path) -> None:
        self.wire = wire
        self.direct = bucket.open()
        self.store = Resilient(bucket.through(wire), SystemClock(), threading.Event())
        self.machine = Machine(disk, disk, store=self.store).start()
        self._sizes: dict[str, int] = {}

    def commit(self, content: bytes, path: str = "w.bin") -> int:
        """The bytes that travel until this content is committed."""
        before = self.wire.upward
        self.machine.write(path, content)
        records = self.machine.commit_all()
        if len(content) < self._sizes.get(path, 0) and not records:
            # what looks cut is believed when it is written so again
            self.machine.write(path, content)
            records = self.machine.commit_all()
        (record,) = records
        self._sizes[path] = len(content)
        travelled = self.wire.upward - before
        self.is_whole(record, content)
        return travelled

    def is_whole(self, record: CommitRecord, content: bytes) -> None:
        """As a plain tool finds it, too."""
        (entry,) = record.files
        for key in (entry.key, LAYOUT.plain(record.checkpoint)):
            assert b"".join(self.direct.read(key)) == content
        assert list(self.direct.pending_uploads("")) == []

    def newest(self) -> str:
        """The key of what was committed last."""
        record = self.machine.publisher.recovery_point()
        assert record
        return record.files[0].key

    def close(self) -> None:
        self.machine.transfer.close()
        self.machine.journal.close()
        self.store.close()
        self.direct.close()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncd.transfer, "SINGLE_PUT", PART)


ON_EACH_STORE = (
    "test_only_changed_blocks_travel",
    "test_an_object_that_is_gone_gives_nothing",
    "test_an_object_that_is_replaced_while_it_is_copied_is_seen",
    "test_a_life_that_is_killed_is_gone_on_with",
)
"""What the stores do differently; the rest is the same for all that copy ranges."""


@pytest.fixture
def line(
    bucket: Bucket, wire: Wire, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Line]:
    if bucket.kind != "s3-seaweedfs" and request.node.originalname not in ON_EACH_STORE:
        pytest.skip("one store is enough for this")
    made = Line(bucket, wire, tmp_path / "disk")
    if not made.store.capabilities.copy_range:
        made.close()
        pytest.skip("this store copies no ranges")
    yield made
    made.close()


def changed(content: bytes, *blocks: int) -> bytes:
    """The same with some bytes in the midst of each of these blocks made others."""
    other = bytearray(content)
    for block in blocks:
        other[block * PART + 70_000] ^= 1
    return bytes(other)


def test_only_changed_blocks_travel(line: Line) -> None:
    assert line.commit(OLD) > len(OLD)
    one = changed(OLD, 2)
    assert PART < line.commit(one) < PART + NOISE
    two = changed(one, 0, 4)
    assert 2 * PART < line.commit(two) < 2 * PART + NOISE
    assert line.commit(two[:-1] + b"!") < 1000 + NOISE  # the last one is short
    copies = [one for one in line.wire.requests if "partNumber" in one or "comp=block" in one]
    assert copies


def test_of_a_file_that_grows_the_tail_travels(line: Line) -> None:
    """Within a block, over its end, and where what is left of it is too short for a part."""
    content = OLD + os.urandom(PART // 3)
    line.commit(content)
    for more in (1, 300_000, PART, PART // 8, PART * 2 // 3, 2 * PART + 5):
        left = -len(content) % PART  # of the last block
        content += os.urandom(more)
        whole = 0 if more <= left or left >= line.store.capabilities.min_part_size else PART - left
        assert line.commit(content) < more + whole + NOISE


def test_a_file_that_has_grown_and_changed(line: Line) -> None:
    line.commit(OLD)
    new = changed(OLD, 4) + os.urandom(1000)  # nothing comes before the last block to go with it
    assert line.commit(new) < PART + 2000 + NOISE
    again = changed(new, 1, 3) + os.urandom(1000)
    assert line.commit(again) < 2 * PART + 1000 + NOISE
    longer = os.urandom(PART) + again[PART:] + os.urandom(PART)
    assert line.commit(longer) < 2 * PART + NOISE


def test_a_file_that_has_grown_is_sent_where_its_object_is_gone(line: Line) -> None:
    line.commit(OLD)
    line.direct.delete([line.newest()])
    new = OLD + os.urandom(1000)
    line.machine.write("w.bin", new)
    (record,) = line.machine.commit_all()
    assert b"".join(line.direct.read(record.files[0].key)) == new
    assert line.commit(new + b"more") < NOISE


def test_what_is_cut_at_its_end_is_copied(line: Line) -> None:
    line.commit(OLD)
    grown = OLD + os.urandom(PART)
    assert line.commit(grown) < PART + NOISE
    even = grown[: 6 * PART]
    assert line.commit(even) < NOISE  # cut at the end of a block
    assert line.commit(even + b"x") < NOISE
    assert line.commit(even[: 5 * PART + 7]) < NOISE


def test_a_file_that_is_what_it_was_before_its_last_version(line: Line) -> None:
    line.commit(OLD)
    line.commit(changed(OLD, 1))
    assert line.commit(OLD) < PART + NOISE


def test_equal_sizes_prove_nothing(line: Line) -> None:
    line.commit(OLD)
    other = os.urandom(len(OLD))
    assert line.commit(other) > len(OLD)
    edges = bytearray(OLD)  # the same at both ends of each block, where its mark is made
    for start in range(0, len(OLD), PART):
        end = min(start + PART, len(OLD))
        if end - start > 8192:
            edges[start + 4096 : end - 4096] = other[start + 4096 : end - 4096]
    assert line.commit(bytes(edges)) > 4 * PART


def test_only_what_begins_and_ends_as_an_object_is_read_to_look_for_it(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints have one size: each would be read twice, to find that it is another one."""
    read: list[str] = []
    whole = line.machine.publisher._planner._digest

    def digest(path: Path, seen: Stat) -> str:
        read.append(path.name)
        return whole(path, seen)

    monkeypatch.setattr(line.machine.publisher._planner, "_digest", digest)
    line.commit(OLD, "model-1.bin")
    other = os.urandom(len(OLD))
    assert line.commit(other, "model-2.bin") > len(OLD)
    assert line.commit(other[:-5000] + OLD[-5000:], "model-3.bin") < 2 * PART + NOISE
    assert read == []
    assert line.commit(OLD, "model-4.bin") < NOISE  # it is copied whole
    assert read == ["model-4.bin"]


def test_small_and_empty_follow_large(line: Line) -> None:
    line.commit(OLD)
    line.machine.write("w.bin", b"")
    assert line.machine.commit_all() == []  # it may be filled any moment
    assert line.commit(OLD[: PART + 1]) < PART + 1 + NOISE
    assert line.commit(OLD[:PART]) < PART + NOISE


def test_the_next_step_shares_with_the_one_before(line: Line) -> None:
    """Another name: of the members of the last step, the one of the same name counts."""
    for step in (1, 2):
        before = line.wire.upward
        for agent in (0, 1):
            content = changed(OLD, agent) if step == 2 else OLD[agent:]
            line.machine.write(f"run/gen-{step:06}/agent-{agent:02}.bin", content)
        line.machine.write(f"run/gen-{step:06}/state.json", "{}")
        (record,) = line.machine.commit_all()
        assert record.checkpoint == f"run/gen-{step:06}"
    assert line.wire.upward - before < PART + len(OLD) + NOISE  # agent 1 began one byte later
    for agent in (0, 1):
        key = LAYOUT.plain(f"run/gen-000002/agent-{agent:02}.bin")
        assert b"".join(line.direct.read(key)) == changed(OLD, agent)


def test_an_object_that_was_replaced_gives_nothing(line: Line) -> None:
    line.commit(OLD)
    line.direct.put(PLAIN, os.urandom(len(OLD)))
    assert line.commit(changed(OLD, 2)) > 4 * PART


def test_an_object_that_is_gone_gives_nothing(line: Line) -> None:
    line.commit(OLD)
    line.direct.delete([line.newest()])
    new = changed(OLD, 2)
    line.machine.write("w.bin", new)
    before = line.wire.upward
    (record,) = line.machine.commit_all()
    assert line.wire.upward - before > len(OLD)
    assert b"".join(line.direct.read(record.files[0].key)) == new
    again = changed(new, 3)
    assert line.commit(again) < PART + NOISE  # and the newer one serves from now on


def test_an_object_that_is_replaced_while_it_is_copied_is_seen(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the store looks at the version by itself."""
    line.commit(OLD)
    store, head = line.store, line.store.head

    def meanwhile(key: str) -> ObjectInfo:
        if key == PLAIN:
            line.direct.put(PLAIN, b"another machine's")
        return head(key)

    monkeypatch.setattr(store, "head", meanwhile)
    new = changed(OLD, 2)
    line.machine.write("w.bin", new)
    (record,) = line.machine.commit_all()
    assert b"".join(line.direct.read(record.files[0].key)) == new


def test_a_machine_without_its_journal_sends_all(
    line: Line, bucket: Bucket, wire: Wire, tmp_path: Path
) -> None:
    line.commit(OLD)
    other = Line(bucket, wire, tmp_path / "other")
    assert other.commit(changed(OLD, 2)) > len(OLD)
    other.close()


_RANGES = (b"-source-range", b"-sourze-range")


def test_a_store_that_refuses_is_asked_once(line: Line, bucket: Bucket) -> None:
    """The signature of these requests does not hold."""
    bucket.needs("credentials")
    line.commit(OLD)
    line.wire.replace = _RANGES
    new = changed(OLD, 2)
    assert line.commit(new) > len(OLD)
    line.wire.replace = None
    assert line.commit(changed(new, 3)) > len(OLD)  # in this life


def test_one_that_does_not_copy_in_time_is_asked_again_for_the_next_version(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short outage is no reason to send everything from now on; a third one is."""
    start = line.store.start_upload
    outage = [True]

    def slow(*asked: Any) -> Any:
        upload: Any = start(*asked)
        copy = upload.copy

        def copied(*arguments: Any) -> str:
            if outage[0]:
                raise Permanent("no part of it is copied") from Transient("no answer in time")
            return str(copy(*arguments))

        upload.copy = copied
        return upload

    monkeypatch.setattr(line.store, "start_upload", slow)
    line.commit(OLD)
    new = changed(OLD, 2)
    assert line.commit(new) > len(OLD)
    outage[0] = False
    new = changed(new, 3)
    assert line.commit(new) < len(OLD)
    outage[0] = True
    for block in (1, 2):
        new = changed(new, block)
        assert line.commit(new) > len(OLD)
    outage[0] = False
    assert line.commit(changed(new, 3)) > len(OLD)


def test_a_store_that_copies_more_than_the_range_is_found_out(line: Line, bucket: Bucket) -> None:
    """One that looks at no signature takes the request for a copy of the whole."""
    if bucket.kind != "s3-moto":
        pytest.skip("this store refuses what it does not understand")
    line.commit(OLD)
    line.wire.replace = _RANGES
    new = changed(OLD, 2)
    line.machine.write("w.bin", new)
    assert line.commit(new) > len(OLD)


def test_a_store_that_wants_parts_of_one_length_gets_them(
    line: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Cloudflare R2 does; here the store's own upload is made as strict."""
    start = line.store.start_upload

    def strict(*asked: Any) -> Any:
        upload: Any = start(*asked)
        lengths: dict[int, int] = {}
        send, copy, finish = upload.send, upload.copy, upload.finish

        def sent(number: int, data: bytes) -> str:
            lengths[number] = len(data)
            return str(send(number, data))

        def copied(number: int, source: ObjectInfo, start: int, length: int) -> str:
            lengths[number] = length
            return str(copy(number, source, start, length))

        def finished(condition: Condition = None) -> ObjectInfo:
            *others, _last = (lengths[number] for number in sorted(lengths))
            if len(set(others)) > 1:
                raise Permanent("all parts but the last must have the same length")
            info: ObjectInfo = finish(condition)
            return info

        upload.send, upload.copy, upload.finish = sent, copied, finished
        return upload

    monkeypatch.setattr(line.store, "start_upload", strict)
    line.commit(OLD)
    new = changed(OLD, 3)
    assert line.commit(new) < 2 * PART + NOISE  # once more, to learn it
    assert line.commit(changed(new, 0) + b"more") < PART + 2000 + NOISE


def test_an_encrypted_file_travels_whole(line: Line, bucket: Bucket, tmp_path: Path) -> None:
    store: ObjectStore = Sealed(line.store, Sealer(bytes(32)), LAYOUT)
    assert not store.capabilities.copy_range
    machine = Machine(tmp_path / "sealed", tmp_path, store=store).start()
    for content in (OLD, changed(OLD, 2)):
        before = line.wire.upward
        machine.write("w.bin", content)
        (record,) = machine.commit_all()
        assert line.wire.upward - before > len(OLD)
        assert b"".join(store.read(record.files[0].key)) == content
    with pytest.raises(Permanent):
        store.start_upload("x", 5).copy(1, ObjectInfo("y", 5, "", 0.0), 0, 5)
    machine.transfer.close()
    machine.journal.close()


_DIE = """
import os, signal, sys
from pathlib import Path
import syncd.transfer
from syncd.stores import open_store
from tests.workbench import Machine
syncd.transfer.SINGLE_PUT = int(sys.argv[5])
store = open_store(sys.argv[1], sys.argv[2], os.environ)
machine = Machine(Path(sys.argv[3]), Path(sys.argv[3]), store=store, writer="writer-b").start()
left = [int(sys.argv[4])]
def sent(key, count):
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
machine.transfer._parts._on_bytes = sent
machine.commit_all()
"""


@pytest.mark.parametrize(("after", "grown"), [(1, 0), (3, 0), (2, 5000)])
def test_a_life_that_is_killed_is_gone_on_with(
    line: Line, bucket: Bucket, wire: Wire, tmp_path: Path, after: int, grown: int
) -> None:
    """What it has copied counts as done, and what it has sent."""
    line.commit(OLD)
    line.close()
    new = changed(OLD, 1, 3) + os.urandom(grown)
    (tmp_path / "disk/checkpoints/w.bin").write_bytes(new)
    arguments = (bucket.provider, bucket.bucket, str(tmp_path / "disk"), str(after), str(PART))
    began = wire.upward
    ended = subprocess.run(
        [sys.executable, "-c", _DIE, *arguments],
        env={**os.environ, **bucket.env, **bucket.at_port(wire.port)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    next_life = Line(bucket, wire, tmp_path / "disk")
    (begun,) = next_life.machine.journal.uploads()
    known = next_life.machine.journal.parts(begun.number)
    assert known
    wire.requests.clear()
    (record,) = next_life.machine.commit_all()
    next_life.is_whole(record, new)
    assert wire.upward - began < 4 * PART + NOISE  # two blocks, and what was under way
    assert next_life.machine.journal.uploads() == []
    next_life.close()


def test_what_is_known_of_objects_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("syncd.uploadrows._MOST_PARTS", 5)
    journal = Journal(None, "test")

    def whole(path: str) -> None:
        number = journal.begin_upload(path, path, "1:1:1:1", 20, 10)
        journal.name_upload(number, "id")
        journal.add_parts(number, [Arrived(n, "0" * 64, "t", "", "m") for n in (1, 2)])
        journal.end_uploads_to(path, "v1")

    for name in ("a", "b", "a", "c"):
        whole(name)
    found = {name for name in "abc" if journal.whole_like(name)}
    assert found == {"a", "c"}
    assert len(journal._run("SELECT * FROM parts")) == 4
    assert journal.uploads() == []
    journal.close()
