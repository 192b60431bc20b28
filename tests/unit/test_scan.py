"""A tree is read folder by folder, and what it holds does not depend on that."""

from __future__ import annotations

import gc
import os
import subprocess
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncd.companions import all_accompany, could_be_set, holds_steps
from syncd.profiles import COMPANION, LONE, SET, profile_of
from syncd.scan import Folder, Scanner, files_below, scan
from syncd.units import Unit, _has_roles, _whole, lone_units, units

NAMES = st.sampled_from(
    ["run", "gen-000001", "gen-000002", "population", "checkpoint-5", "step9", "pretrained_model"]
)
FILES = st.sampled_from(
    ["state.json", "a.pt", "b.pt", "agent_1.pth", "x.bin", "latest", "trainer_state.json", "c.tmp"]
)
PATHS = st.tuples(st.lists(NAMES, max_size=4), FILES).map(
    lambda found: "/".join([*found[0], found[1]])
)


def plainly(folder: Folder, parent: Folder | None = None) -> Iterator[Unit]:
    """The same question, answered with the whole tree at hand."""
    profile = profile_of(folder) if parent else None
    if parent and profile:
        yield _whole(folder, profile, parent)
        return
    inner = [unit for child in folder.folders.values() for unit in plainly(child, folder)]
    known = any(unit.profile not in (SET, LONE, COMPANION) for unit in inner) or opens(folder)
    if parent and not known and (could_be_set(folder) or _has_roles(folder)):
        yield _whole(folder, COMPANION if all_accompany(folder) else SET, parent)
        return
    yield from inner
    yield from lone_units(folder, {unit.tracker for unit in inner if unit.tracker})


def opens(folder: Folder) -> bool:
    """Whether there are directories of single steps somewhere below."""
    inner = (child for child in folder.folders.values() if not profile_of(child))
    return holds_steps(folder) or any(map(opens, inner))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(paths=st.lists(PATHS, max_size=12))
def test_reading_bit_by_bit_finds_the_same(tmp_path: Path, paths: list[str]) -> None:
    root = tmp_path / os.urandom(6).hex()
    for path in paths:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.encode())
    root.mkdir(exist_ok=True)
    whole, top = scan(root), Scanner(root).top()
    assert whole
    assert top
    by_path = {unit.path: unit for unit in plainly(whole)}
    assert {unit.path: unit for unit in units(top)} == by_path


def test_containers_are_told_with_what_is_in_them(tmp_path: Path) -> None:
    for path in ("run/ds/global_step5/a.bin", "run/ds/latest", "lone/a.pt"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    told = {}
    top = Scanner(tmp_path).top()
    assert top
    found = list(
        units(
            top, None, lambda folder, known, trackers: told.update({folder.path: (known, trackers)})
        )
    )
    assert {unit.path for unit in found} == {"run/ds/global_step5", "lone/a.pt"}
    assert told["run/ds"] == (True, frozenset({"run/ds/latest"}))
    assert told["lone"] == (False, frozenset())
    assert told[""][0]


def test_memory_is_that_of_one_checkpoint(tmp_path: Path) -> None:
    for number in range(300):
        folder = tmp_path / f"run/gen-{number:06}"
        folder.mkdir(parents=True)
        for name in ["state.json", *(f"agent-{n}.bin" for n in range(19))]:
            (folder / name).touch()

    def peak(find: Callable[[], Iterable[Unit]]) -> int:
        gc.collect()
        tracemalloc.start()
        assert len([unit.path for unit in find()]) == 300
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    def bit_by_bit() -> Iterable[Unit]:
        top = Scanner(tmp_path).top()
        return units(top) if top else ()

    least = min(peak(bit_by_bit) for _ in range(3))
    assert 5 * least < peak(lambda: list(bit_by_bit()))


def test_folders_a_thousand_deep(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(1000):
        deep = deep / "d"
        deep.mkdir()
    (deep / "model.pt").write_bytes(b"x")
    try:
        top = Scanner(tmp_path).top()
        assert top
        assert [unit.path for unit in units(top)] == ["d/" * 1000 + "model.pt"]
        assert [path for path, _ in files_below(tmp_path)] == ["d/" * 1000 + "model.pt"]
    finally:  # by rm: Python's own way of deleting a tree, which pytest takes, gives up so deep
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)
