"""A look at a part finds what a look at everything would find, as soon as an event points to it."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from syncd.health import Health
from syncd.journal import Journal
from syncd.pipeline import Pipeline
from syncd.survey import Survey
from syncd.tempo import Stopwatch, Tempo
from syncd.watch import Watcher
from tests.clocks import FakeClock
from tests.e2e.processes import wait_until
from tests.workbench import Machine

FOLDERS = ("", "run", "run/inner", "ds", "lone", "lone/deep")
LONE = ("a.pt", "b.pt", "notes.txt", "model.bin", "x.tmp")
MEMBERS = (
    "state.json",
    "agent.bin",
    "inner/more.bin",
    "latest",
    "pretrained_model/model.tmp",
    "pretrained_model/model.safetensors",
    "training_state/step.json",
)


class Twins(RuleBasedStateMachine):
    """One pipeline that follows events, on a clock that stands still, and one that looks afresh."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="twins-"))
        self.root = self.home / "root"
        for folder in FOLDERS:  # something recognised everywhere: then no folder becomes a set
            (self.root / folder / "gen-000000").mkdir(parents=True)
            (self.root / folder / "gen-000000/state.json").write_text("{}")
        self.clock = FakeClock()
        self.watcher = Watcher(self.root, threading.Event())
        self.watcher.ensure(0)
        self.follower = self.pipeline()
        self.follower.watch(self.watcher)
        assert self.seen(self.follower) == self.seen(self.pipeline())
        self.counter = 0

    def pipeline(self) -> Pipeline:
        return Pipeline(
            self.root, Journal(None, "twins"), Health(self.clock), self.clock, settle=0.0
        )

    @staticmethod
    def seen(pipeline: Pipeline) -> set[str]:
        look = pipeline.look()
        return {unit.path + unit.signature for unit, _ in look.pending} | {
            waiting.path for waiting in look.incomplete
        }

    def teardown(self) -> None:
        self.watcher.close()
        shutil.rmtree(self.home)

    @rule(folder=st.sampled_from(FOLDERS), name=st.sampled_from(LONE))
    def write(self, folder: str, name: str) -> None:
        self.counter += 1
        (self.root / folder / name).write_text(f"[{self.counter}]")

    @rule(folder=st.sampled_from(FOLDERS), name=st.sampled_from(LONE))
    def remove(self, folder: str, name: str) -> None:
        (self.root / folder / name).unlink(missing_ok=True)

    @rule(folder=st.sampled_from(FOLDERS), to=st.sampled_from(FOLDERS), name=st.sampled_from(LONE))
    def move(self, folder: str, to: str, name: str) -> None:
        if (self.root / folder / name).exists():
            (self.root / folder / name).rename(self.root / to / name)

    @rule(folder=st.sampled_from(FOLDERS))
    def link(self, folder: str) -> None:
        link = self.root / folder / "last"
        link.unlink(missing_ok=True)
        link.symlink_to("gen-000000")

    @rule(
        folder=st.sampled_from(FOLDERS),
        number=st.integers(1, 3),
        kind=st.sampled_from(["gen-{:06}", "global_step{}", "checkpoint-{}", "step{}", "{:06}"]),
        member=st.sampled_from(MEMBERS),
    )
    def write_member(self, folder: str, number: int, kind: str, member: str) -> None:
        self.counter += 1
        target = self.root / folder / kind.format(number) / member
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f'{{"step": {self.counter}}}')

    @rule(folder=st.sampled_from(FOLDERS), number=st.integers(1, 3))
    def rename_in(self, folder: str, number: int) -> None:
        """As our trainer: aside, then renamed; an old one makes way first."""
        aside, final = self.root / folder / ".tmp-x", self.root / folder / f"gen-{number:06}"
        (aside / "inner").mkdir(parents=True)
        for name in ("state.json", "inner/more.bin"):
            (aside / name).write_text("{}")
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)

    @rule(folder=st.sampled_from(FOLDERS), number=st.integers(1, 3))
    def delete_checkpoint(self, folder: str, number: int) -> None:
        shutil.rmtree(self.root / folder / f"gen-{number:06}", ignore_errors=True)

    @rule(folder=st.sampled_from(FOLDERS[1:]), number=st.integers(1, 3))
    def move_folder(self, folder: str, number: int) -> None:
        """A watched folder moves, and what it is called by events with it."""
        before = self.root / folder / f"gen-{number:06}"
        if before.exists():
            shutil.rmtree(self.root / "gen-000009", ignore_errors=True)
            before.rename(self.root / "gen-000009")

    @rule(folder=st.sampled_from(FOLDERS[1:]))
    def file_and_folder_change_places(self, folder: str) -> None:
        place = self.root / folder / "either"
        if place.is_dir():
            shutil.rmtree(place)
            place.write_text("a file")
        else:
            place.unlink(missing_ok=True)
            place.mkdir()
            (place / "x.pt").write_text("in a folder")

    @invariant()
    def both_see_the_same(self) -> None:
        fresh = self.seen(self.pipeline())
        wait_until(lambda: self.seen(self.follower) == fresh, "the same", 5)


TestTwins = pytest.mark.slow(Twins.TestCase)
Twins.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


@pytest.fixture
def followed(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    watcher = Watcher(machine.root, threading.Event())
    watcher.ensure(0)
    machine.pipeline.watch(watcher)
    yield machine
    watcher.close()


def test_what_lies_elsewhere_is_neither_read_nor_forgotten(
    followed: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        followed.write(f"run/gen-{number:06}/state.json", "{}")
    followed.write("other/model.pt", b"not a zip archive, so it waits for ever")
    assert len(followed.commit_all()) == 50
    wait_until(lambda: followed.pipeline.look().cost == 0, "no more events")
    listed: list[object] = []
    scandir = os.scandir

    def note(path: object) -> object:
        listed.append(path)
        return scandir(path)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "scandir", note)
    followed.write("run/gen-000100/state.json", "{}")

    def seen() -> bool:
        look = followed.pipeline.look()
        return [unit.path for unit, _ in look.pending] == ["run/gen-000100"]

    wait_until(seen, "the new one", 3)
    assert {str(path) for path in listed} == {str(followed.root / "run/gen-000100")}
    assert [waiting.path for waiting in followed.pipeline.look().incomplete] == ["other/model.pt"]


def test_folder_becomes_a_checkpoint_by_what_comes_into_a_folder_of_it(followed: Machine) -> None:
    """LeRobot's weights are renamed into place: before that the folder is nobody's."""
    followed.write("ck/000001/pretrained_model/model.tmp", b"half")
    wait_until(lambda: followed.pipeline.look().cost == 0, "no more events")
    weights = followed.root / "ck/000001/pretrained_model/model.bin"
    weights.with_name("model.tmp").rename(weights)

    def waiting() -> list[str]:
        return [item.path for item in followed.pipeline.look().incomplete]

    wait_until(lambda: waiting() == ["ck/000001"], "a checkpoint", 3)
    followed.write("ck/000001/training_state/step.json", "{}")

    def seen() -> list[str]:
        return [unit.path for unit, _ in followed.pipeline.look().pending]

    wait_until(lambda: bool(seen()), "the checkpoint as complete", 3)
    assert seen() == ["ck/000001"]


def test_large_backlog_is_remembered_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("syncd.backlog._MOST_FILES", 10)
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number in range(45):
        machine.write(f"run/gen-{number:06}/state.json", f"[{number}]")
    look = machine.pipeline.look()
    assert len(look.pending) <= 10
    newest = max(unit.path for unit, _ in look.pending)
    assert newest == "run/gen-000044"
    committed = 0
    while found := machine.commit_all():
        committed += len(found)
    assert committed == 45


class Slow(Watcher):
    """Of a disk on which listing a folder takes so many seconds."""

    def __init__(self, root: Path, clock: FakeClock) -> None:
        super().__init__(root, threading.Event())
        self.clock = clock
        self.seconds = 0.0

    def before_listing(self, path: str, often: bool = True) -> None:
        super().before_listing(path, often)
        self.clock.sleep(self.seconds)


def scan(survey: Survey, slow: Slow, listing: float, judging: float = 0.0) -> None:
    """Look at everything, and do something with what is found."""
    slow.seconds = listing
    for _ in survey.look(survey.part({}, thorough=True)):
        slow.clock.sleep(judging)


def test_scans_of_everything_are_as_rare_as_they_are_dear(tmp_path: Path) -> None:
    clock = FakeClock()
    (tmp_path / "a.pt").touch()
    survey, slow = Survey(tmp_path, clock), Slow(tmp_path, clock)
    survey.watcher = slow
    scan(survey, slow, 10.0)
    assert survey.due_in() == pytest.approx(200)
    scan(survey, slow, 0.0)
    assert survey.due_in() == pytest.approx(5)
    scan(survey, slow, 0.0, judging=100.0)
    assert survey.due_in() == pytest.approx(5), "looking is dear, not what is done with it"
    scan(survey, slow, 1000.0)
    assert survey.due_in() == pytest.approx(3600)
    clock.sleep(3601)
    assert survey.part({}, thorough=False).everything


def test_where_events_tell_of_everything_scans_are_thirty_times_rarer() -> None:
    clock = FakeClock()
    tempo, took = Tempo(clock), Stopwatch(clock)
    took.core = 0.01
    tempo.full(took, early=False)
    assert tempo.full_in(0.0, early=False) == pytest.approx(1)
    tempo.full(took, early=False, trusted=True)
    assert tempo.full_in(0.0, early=False) == pytest.approx(30)
    assert tempo.full_in(0.0, early=True) == 0, "events were lost"
    tempo.full(took, early=True, trusted=True)
    assert tempo.full_in(0.0, early=True) == pytest.approx(1)


def test_another_root_is_looked_at_at_once_however_dear_the_last_one_was(tmp_path: Path) -> None:
    clock, root = FakeClock(), tmp_path / "root"
    root.mkdir()
    (root / "a.pt").touch()
    survey, slow = Survey(root, clock), Slow(root, clock)
    survey.watcher = slow
    slow.ensure(0)
    scan(survey, slow, 1000.0)
    slow.overflow()
    scan(survey, slow, 1000.0)
    slow.overflow()
    assert not survey.part({}, thorough=False), "it is too soon"
    root.rename(tmp_path / "taken away")
    root.mkdir()
    slow.ensure(0)
    assert survey.part({}, thorough=False).everything
    slow.close()


def test_root_that_came_just_before_the_first_look_is_watched_at_once(tmp_path: Path) -> None:
    """It was not there when it was to be watched, and was when it was looked at."""
    clock, root = FakeClock(), tmp_path / "root"
    survey, slow = Survey(root, clock), Slow(root, clock)
    survey.watcher = slow
    slow.ensure(0)
    (root / "run/gen-000001").mkdir(parents=True)
    (root / "run/gen-000001/state.json").write_text("{}")
    scan(survey, slow, 1000.0)
    slow.ensure(0)
    part = survey.part({}, thorough=False)
    assert part.everything
    assert [unit.path for unit in survey.look(part)] == ["run/gen-000001"]
    (root / "run/gen-000002").mkdir()
    wait_until(lambda: bool(slow.take()), "an event of a folder below")
    slow.close()


def test_link_that_becomes_a_tracker_is_no_checkpoint_of_its_own_any_more() -> None:
    twins: Any = Twins()
    twins.link(folder="")
    twins.both_see_the_same()
    twins.write_member("", 1, "{:06}", "pretrained_model/model.safetensors")
    twins.both_see_the_same()
    twins.teardown()
