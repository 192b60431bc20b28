"""Everything that one connection to the store needs, put together: for the daemon and by hand."""

from __future__ import annotations

import logging
import math
import secrets
import threading
from collections.abc import Callable, Collection
from contextlib import nullcontext

from syncd import leftovers
from syncd.alongside import is_companion
from syncd.backlog import Look
from syncd.clock import Clock
from syncd.commit import Publisher
from syncd.compacted import Compactor
from syncd.config import Settings
from syncd.errors import NeedsOperator, StoreError, SyncdError
from syncd.flushing import FlushReport, flush
from syncd.health import Health
from syncd.joint import JointPublisher
from syncd.journal import Journal
from syncd.logs import LogShipper
from syncd.moments import Moments
from syncd.opening import home_of, open_resilient
from syncd.pace import RateLimit
from syncd.packing import Packer, packer_for
from syncd.parting import HINT
from syncd.pipeline import Ends, Pipeline
from syncd.probe import known_conditions, restrict
from syncd.records import Layout
from syncd.retention import Retention, prune_local
from syncd.scan import scan
from syncd.series import series
from syncd.snapshot import Snapshots
from syncd.stores.attempts import Circuit
from syncd.stores.base import ObjectStore
from syncd.sweeper import Sweeper
from syncd.transfer import Transfer
from syncd.units import Unit, units
from syncd.unproven import mark_begun
from syncd.unsent import newer
from syncd.uploads import Uploads

log = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
PACKING = "packing"

_SETTLE_JOURNAL = 5.0
"""Seconds between looks whether a journal that is in memory only can be on disk again."""

_NO_FOLDER = 1800.0
"""Seconds in which a trainer makes its folder, if anybody does."""

_SWEEPS = 10.0
"""Seconds that a flush by hand gives to the search for forgotten uploads."""

_OTHERS = 15.0
"""Seconds that a flush by hand waits for the parts of other machines."""

_SETTLES = 5
"""How many times SYNCD_SETTLE a flush waits for what is being written as it begins."""


class Engine:
    """One connection: opened with the credentials of now, replaced when they change."""

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        health: Health,
        clock: Clock,
        abort: threading.Event,
        deadline: Callable[[], float | None] = lambda: None,
        writer: str = "",
        ends: Ends = lambda: None,
        limit: RateLimit | None = None,
        title: str = "the store",
        lenient: bool = False,
    ) -> None:
        """``deadline`` ends retries, ``ends`` says when a process that is stopping must be gone.

        ``limit`` is shared with others; ``title`` is what a person calls the store.
        """
        self._title = title
        self._lenient = lenient
        self.settings = settings
        self._ends = ends
        self._halt = threading.Event()
        self._journal_at = 0.0
        self._there = clock.monotonic()
        self.journal = journal
        self.health = health
        self.clock = clock
        self._abort = abort
        self._deadline = deadline
        self._writer = writer or new_writer()
        self.layout = Layout(settings.cloud_prefix)
        folder = settings.state_dir / SNAPSHOTS
        snapshots = Snapshots(folder, settings.checkpoint_dir, settings.snapshot_limit)
        snapshots.clear()
        Packer.clear(settings.state_dir / PACKING)
        self.pipeline = Pipeline(
            settings.checkpoint_dir,
            journal,
            health,
            clock,
            settings.settle,
            settings.exclude,
            settings.keep_last,
            snapshots,
            self.layout,
            settings.keep_every,
            settings.rank,
        )
        self.logs = LogShipper(
            settings.log_dir,
            journal,
            self.layout,
            health,
            settings.exclude,
            clock,
            settings.log_interval,
            settings.state_dir / "logs",
        )
        self.limit = limit or RateLimit(settings.bwlimit, clock, abort)
        self.store: ObjectStore | None = None
        self.out_of_reach = False
        self.uploads: Uploads | None = None
        self._failed_at = float("-inf")
        self.pipeline.failed_at = lambda: self._failed_at
        self._moments = Moments()
        self._sweeper = Sweeper(settings.checkpoint_dir, clock)
        self._compactor: Compactor | None = None
        self.transfer: Transfer | None = None
        self.publisher: Publisher | None = None

    def connect(self, settings: Settings) -> None:
        """Open the store and join the commit log; the errors of the store are raised."""
        self.disconnect()
        self.out_of_reach = False
        store = open_resilient(settings, self.clock, self._abort, self._limit, self._on_circuit)
        self.store = store
        self.health.store = store.name
        found = known_conditions(store, self.layout, self.journal, self.clock)
        restrict(store, found)
        if not found.puts:
            log.warning("%s cannot refuse a second writer: use it with one machine", store.name)
        self.uploads = Uploads(store, self.journal, self.layout, self.clock)
        self._compactor = Compactor(store, self.layout)
        packer = packer_for(settings.compress, settings.state_dir / PACKING)
        halt, uploads = self._halt, self.uploads
        transfer = self.transfer = Transfer(
            store,
            settings.concurrency,
            self.limit,
            self.health.sent,
            halt,
            uploads,
            packer,
            self._lenient,
        )
        publisher = self._publisher(store, transfer, settings)
        publisher.moments = self._moments
        for broken in publisher.join_log():
            log.error("%s", broken.explain())
        point = publisher.recovery_point()
        if point:
            log_of_all = self.journal.commits(self.layout)
            own = (record for record in log_of_all if not is_companion(record))
            self.health.recovered(point, own)
        else:
            mark_begun(store, self.layout)
        publisher.refresh()
        self.publisher = publisher

    def _publisher(self, store: ObjectStore, transfer: Transfer, settings: Settings) -> Publisher:
        root, home = settings.checkpoint_dir, home_of(settings.state_dir)
        args = store, self.journal, self.layout, transfer, self.clock, self._writer, home
        if settings.rank is None:
            return Publisher(root, *args)
        return JointPublisher(root, *args, rank=settings.rank, world=settings.world)

    def _limit(self) -> float | None:
        """When retries end: at once for what has to give way to something more urgent."""
        return 0.0 if self._halt.is_set() else self._deadline()

    def _on_circuit(self, circuit: Circuit) -> None:
        """An outage is news when it begins and when it ends; in between it is only counted."""
        self.out_of_reach = circuit.open
        if circuit.failures:
            self._failed_at = self.clock.monotonic()
        if circuit.open:
            words = f"{self._title} cannot be reached: {circuit.message}"
            if self.health.red("unreachable", words, circuit.hint or "retried until it answers"):
                log.warning("%s; trying until it answers", words)
        elif not circuit.failures and self.health.green("unreachable"):
            log.info("%s answers again", self._title)

    def mind_journal(self) -> None:
        """Have the journal on disk as soon as there is room; say so while it is not."""
        now = self.clock.monotonic()
        if now < self._journal_at:
            return
        self._journal_at = now + _SETTLE_JOURNAL
        if self.journal.settle():
            log.info("the journal is on disk again")
        if self.journal.volatile:
            words = f"the journal cannot be written: {self.journal.volatile}"
            hint = "free space in SYNCD_STATE_DIR, or correct its rights; copying goes on"
            self.health.red("journal", words, hint)
        else:
            self.health.green("journal")

    def mind_folder(self) -> None:
        """A folder whose name is mistyped holds nothing, for ever, and all of that is safe."""
        folder, now = self.settings.checkpoint_dir, self.clock.monotonic()
        if folder.is_dir():
            self._there = now
            self.health.green("folder")
        elif now - self._there >= _NO_FOLDER:
            words = f"CHECKPOINT_DIR {folder} is not there"
            if self.health.red("folder", words, "correct CHECKPOINT_DIR, or start the trainer"):
                log.error("%s", words)

    def disconnect(self) -> None:
        """Let go of the store."""
        if self.transfer:
            self.transfer.close()
        if self.store:
            self.store.close()
        self.store = self.uploads = self.transfer = self.publisher = self._compactor = None

    def step(self, give_up: Callable[[], bool]) -> Look:
        """Look once, and commit what is complete until something newer may have come."""
        look = self.pipeline.look()
        began = self.clock.monotonic()
        committed = False
        while self.publisher and look.pending and not give_up():
            self.health.begin(look.pending_bytes)
            record = self.pipeline.commit_next(look, self.publisher, self._ends)
            committed |= record is not None
            if look.pending and self.clock.monotonic() - began > 1.0:
                look = self.pipeline.look()
                began = self.clock.monotonic()
        if committed:
            self.retain()
        self._tell_rivals()
        self._mind_uploads(idle=not look.pending)
        return look

    def _mind_uploads(self, idle: bool) -> None:
        """Have uploads aborted that nobody will go on with."""
        if self.uploads and self.publisher:
            left_out = self.pipeline.obsolete_files()
            self._sweeper.mind(self.uploads, self.publisher.lives, left_out, idle)

    def _tell_rivals(self) -> None:
        """Where nobody can be fenced, say at least that another machine is at work."""
        words = self.publisher.rivals() if self.publisher else ""
        if words and self.health.red("side by side", words, HINT):
            log.error("%s (%s)", words, HINT)
        elif not words:
            self.health.green("side by side")

    def hurry(self) -> None:
        """There is no time to spare the trainer any more; from any thread."""
        if transfer := self.transfer:
            transfer.spare.hurry()

    def flush(self, give_up: Callable[[], bool]) -> FlushReport:
        """Commit all that is complete or becomes so by quiet alone, and send the logs.

        Where time is short: first what can still be committed, newest first, then the logs, then
        the rest, of which at least the parts that are sent need not be sent again.
        """
        with self.transfer.spare.hurrying() if self.transfer else nullcontext():
            return self._flush(give_up)

    def _flush(self, give_up: Callable[[], bool]) -> FlushReport:
        before = self.health.snapshot()["commits"]
        failed: dict[str, str] = {}
        shipped = 0
        look = self.pipeline.look()
        try:
            if self.publisher is None or self.transfer is None:
                raise NeedsOperator("not connected to the store")
            self.health.begin(look.pending_bytes)
            all_of_it = self.pipeline, self.publisher, self.clock, give_up
            flush(*all_of_it, 0.0, self._ends, only_in_time=True, look=look)
            try:
                shipped = self.logs.ship(self.transfer, give_up, flush=True)
            except OSError as error:  # whatever is wrong with them, checkpoints matter more
                failed["the logs"] = str(error)
            patience = _SETTLES * self.settings.settle + 1.0
            if self.settings.rank is not None:  # the others may need as long as there is time
                patience = _OTHERS if self._ends() is None else math.inf
            look = flush(*all_of_it, patience, self._ends)
            if self._ends() is None and not give_up():
                self._mind_uploads(idle=True)
                self._sweeper.wait(_SWEEPS)
        except StoreError as error:
            look = self.pipeline.look()
            failed["the store"] = error.explain()
        failed.update(self.pipeline.failures())
        failed.update({unit.path: "not sent yet" for unit, _ in look.pending})
        return FlushReport(
            self.health.snapshot()["commits"] - before,
            shipped,
            tuple(failed.items()),
            tuple(item for item in look.incomplete if item.path not in failed),
            tuple(self._newer(look).items()),
        )

    def _newer(self, look: Look) -> dict[str, str]:
        settings = self.settings
        safe = self.publisher.recovery_point() if self.publisher else None
        return newer(settings.checkpoint_dir, settings.exclude, look, safe)

    def retain(self) -> None:
        """Retention, where it is asked for, what nobody will name, and a long log; a failure waits.

        On disk first: what the store is about to let go could not be proven afterwards.
        """
        settings = self.settings
        try:
            if self.store and settings.rank is None:  # else a part may name it
                leftovers.clear(self.store, self.journal, settings.checkpoint_dir)
            if settings.keep_last_local is not None:
                self._retain_local(settings.keep_last_local)
            if settings.keep_last is not None and self.store and not settings.rank:
                ours = {upload.id for upload in self.journal.uploads()}
                ours |= {sent.key for sent in self.journal.all_sent()}
                retention = Retention(self.store, self.layout, self.clock, ours)
                pruned = retention.prune(settings.keep_last, every=settings.keep_every)
                self.journal.drop_commits(record.seq for record in pruned.commits)
            if self._compactor and not settings.rank:
                known = self.journal.known_commits()
                self._compactor.mind(known, self.journal.commits(self.layout))
        except (SyncdError, OSError) as error:
            log.warning("retention waits: %s", error)

    def _retain_local(self, keep: int) -> None:
        alone = self.settings.rank is None
        tree = scan(self.settings.checkpoint_dir, self.settings.exclude, joined=alone)
        on_disk = list(units(tree)) if tree else []
        root, place = self.settings.checkpoint_dir, self._places(on_disk)
        for path in prune_local(root, on_disk, keep, self._in_store, place):
            log.info("deleted %s on disk: it, or what took its place, is safe in the store", path)

    def _places(self, on_disk: Collection[Unit]) -> Callable[[Unit], float]:
        """The order of the commits: what has none yet is newer, unless newer ones outlived it."""
        places = dict.fromkeys((unit.path for unit in on_disk), math.inf)
        for unit in on_disk:
            seq = self.journal.safe_seq(unit.path)
            record = self.journal.commit(seq, self.layout) if seq else None
            if self.pipeline.is_obsolete(unit):
                places[unit.path] = -math.inf
            elif record and self.journal.is_safe(unit.path, unit.signature):
                places[unit.path] = record.behind - 0.5 if record.behind else record.seq
        return lambda unit: places[unit.path]

    def _in_store(self, unit: Unit) -> bool:
        """Whether this very revision was committed, or left out for newer ones that were.

        It is there, or has a successor there.
        """
        left_out = self.pipeline.is_obsolete(unit)
        if self.store is None or not (left_out or self.journal.is_safe(unit.path, unit.signature)):
            return False
        record = self.journal.newest_commit(self.layout, unit.path)
        if record is None:  # retention has let it go, which it does only for newer ones
            mine = series(unit.path)
            same = (r for r in self.journal.commits(self.layout) if series(r.checkpoint) == mine)
            record = next(same, None)
        store: ObjectStore = self.store
        return record is not None and all(
            store.head(entry.key).size == entry.at_rest for entry in record.files
        )


def new_writer() -> str:
    """A random id for one life of one daemon."""
    return secrets.token_hex(6)
