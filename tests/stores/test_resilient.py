"""Retries around a store, against one that fails by a script and a clock that does not wait."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from syncd.errors import Conflict, NeedsOperator, NotFound, Permanent, Transient
from syncd.stores.attempts import Attempts
from syncd.stores.base import Buffer, Condition, IfAbsent, ObjectInfo, ObjectStore
from syncd.stores.directory import DirectoryStore
from syncd.stores.resilient import Resilient
from tests.clocks import FakeClock
from tests.servers.fixtures import Bucket


class Faulty(DirectoryStore):
    """A directory whose requests first run through a script of errors; None lets one pass."""

    def __init__(self, root: Path, clock: FakeClock) -> None:
        super().__init__(root)
        self.clock = clock
        self.script: list[Exception | None] = []
        self.calls: list[float] = []
        self.break_reads_at: list[int] = []
        self.starts: list[int] = []

    def _next(self) -> None:
        self.calls.append(self.clock.monotonic())
        fault = self.script.pop(0) if self.script else None
        if fault:
            raise fault

    def put(self, key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        self._next()
        return super().put(key, data, condition)

    def head(self, key: str) -> ObjectInfo:
        self._next()
        return super().head(key)

    def read(
        self, key: str, start: int = 0, length: int | None = None, version: str | None = None
    ) -> Iterator[bytes]:
        self._next()
        self.starts.append(start)
        limit = self.break_reads_at.pop(0) if self.break_reads_at else None
        for chunk in super().read(key, start, length, version):
            yield chunk if limit is None else chunk[:limit]
            if limit is not None:
                raise Transient("the connection broke")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def faulty(tmp_path: Path, clock: FakeClock) -> Faulty:
    return Faulty(tmp_path / "bucket", clock)


@pytest.fixture
def stop() -> threading.Event:
    return threading.Event()


def down(count: int, **how: float) -> list[Exception | None]:
    return [Transient(f"down {n}", **how) for n in range(count)]  # type: ignore[arg-type]


def test_an_outage_of_hours_ends_in_success(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    store = Resilient(faulty, clock, stop)
    faulty.script = down(500)
    store.put("a", b"x")
    assert len(faulty.calls) == 501
    assert clock.monotonic() > 3600
    gaps = [b - a for a, b in zip(faulty.calls, faulty.calls[1:], strict=False)]
    assert max(gaps) <= 121, "recovery is noticed within a back-off or two"
    assert not store.circuit.failures


@pytest.mark.parametrize("error", [NeedsOperator("no"), NotFound("none"), Conflict("there")])
def test_only_transient_errors_are_retried(
    faulty: Faulty, clock: FakeClock, stop: threading.Event, error: Exception
) -> None:
    store = Resilient(faulty, clock, stop)
    faulty.script = [error]
    with pytest.raises(type(error)):
        store.put("a", b"x")
    assert len(faulty.calls) == 1


def test_the_store_decides_how_long_to_wait(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    store = Resilient(faulty, clock, stop)
    faulty.script = down(1, retry_after=42.0)
    store.put("a", b"x")
    assert faulty.calls[1] - faulty.calls[0] >= 42.0


def test_a_deadline_raises_the_last_failure(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    end = clock.monotonic() + 30
    store = Resilient(faulty, clock, stop, lambda: end)
    faulty.script = down(1000)
    with pytest.raises(Transient, match="down"):
        store.put("a", b"x")
    assert clock.monotonic() <= end + 1


def test_patience_counts_from_the_first_failure_after_an_answer(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    """A restore that has gone on for hours is not over at its first broken connection."""
    data = bytes(range(256)) * 8192
    faulty.script = down(3)
    store = Resilient(faulty, clock, stop, patience=30)
    store.put("a", data)
    reading = store.read("a")
    got = next(reading)
    clock.sleep(3600)
    faulty.break_reads_at = [1000, 5]
    faulty.script = down(2)
    store.head("a")
    assert got + b"".join(reading) == data
    clock.sleep(3600)
    faulty.script, began = down(1000), clock.monotonic()
    with pytest.raises(Transient, match="down"):
        store.head("a")
    assert began + 29 <= clock.monotonic() <= began + 31


def test_patience_counts_from_the_opening_until_there_is_an_answer(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    store = Resilient(faulty, clock, stop, patience=30)
    clock.sleep(25)
    faulty.script, began = down(1000), clock.monotonic()
    with pytest.raises(Transient, match="down"):
        store.head("a")
    assert began + 4 <= clock.monotonic() <= began + 6


@pytest.mark.parametrize(("failures", "asked"), [(12, 0.0), (12, 300.0), (0, 0.0), (0, 300.0)])
def test_an_end_that_comes_during_a_pause_is_time_to_try(
    faulty: Faulty, clock: FakeClock, stop: threading.Event, failures: int, asked: float
) -> None:
    """The store is back, and the pause would last longer than the time that is left."""
    began = clock.monotonic()
    attempts = Attempts(clock, stop, lambda: began + 15 if clock.monotonic() >= began + 5 else None)
    for error in down(failures, retry_after=asked):
        assert isinstance(error, Transient)
        attempts.failed(error)
    faulty.script = down(2, retry_after=asked or 30.0)
    attempts.make(lambda: faulty.put("a", b"x"))
    assert clock.monotonic() <= began + 12


def test_before_an_end_no_pause_is_long(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    end = clock.monotonic() + 60
    store = Resilient(faulty, clock, stop, lambda: end)
    faulty.script = down(1000, retry_after=40.0)
    with pytest.raises(Transient, match="down"):
        store.put("a", b"x")
    gaps = [b - a for a, b in zip(faulty.calls, [*faulty.calls[1:], end], strict=True)]
    assert max(gaps) <= 2.5


def test_stopping_ends_the_wait(faulty: Faulty, clock: FakeClock, stop: threading.Event) -> None:
    store = Resilient(faulty, clock, stop)
    faulty.script = down(1000)
    stop.set()
    with pytest.raises(Transient):
        store.put("a", b"x")
    assert len(faulty.calls) == 1


def test_the_circuit_says_what_is_wrong(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    seen: list[tuple[bool, int, str]] = []
    store = Resilient(
        faulty,
        clock,
        stop,
        on_change=lambda circuit: seen.append((circuit.open, circuit.failures, circuit.message)),
    )
    faulty.script = down(6)
    store.put("a", b"x")
    assert seen[3] == (False, 4, "down 3")
    assert seen[4] == (True, 5, "down 4")
    assert seen[-1] == (False, 0, "")


def test_while_the_store_is_down_one_request_probes_it(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    """Eight threads want something of a dead store: never are two requests under way."""
    store = Resilient(faulty, clock, stop)
    busy, most, lock = 0, 0, threading.Lock()
    back = threading.Event()
    made = 0

    def request() -> None:
        nonlocal busy, most, made
        with lock:
            busy += 1
            made += 1
            if store.circuit.open:
                most = max(most, busy)
            answered = made > 60
        try:
            if not answered:
                back.wait(0.001)
                raise Transient("down")
        finally:
            with lock:
                busy -= 1

    for _ in range(5):  # the circuit is open before the threads begin
        with pytest.raises(Transient):
            Resilient.attempt(store, once(stop, request))
        stop.clear()
    assert store.circuit.open
    threads = [threading.Thread(target=store.attempt, args=(request,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert most == 1
    assert not store.circuit.open


def once(stop: threading.Event, request: Callable[[], None]) -> Callable[[], None]:
    """A request after whose failure nothing is tried again."""

    def asked() -> None:
        stop.set()
        request()

    return asked


def test_a_reading_goes_on_where_it_broke(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    store = Resilient(faulty, clock, stop)
    data = bytes(range(256)) * 8192
    store.put("a", data)
    faulty.break_reads_at = [1000, 5, 70_000]
    assert b"".join(store.read("a", 10, 1_500_000)) == data[10:1_500_010]
    assert faulty.starts == [10, 1010, 1015, 71_015]


def test_a_reading_never_mixes_two_versions(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    store = Resilient(faulty, clock, stop)
    store.put("a", b"a" * 2_000_000)
    faulty.break_reads_at = [1000]
    reading = store.read("a")
    assert next(reading) == b"a" * 1000
    store.put("a", b"b" * 2_000_000)
    with pytest.raises(Conflict):
        list(reading)


class Meanwhile:
    """Somebody else does something after each look at an object."""

    def __init__(self, store: ObjectStore, deeds: list[Callable[[], object]]) -> None:
        self._store = store
        self._deeds = deeds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def head(self, key: str) -> ObjectInfo:
        info = self._store.head(key)
        if self._deeds:
            self._deeds.pop(0)()
        return info


def test_what_is_replaced_before_its_first_byte_is_read_as_it_is_by_then(
    bucket: Bucket, clock: FakeClock, stop: threading.Event
) -> None:
    inner = bucket.open()
    first = inner.put("a/record", b"first")
    meanwhile = Meanwhile(inner, [lambda: inner.put("a/record", b"the second one")])
    store = Resilient(meanwhile, clock, stop)
    assert b"".join(store.read("a/record")) == b"the second one"
    with pytest.raises((Conflict, NotFound)):
        list(store.read("a/record", version=first.version))


def test_what_is_deleted_before_its_first_byte_is_not_found(
    bucket: Bucket, clock: FakeClock, stop: threading.Event
) -> None:
    """What machines that save together do with each other's parts: the checkpoint goes on."""
    inner = bucket.open()
    inner.put("a/record", b"first")
    store = Resilient(Meanwhile(inner, [lambda: inner.delete(["a/record"])]), clock, stop)
    with pytest.raises(NotFound):
        list(store.read("a/record"))


def test_parts_are_retried_and_finish_too(
    faulty: Faulty, clock: FakeClock, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Resilient(faulty, clock, stop)
    upload = store.start_upload("a", 6)
    inner = upload._upload  # type: ignore[attr-defined]
    faults = down(3)
    for verb in ("send", "finish"):
        plain = getattr(inner, verb)

        def flaky(*arguments: object, plain: Callable[..., object] = plain) -> object:
            if faults:
                raise faults.pop()  # type: ignore[misc]
            return plain(*arguments)

        monkeypatch.setattr(inner, verb, flaky)
    upload.send(1, b"abc")
    faults.extend(down(2))
    upload.send(2, b"def")
    faults.extend(down(2))
    assert upload.finish(IfAbsent()).size == 6
    assert b"".join(store.read("a")) == b"abcdef"


def test_ranges_that_are_not_copied_in_time_are_an_outage_and_no_answer(
    faulty: Faulty, clock: FakeClock, stop: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Resilient(faulty, clock, stop)
    source = store.put("old", b"abc")
    upload = store.start_upload("a", 6)
    faults = down(4)

    def never(*_arguments: object) -> str:
        raise faults.pop()  # type: ignore[misc]

    monkeypatch.setattr(upload._upload, "copy", never)  # type: ignore[attr-defined]
    with pytest.raises(Permanent) as raised:
        upload.copy(1, source, 0, 3)
    assert isinstance(raised.value.__cause__, Transient)
    assert (len(faults), store.circuit.failures) == (1, 3)


def test_a_lost_acknowledgement_of_a_conditional_put_is_left_to_the_caller(
    faulty: Faulty, clock: FakeClock, stop: threading.Event
) -> None:
    store = Resilient(faulty, clock, stop)
    plain = faulty.put

    def deaf(key: str, data: Buffer, condition: Condition = None) -> ObjectInfo:
        info = plain(key, data, condition)
        if len(faulty.calls) == 1:
            raise Transient("the answer was lost")
        return info

    faulty.put = deaf  # type: ignore[method-assign]
    with pytest.raises(Conflict):
        store.put("seq", b"mine", IfAbsent())
    assert b"".join(store.read("seq")) == b"mine"
