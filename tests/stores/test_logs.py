"""What logs cost on every store: requests an hour, bytes sent for bytes logged, writes a second.

``python -m pytest tests/stores/test_logs.py -s -k hour`` prints the figures.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.clock import SystemClock
from syncd.stores.base import ObjectStore
from tests.logbench import LOGS, Counted, Logger, lines
from tests.servers.fixtures import Bucket
from tests.servers.strict_gcs import StrictGcs
from tests.servers.wires import Wire

MIB = 1024 * 1024


@pytest.fixture
def line(bucket: Bucket) -> Iterator[Wire | None]:
    """Counts the requests that go over the network; None where there is none to look at."""
    wire = Wire(bucket.port) if {"network", "plain"} <= bucket.can else None
    yield wire
    if wire:
        wire.close()


@pytest.fixture
def store(bucket: Bucket, line: Wire | None) -> Iterator[ObjectStore]:
    opened = bucket.through(line) if line else bucket.open()
    yield opened
    opened.close()


def content(store: ObjectStore, path: str) -> bytes:
    return b"".join(store.read(LOGS + path))


def test_an_hour_of_five_logs(
    bucket: Bucket, line: Wire | None, store: ObjectStore, tmp_path: Path
) -> None:
    """Three of them pass the size at which S3 can append; all are there at the end, whole."""
    if bucket.kind in ("s3-seaweedfs-tls", "s3-moto"):
        pytest.skip("one S3 server is enough")
    one = Logger(tmp_path / "one", Counted(store))
    written = {f"run/{n}.log": (6 * MIB if n < 3 else 0) for n in range(5)}
    for path, size in written.items():
        one.write(path, b"x" * 99 + b"\n")
        one.write(path, (b"y" * 1023 + b"\n") * (size // 1024))
    one.ship()
    counts = [len(line.requests) if line else 0]
    before = {path: (one.logs / path).stat().st_size for path in written}
    bodies = one.store.bodies
    first = {path: one.store.body_of[LOGS + path] for path in written}
    ages: list[float] = []
    for turn in range(2 * 120 if line else 40):
        for number, path in enumerate(written):
            one.write(path, lines(20 * (number + 1), turn))
        one.ship(after=30)
        if line and turn % 120 == 119:
            counts.append(len(line.requests))
        ages += [one.clock.monotonic() - t.since for t in one.shipper._tracks.values()]
    logged = sum((one.logs / path).stat().st_size - before[path] for path in written)
    sent = one.store.bodies - bodies
    hours = [after - earlier for earlier, after in itertools.pairwise(counts)]
    one.ship(flush=True)
    for path in written:
        assert content(store, path) == (one.logs / path).read_bytes()
    small = [path for path, size in written.items() if not size]
    whole = bucket.provider == "s3"
    print(
        f"\n{bucket.kind}: requests per hour {hours}, {logged} bytes logged, {sent} sent "
        f"({sent / logged:.2f}), oldest line {max(ages):.0f} s"
    )
    if line and store.capabilities.metered:
        assert all(0 < count <= 180 for count in hours)
    if whole:
        sent = sum(one.store.body_of[LOGS + p] - first[p] for p in written if p not in small)
        logged = sum((one.logs / p).stat().st_size - before[p] for p in written if p not in small)
        print(f"{bucket.kind}, above 5 MiB: {logged} bytes logged, {sent} sent")
    assert sent <= 1.1 * logged


def test_every_kind_of_log_reaches_the_store_whole(
    bucket: Bucket, store: ObjectStore, tmp_path: Path
) -> None:
    """First sent, continued, rotated, cut, taken up by a new life and by another machine."""
    one = Logger(tmp_path / "one", Counted(store))
    one.write("train.log", first := lines(100))
    one.write("large.log", large := b"z" * (9 * MIB) + b"\n")
    one.ship()
    one.live(forget=True)
    one.write("train.log", more := lines(10))
    one.write("large.log", tail := lines(10) + b"w" * (9 * MIB) + b"\n")
    one.ship(after=1000)
    assert content(store, "train.log") == first + more
    assert content(store, "large.log") == large + tail
    (one.logs / "train.log").rename(one.logs / "train.log.1")
    one.write("train.log", anew := lines(5))
    one.ship(after=1000)
    assert content(store, "train.log.1") == first + more
    assert content(store, "train.log") == anew
    two = Logger(tmp_path / "two", Counted(store))
    two.write("train.log", other := lines(7))
    two.ship()
    assert content(store, "train.log") == other
    assert content(store, "train.log.kept-1") == anew
    one.write("train.log", lines(5))
    one.ship(after=1000)
    assert content(store, "train.log") == other
    names = {info.key.removeprefix(LOGS) for info in store.list(LOGS)}
    assert len(names) == 5
    assert sum("beside" in name for name in names) == 1
    assert not [info.key for info in store.list("eigen2/.syncd/")]


def test_google_is_never_asked_to_write_a_name_twice_in_a_second(
    strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a layer that refuses it, in real time, with flushes between; nothing is refused."""
    from tests.servers.fixtures import gcs_bucket

    buckets = gcs_bucket("gcs-strict", strict_gcs.url, strict_gcs.port, frozenset())
    assert isinstance(buckets, Generator)
    bucket = next(buckets)
    refused: list[str] = []
    note = strict_gcs.note_write

    def listen(name: str, key: str) -> None:
        try:
            note(name, key)
        except Exception:
            refused.append(key)
            raise

    monkeypatch.setattr(strict_gcs, "note_write", listen)
    strict_gcs.one_write_per_second = True
    store: Any = bucket.open()
    clock: Any = SystemClock()
    one = Logger(tmp_path / "one", Counted(store), interval=0.0, clock=clock)
    written = b""
    for turn in range(5):
        written += (more := lines(10, turn))
        one.write("train.log", more)
        one.shipper.ship(one.transfer, flush=turn % 2 == 1)
    assert content(store, "train.log") == written
    assert refused == []
    one.transfer.close()
    store.close()
    buckets.close()
