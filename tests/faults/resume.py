"""A large file over a slow line, and the daemon is killed again and again: how much travels twice?

``python -m tests.faults.resume --size 2G --rate 20M --every 5-15``: one file, one line whose bytes
are counted, and a daemon that SIGKILL meets every so many seconds until the file is committed, or
``--kills`` times. Sent may be 1.05 times the size, and for each kill the parts that were in flight;
the same upload goes on all the time, and none is left in the end. It ends with 1 if any of this
does not hold, or if what the store holds in the end is not the file.

``--rewrite 0.3`` replaces the file after that share of the kills: then uploads are given up, and
only that none of them is left is looked at.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from syncd.config import parse_bytes
from syncd.control import Client
from syncd.stores import open_store
from syncd.transfer import SINGLE_PUT
from tests.faults.children import Child, syncd
from tests.faults.places import Bucket, place_of
from tests.servers import links

CONCURRENCY = 4
_NAME = "large.bin"
_PATIENCE = 600.0
"""Seconds from the last kill after which the file should have been committed."""


@dataclass(frozen=True)
class Told:
    """What came of it; sizes in bytes. ``uploads`` counts those that lasted over a kill."""

    size: int
    kills: int
    upward: int
    uploads: int
    pending: int
    whole: bool
    seconds: float

    @property
    def allowed(self) -> float:
        """Bytes that may travel: little more than the file, and what was in flight at a kill."""
        return 1.05 * self.size + self.kills * CONCURRENCY * SINGLE_PUT

    def faults(self, rewritten: bool) -> list[str]:
        """Promises that were not kept."""
        found = []
        if not self.whole:
            found.append("what is committed is not the file")
        if self.pending:
            found.append(f"{self.pending} uploads are left")
        if not rewritten and self.upward > self.allowed:
            found.append(f"{self.upward} bytes were sent, {self.allowed:.0f} are allowed")
        if not rewritten and self.uploads > 1:
            found.append(f"{self.uploads} uploads were begun")
        return found


class Rig:
    """A disk, a line, a bucket, and one daemon after the other."""

    def __init__(self, disk: Path, bucket: Bucket, rate: int) -> None:
        self.disk = disk
        self.bucket = bucket
        self.checkpoints = disk / "checkpoints"
        self.checkpoints.mkdir(parents=True)
        self.upward = multiprocessing.Value("Q", 0)
        listener = links.listener()
        here = int(listener.getsockname()[1])
        counted = self.upward
        self.line = Child(
            lambda: links.run(listener, bucket.port, rate, upward=counted), disk / "line.log"
        )
        listener.close()
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "CLOUD_"))},
            "AWS_EC2_METADATA_DISABLED": "true",
            "SYNCD_HTTP": "off",
            "SYNCD_SETTLE": "0.2",
            "SYNCD_CONCURRENCY": str(CONCURRENCY),
            **bucket.settings(),
            **bucket.at_port(here),
        }

    def write(self, size: int) -> None:
        """A new file, in one act."""
        aside = self.checkpoints / f"{_NAME}.tmp"
        with aside.open("wb") as file:
            for at in range(0, size, SINGLE_PUT):
                file.write(os.urandom(min(SINGLE_PUT, size - at)))
        aside.replace(self.checkpoints / _NAME)

    def start(self) -> Child:
        """The daemon's next life."""
        return Child(syncd((), self.disk, self.environ), self.disk / "daemon.log")

    def committed(self) -> bool:
        """Whether the daemon says that all is safe."""
        state = Client(self.disk / ".syncd").ask("/status") or {}
        point = state.get("recovery_point") or {}
        return point.get("checkpoint") == _NAME and not state.get("pending")

    def pending(self) -> set[str]:
        """Ids of the uploads that are under way in the store."""
        store = open_store(self.bucket.provider, self.bucket.name, self.bucket.env)
        found = {upload.id for upload in store.pending_uploads("")}
        store.close()
        return found

    def by_hand(self, *arguments: str) -> int | None:
        """A command, not over the line; its exit code."""
        environ = {**self.environ, **self.bucket.settings()}
        return Child(syncd(arguments, self.disk, environ), self.disk / "hand.log").wait(_PATIENCE)


@dataclass(frozen=True)
class Kills:
    """When SIGKILL comes: after so many ``seconds``, or once so many ``bytes`` have been sent.

    At most ``most`` times (None: until the file is there); the file is replaced after the
    ``rewrite``-th part of them.
    """

    seconds: tuple[float, float]
    bytes: tuple[float, float] | None
    most: int | None
    rewrite: float


def live(rig: Rig, daemon: Child, kills: Kills, rng: random.Random) -> None:
    """Let it be until it is to be killed, or is done."""
    if kills.bytes is None:
        daemon.wait(rng.uniform(*kills.seconds))
        return
    until = rig.upward.value + rng.uniform(*kills.bytes)
    while rig.upward.value < until and daemon.wait(0.02) is None:
        if not int(time.monotonic() * 10) % 10 and rig.committed():
            return


def run(rig: Rig, size: int, kills: Kills) -> Told:
    """Kill it until the file is there, or so many times."""
    rng = random.Random(1)
    rig.write(size)
    began, killed = time.monotonic(), 0
    lasting: set[str] = set()
    daemon = rig.start()
    try:
        while kills.most is None or killed < kills.most:
            live(rig, daemon, kills, rng)
            if daemon.code is not None:
                raise RuntimeError(f"the daemon ended by itself: see {rig.disk}/daemon.log")
            if not kills.rewrite and rig.committed():
                break
            daemon.kill()
            killed += 1
            lasting |= rig.pending()
            if rng.random() < kills.rewrite:
                rig.write(size)
            daemon = rig.start()
        until = time.monotonic() + _PATIENCE
        while not rig.committed():
            if time.monotonic() > until or daemon.wait(0.2) is not None:
                raise RuntimeError(f"it is not committed: see {rig.disk}/daemon.log")
    finally:
        daemon.kill()
    seconds = time.monotonic() - began
    flushed = rig.by_hand("--once")
    pruned = rig.by_hand("prune")
    whole = flushed == 0 and pruned == 0 and rig.by_hand("verify") == 0
    return Told(
        size, killed, rig.upward.value, len(lasting), len(rig.pending()), whole, round(seconds, 1)
    )


def _range(text: str) -> tuple[float, float]:
    low, _, high = text.partition("-")
    return float(low), float(high or low)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=parse_bytes, default="192M")
    parser.add_argument(
        "--rate", type=parse_bytes, default="24M", help="bytes per second of the line"
    )
    parser.add_argument("--every", type=_range, default="5-15", help="seconds between two kills")
    parser.add_argument("--after", type=_range, metavar="MiB", help="bytes between two kills")
    parser.add_argument("--kills", type=int)
    parser.add_argument("--rewrite", type=float, default=0.0)
    parser.add_argument("--store", choices=("s3", "azure"), default="s3")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--keep", action="store_true", help="leave disk and logs")
    chosen = parser.parse_args(arguments)
    # imported once, here, and by none of the children
    from syncd import checks, daemon, manual  # noqa: F401

    home = Path(tempfile.mkdtemp(prefix="syncd-resume-"))
    with place_of(chosen.store, home / "server") as place:
        bucket = place.make()
        rig = Rig(home / "disk", bucket, chosen.rate)
        try:
            after = tuple(edge * 2**20 for edge in chosen.after) if chosen.after else None
            kills = Kills(chosen.every, after, chosen.kills, chosen.rewrite)
            told = run(rig, chosen.size, kills)
        finally:
            rig.line.kill()
    if not chosen.keep:
        shutil.rmtree(home, ignore_errors=True)
    faults = told.faults(bool(chosen.rewrite))
    if chosen.json:
        print(json.dumps({**asdict(told), "allowed": told.allowed, "faults": faults}))
    else:
        print(
            f"{told.size / 1e6:.0f} MB, {told.kills} kills in {told.seconds} s: "
            f"{told.upward / 1e6:.0f} MB sent ({told.upward / told.size:.3f} times the size; "
            f"{told.allowed / 1e6:.0f} MB allowed), {told.uploads} uploads, {told.pending} left"
        )
        print("\n".join(faults) or "all as promised")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
