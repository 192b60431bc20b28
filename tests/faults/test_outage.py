"""Hours of outage cost nothing: no memory, no stampede of requests, no stale bytes afterwards."""

from __future__ import annotations

import gc
import json
import os
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncd.config import Environment, load_settings
from syncd.engine import Engine
from syncd.health import Health
from syncd.opening import open_journal
from syncd.stores.attempts import Attempts
from syncd.stores.resilient import Resilient
from tests.clocks import FakeClock
from tests.faults.blackhole import black_hole
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import SLOW_DOWN, Wire

pytestmark = pytest.mark.timed

HOUR = 3600.0
EVERY = 300.0
OUTAGE = 6 * HOUR


class Outage(FakeClock):
    """While it lasts a trainer saves each five minutes; at its end the store is back.

    No time passes while a request is under way: two threads ask the store, and the one that waits
    for its turn would push the clock on by minutes while the other is answered.
    """

    def __init__(self, wire: Wire, root: Path) -> None:
        super().__init__()
        self._wire, self._root = wire, root
        self._saving = threading.Lock()
        self.began = self.next_save = self.now()
        self.over = self.began + OUTAGE
        self.saves = 0
        self._asking: set[int] = set()

    def watch(self, attempts: Attempts) -> None:
        """Know of the requests that are under way."""
        observed = attempts._observed

        def known(request: Callable[[], Any]) -> Any:
            self._asking.add(threading.get_ident())
            try:
                return observed(request)
            finally:
                self._asking.discard(threading.get_ident())

        attempts._observed = known  # type: ignore[method-assign]

    def wait(self, event: threading.Event, seconds: float) -> bool:
        while self._asking - {threading.get_ident()}:
            if event.wait(0.001):
                return True
        return super().wait(event, seconds)

    def sleep(self, seconds: float) -> None:
        super().sleep(seconds)
        del self.waits[:]  # a test's own memory is not what is measured
        with self._saving:
            while self.next_save <= min(self.now(), self.over):
                self.next_save += EVERY
                self.saves += 1
                self.save()
            if self.now() >= self.over:
                self._wire.refuse = b""

    def save(self) -> None:
        target = self._root / f"run/gen-{self.saves:06}"
        aside = target.with_name(f".tmp-{target.name}")
        aside.mkdir(parents=True)
        (aside / "w.bin").write_bytes(os.urandom(400_000))
        (aside / "state.json").write_text(json.dumps({"generation": self.saves}))
        aside.rename(target)
        # what a real clock would have written
        for path in target.iterdir():
            os.utime(path, (self.now(), self.now()))


@pytest.mark.alone
@pytest.mark.slow
def test_six_hours_of_503(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    seaweedfs.client().create_bucket(Bucket=(bucket := f"outage-{os.getpid()}"))
    wire = Wire(seaweedfs.port)
    root = tmp_path / "checkpoints"
    root.mkdir()
    environ = {
        **seaweedfs.env(),
        "CLOUD_PROVIDER": "s3",
        "CLOUD_BUCKET": bucket,
        "AWS_ENDPOINT_URL": seaweedfs.url.replace(str(seaweedfs.port), str(wire.port)),
        "CHECKPOINT_DIR": str(root),
        "LOG_DIR": str(tmp_path / "logs"),
        "SYNCD_STATE_DIR": str(tmp_path / "state"),
        "SYNCD_KEEP_LAST": "3",
    }
    settings = load_settings(Environment(environ, tmp_path / "no-file"))
    clock = Outage(wire, root)
    clock.next_save = clock.over + HOUR  # nothing yet
    health = Health(clock)
    engine = Engine(settings, open_journal(settings), health, clock, threading.Event())
    engine.connect(settings)
    assert isinstance(engine.store, Resilient)
    clock.watch(engine.store._attempts)
    clock.save()
    engine.step(lambda: False)
    assert health.snapshot()["commits"] == 1

    tracemalloc.start()
    clock.began, clock.next_save = clock.now(), clock.now()
    clock.over = clock.began + OUTAGE
    clock.saves = 100
    clock.sleep(0.0)
    wire.refuse = SLOW_DOWN
    before = health.snapshot()
    gc.collect()
    memory = tracemalloc.get_traced_memory()[0]
    while not (health.snapshot()["recovery_point"] or {})["checkpoint"].endswith(
        f"{clock.saves:06}"
    ):
        engine.step(lambda: False)
        assert clock.now() < clock.over + HOUR
    late = clock.now() - clock.over
    gc.collect()
    grown = tracemalloc.get_traced_memory()[0] - memory
    tracemalloc.stop()
    after = health.snapshot()
    sent = after["sent_bytes"] - before["sent_bytes"]
    print(
        f"6 h of 503: {wire.refused} requests, {clock.saves - 100} saves, the newest committed "
        f"{late:.0f} s after the end, {sent / 1e6:.1f} MB sent, memory {grown / 2**20:+.1f} MiB"
    )
    assert clock.saves > 170
    assert wire.refused <= OUTAGE / 60 + 20
    assert late <= 61.0
    assert grown < 10 * 2**20
    engine.step(lambda: False)
    committed = health.snapshot()["commits"] - before["commits"]
    assert committed <= 3  # what retention keeps, and not the 72 that were superseded
    engine.disconnect()
    wire.close()


@pytest.mark.slow
def test_black_hole(tmp_path: Path, seaweedfs: SeaweedFS) -> None:
    """Half a minute of what ``python -m tests.faults.blackhole`` does for ten.

    The machine is shared: where its neighbours may have slowed one look, two more must do.
    """
    ratios: list[float] = []
    for name in ("one", "two", "three"):
        seen = black_hole(0.5, seaweedfs, tmp_path / name)
        print(seen)
        assert seen.grown_mib < 10
        assert seen.connections <= 12
        ratios.append(seen.ratio)
        if ratios[0] < 1.1:
            break
    assert max(ratios[1:] or ratios) < 1.1, ratios
