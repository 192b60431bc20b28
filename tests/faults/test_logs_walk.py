"""Writers, rotation, deaths and shipping in any order: an object is a beginning of a file."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.logbench import Logger, logger
from tests.workbench import Died

NAME = "train.log"


class Walk(RuleBasedStateMachine):
    """One log of numbered lines, its rotated ones, and a daemon that may die at any request."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="logs-"))
        self.one: Logger = logger(self.home)
        self.count = 0
        self.flushed = False
        self.files: dict[str, list[bytes]] = {}
        """What each file has been, each time that it was begun anew."""
        self.moments: set[bytes] = set()
        """What any of them was when a line might go that was not ended."""
        self.since: dict[str, float] = {}
        """When each file became another than its object, as far as nothing went since."""

    def teardown(self) -> None:
        self.one.journal.close()
        shutil.rmtree(self.home)

    def line(self, size: int) -> bytes:
        self.count += 1
        return b"%d " % self.count + b"x" * size + b"\n"

    def wrote(self, name: str) -> None:
        """Note what a file is now: longer than it was, or another one."""
        path = self.one.logs / name
        content = path.read_bytes() if path.exists() else b""
        past = self.files.setdefault(name, [])
        if past and content.startswith(past[-1]):
            past[-1] = content
        else:
            past.append(content)
        self.since.setdefault(name, self.one.clock.monotonic())
        self.flushed = False

    def turn(self, seconds: float, flush: bool) -> None:
        """One turn of the shipper; remember what may go though its last line is not ended."""
        then = self.one.clock.monotonic() + seconds
        files = {path.name: path.read_bytes() for path in self.one.logs.iterdir()}
        for name, content in files.items():
            if flush or then - self.since.get(name, then) >= 60:
                self.moments.add(content)
        before = self.objects()
        self.one.ship(seconds, flush)
        after = self.objects()
        for name, content in files.items():
            if after.get(name) == content:
                self.since.pop(name, None)
            elif after.get(name) != before.get(name):
                self.since[name] = then

    def objects(self) -> dict[str, bytes | None]:
        return {name: self.one.there(name) for name in self.one.names()}

    @rule(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=8))
    def append(self, sizes: list[int]) -> None:
        self.one.write(NAME, b"".join(self.line(size) for size in sizes))
        self.wrote(NAME)

    @rule(size=st.integers(1, 30))
    def append_a_part_of_a_line(self, size: int) -> None:
        self.one.write(NAME, self.line(size)[:-1])
        self.wrote(NAME)

    @rule()
    def rotate(self) -> None:
        first, second = (self.one.logs / f"{NAME}.{n}" for n in (1, 2))
        if (self.one.logs / NAME).exists():
            if first.exists():
                first.rename(second)
            (self.one.logs / NAME).rename(first)
        for name in (NAME, f"{NAME}.1", f"{NAME}.2"):
            self.wrote(name)

    @rule()
    def copy_and_cut(self) -> None:
        if (self.one.logs / NAME).exists():
            shutil.copy(self.one.logs / NAME, self.one.logs / f"{NAME}.1")
            self.one.overwrite(NAME, b"")
        for name in (NAME, f"{NAME}.1"):
            self.wrote(name)

    @rule()
    def cut(self) -> None:
        self.one.overwrite(NAME, b"")
        self.wrote(NAME)

    @rule(sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=4))
    def write_again(self, sizes: list[int]) -> None:
        self.one.overwrite(NAME, b"".join(self.line(size) for size in sizes))
        self.wrote(NAME)

    @rule()
    def ship(self) -> None:
        self.turn(31, False)

    @rule()
    def flush(self) -> None:
        self.turn(1, True)
        self.flushed = True

    @rule(at=st.integers(0, 6), after=st.booleans(), flush=st.booleans())
    def die(self, at: int, after: bool, flush: bool) -> None:
        store = self.one.store
        store.die_in, store.die_after = at, after
        try:
            self.turn(31, flush)
        except Died:
            self.one.journal.close()
            self.one.live()
        finally:
            store.die_in = None

    @rule()
    def lose_the_journal(self) -> None:
        self.one.journal.close()
        self.one.live(forget=True)

    @invariant()
    def every_object_is_a_beginning_of_what_a_log_was(self) -> None:
        """Of any of them: after a rotation the object follows at the next turn."""
        been = [content for past in self.files.values() for content in past]
        for name in self.one.names():
            content = self.one.there(name)
            assert content, name
            assert any(past.startswith(content) for past in been), name
            assert content.endswith(b"\n") or content in self.moments, "a line is cut"

    @invariant()
    def after_a_flush_it_is_what_the_file_is(self) -> None:
        if self.flushed:
            for path in self.one.logs.iterdir():
                if path.stat().st_size:
                    assert self.one.there(path.name) == path.read_bytes(), path.name


TestWalk = Walk.TestCase
TestWalk.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
