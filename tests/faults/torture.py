"""The machine is lost at random moments: is what comes back ever torn or mixed?

``python -m tests.faults.torture --minutes 10 --seed 1 --store s3``: each trial runs a writer and
the daemon over a thin line, kills both with SIGKILL, restores on an empty disk and looks at every
byte of the restored disk and of every commit in the store. It prints a line for each writer, and
ends with 1 if anything was torn, mixed, out of order, written by a fenced machine, sent twice, or
lost though there had been time to send it. "Starved" are losses by a daemon that had waited for a
processor for as long as it was late: more trials side by side than the machine can run.

``--control rclone`` and ``--control aws`` run a plain sync in a loop in the daemon's place: a rig
under which those do not fail would prove nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from tests.faults.children import be_one_machine, die_with_parent
from tests.faults.controls import CONTROLS
from tests.faults.places import STORES, Bucket, Place, place_of
from tests.faults.plans import Plan
from tests.faults.trials import Trial, run_trial
from tests.faults.writers import WRITERS

_PATIENCE = 300.0
"""Seconds after which a trial hangs."""

_FAULTS = ("torn", "mixed", "order", "fence", "restore", "resent", "rig")


@dataclass(frozen=True)
class Order:
    """What a lane is to do."""

    writer: str
    seed: int
    home: Path
    bucket: Bucket
    control: str | None


def _lane(line: Connection) -> None:
    """Trial after trial in a process with one thread, so that it may fork."""
    import boto3  # noqa: F401 - imported once, here, and by none of the children
    import google.cloud.storage  # noqa: F401
    from azure.storage import blob  # noqa: F401

    from syncd import checks, daemon, manual  # noqa: F401

    die_with_parent()
    be_one_machine()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError):
        while True:
            order: Order = line.recv()
            given = (order.writer, order.seed, order.home, order.bucket, order.control)
            line.send(run_trial(*given))


@dataclass
class _Lane:
    process: multiprocessing.process.BaseProcess
    line: Connection
    order: Order | None = None
    since: float = 0.0


class Rig:
    """Lanes side by side, each with a trial; mostly they sleep."""

    def __init__(
        self, place: Place, lanes: int, keep: Path | None = None, control: str | None = None
    ) -> None:
        self._place = place
        self._keep = keep
        self._control = control
        self._context = multiprocessing.get_context("spawn")
        self._folder = Path(tempfile.mkdtemp(prefix="torture-"))
        self._lanes = [self._new_lane() for _ in range(lanes)]

    def _new_lane(self) -> _Lane:
        here, there = self._context.Pipe()
        process = self._context.Process(target=_lane, args=(there,), daemon=True)
        process.start()
        there.close()
        return _Lane(process, here)

    def close(self) -> None:
        """End everything, also trials under way."""
        for lane in self._lanes:
            lane.process.kill()
            lane.process.join()
            lane.line.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self, todo: Iterator[tuple[str, int]]) -> Iterator[Trial]:
        """Trials as they end; ``todo`` names writers and seeds."""
        while True:
            for lane in self._lanes:
                if lane.order is None and (task := next(todo, None)):
                    self._begin(lane, *task)
            busy = {lane.line: lane for lane in self._lanes if lane.order}
            if not busy:
                return
            for line in wait([*busy], timeout=1.0):
                yield self._end(busy[line])  # type: ignore[index]
            for lane in busy.values():
                if lane.order and time.monotonic() - lane.since > _PATIENCE:
                    yield self._give_up(lane)

    def _begin(self, lane: _Lane, writer: str, seed: int) -> None:
        home = self._folder / str(seed)
        home.mkdir()
        lane.order = Order(writer, seed, home, self._place.make(), self._control)
        lane.since = time.monotonic()
        lane.line.send(lane.order)

    def _end(self, lane: _Lane) -> Trial:
        assert lane.order
        try:
            trial: Trial = lane.line.recv()
        except EOFError:
            return self._give_up(lane)
        self._clear(lane.order, trial)
        lane.order = None
        return trial

    def _give_up(self, lane: _Lane) -> Trial:
        """The lane hangs or has died: begin another one."""
        order = lane.order
        assert order
        lane.process.kill()
        lane.process.join()
        self._lanes[self._lanes.index(lane)] = self._new_lane()
        trial = Trial(order.writer, order.seed, "", faults=["rig: the lane hung or died"])
        self._clear(order, trial)
        return trial

    def _clear(self, order: Order, trial: Trial) -> None:
        if self._keep and trial.seen:
            kept, sockets = self._keep / str(order.seed), shutil.ignore_patterns("*.sock")
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(order.home, kept, symlinks=True, ignore=sockets)
            if order.bucket.provider == "local":
                shutil.copytree(order.bucket.name, kept / "bucket")
        shutil.rmtree(order.home, ignore_errors=True)
        self._place.drop(order.bucket)


def tasks(
    writers: Sequence[str], seed: int, minutes: float | None, trials: int | None
) -> Iterator[tuple[str, int]]:
    """The writers in turns, each trial with a seed of its own, until it is enough."""
    until = time.monotonic() + (minutes if minutes is not None else 1e9) * 60
    number = 0
    while time.monotonic() < until and (trials is None or number < trials):
        yield writers[number % len(writers)], seed * 100_000 + number
        number += 1


def bad(trials: Sequence[Trial]) -> list[Trial]:
    """Those that must not be."""
    return [trial for trial in trials if trial.faults and not trial.void]


def table(trials: Sequence[Trial], title: str) -> str:
    """A line for each writer, and the sum."""
    head = f"{title:<18} {'trials':>6} {'intact':>6} {'nothing':>7}"
    head += "".join(f" {kind:>7}" for kind in _FAULTS)
    lines = [f"{head}  late starved void  behind  age s"]
    for writer in [*WRITERS, ""]:
        mine = [trial for trial in trials if writer in ("", trial.writer)]
        if not mine:
            continue
        counted = [trial for trial in mine if not trial.void]
        kinds = Counter(trial.verdict for trial in counted)
        faults = Counter(fault.split()[0].strip(":") for t in counted for fault in t.faults[:1])
        lines.append(
            f"{writer or 'all':<18} {len(mine):>6} {kinds['intact']:>6} {kinds['nothing']:>7}"
            + "".join(f" {faults[kind]:>7}" for kind in _FAULTS)
            + f" {sum(bool(t.late) for t in counted):>5}"
            + f" {sum(bool(t.starved) for t in counted):>7} {sum(bool(t.void) for t in mine):>4}"
            + f" {statistics.fmean(t.behind for t in mine):>7.1f}"
            + f" {statistics.fmean(t.age for t in mine):>6.1f}"
        )
    return "\n".join(lines)


@contextlib.contextmanager
def rig(
    store: str, lanes: int = 3, keep: Path | None = None, control: str | None = None
) -> Iterator[Rig]:
    """A rig with its server, for as long as the block takes."""
    with (
        tempfile.TemporaryDirectory(prefix="torture-buckets-") as folder,
        place_of(store, Path(folder)) as place,
    ):
        made = Rig(place, lanes, keep, control)
        try:
            yield made
        finally:
            made.close()


def _tell(trial: Trial) -> None:
    note = f" (void: {trial.void})" if trial.void else ""
    for words in trial.seen:
        print(f"seed {trial.seed} {trial.writer}: {words}{note}", flush=True)
    if trial.seen:
        print(f"    {trial.plan}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="for so long; 10 unless --trials is given")
    parser.add_argument("--trials", type=int, help="so many")
    parser.add_argument("--seed", type=int, default=1, help="what the trials are drawn from")
    parser.add_argument("--store", choices=STORES, default="local")
    parser.add_argument("--lanes", type=int, default=3, help="trials side by side")
    parser.add_argument("--writer", choices=[*WRITERS], action="append", help="only these")
    parser.add_argument("--replay", type=int, metavar="SEED", help="one trial again: its seed")
    parser.add_argument("--control", choices=[*CONTROLS], help="instead of syncd; --store s3")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="disks of trials that failed")
    return parser.parse_args()


def main() -> int:
    """Run, and print a line for each writer and the sum."""
    given = _arguments()
    writers = given.writer or [*WRITERS]
    if given.replay is not None:
        if len(writers) != 1:  # the number of a trial says whose turn it was
            writers = [[*WRITERS][given.replay % 100_000 % len(WRITERS)]]
        todo: Iterator[tuple[str, int]] = iter([(writers[0], given.replay)])
        print(f"{writers[0]}: {Plan.draw(given.replay, WRITERS[writers[0]]).words()}")
    else:
        minutes = given.minutes if given.minutes or given.trials else 10.0
        todo = tasks(writers, given.seed, minutes, given.trials)
    trials: list[Trial] = []
    store = "s3" if given.control else given.store
    with (
        contextlib.suppress(KeyboardInterrupt),
        rig(store, given.lanes, given.keep, given.control) as running,
    ):
        for trial in running.run(todo):
            trials.append(trial)
            _tell(trial)
            if sys.stderr.isatty():
                words = f"\r{len(trials)} trials, {len(bad(trials))} failed "
                print(words, end="", file=sys.stderr, flush=True)
    print(table(trials, given.control or f"syncd on {store}"))
    return int(bool(bad(trials)) or any(trial.late for trial in trials))


if __name__ == "__main__":
    sys.exit(main())
