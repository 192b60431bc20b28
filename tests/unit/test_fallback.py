"""Which of two stores is ahead: beyond doubt, in doubt, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from syncd import manual
from syncd.config import Environment, load_settings
from syncd.errors import Corrupt
from syncd.fallback import newer_in
from syncd.records import CommitRecord, FileEntry
from tests.workbench import LAYOUT, Machine, age, tree


def commit(
    step: int, *, writer: str = "one", at: int | None = None, run: str = "run"
) -> CommitRecord:
    """A commit of a step, written at its number of seconds unless said otherwise."""
    at = step if at is None else at
    entry = FileEntry("w", "eigen2/w", 1, f"{step:064x}", 0o644, at * 10**9)
    return CommitRecord(
        step + 1, f"{run}/gen-{step:06}", writer, "2027-01-15T08:00:00.000Z", "set", (entry,)
    )


def test_what_follows_the_very_commit_is_newer() -> None:
    first = [commit(20), commit(10)]
    second: list[CommitRecord | Corrupt] = [
        commit(40, writer="two", at=1),
        Corrupt("broken"),
        commit(30),
        commit(20),
        commit(10),
    ]
    newer, doubt = newer_in(second, first[0], first)
    assert [record.checkpoint for record in newer] == ["run/gen-000040", "run/gen-000030"]
    assert doubt is None


def test_mirror_that_lags_has_nothing_newer() -> None:
    first = [commit(30), commit(20), commit(10)]
    assert newer_in([commit(20), commit(10)], first[0], first) == ([], None)
    assert newer_in([commit(30), commit(20)], first[0], first) == ([], None)
    assert newer_in([], first[0], first) == ([], None)


@pytest.mark.parametrize(
    ("record", "sure"),
    [
        (commit(90), True),  # a later step of the same life, which retention has cut off from it
        (commit(90, writer="two"), True),  # a later step of the same series
        (commit(90, run="other"), True),  # the same life went on to another run
        (commit(90, writer="two", run="other"), False),
        (
            commit(90, writer="two", at=5),
            False,
        ),  # a later step, written earlier: a branch left behind
        (commit(5, writer="two", at=90), False),  # an earlier step, written later: so is the other
        (commit(90, at=5), False),
    ],
)
def test_where_retention_has_cut_the_logs_apart(record: CommitRecord, sure: bool) -> None:
    first = [commit(20), commit(10)]
    newer, doubt = newer_in([record], first[0], first)
    assert (newer, doubt) == (([record], None) if sure else ([], record))


@pytest.mark.parametrize("mirror_has_it", [True, False])
def test_what_is_damaged_in_the_first_store_comes_from_the_mirror(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], mirror_has_it: bool
) -> None:
    """Rather than an older one from the first."""
    stores = [Machine(tmp_path / name, tmp_path / f"bucket {name}").start() for name in "ab"]
    for step in (1, 2):
        for machine in stores[: 2 if step == 1 or mirror_has_it else 1]:
            age(machine.write(f"run/step-{step}/w.bin", bytes([step]) * 1000), 100 - step)
            machine.commit_all()
    (stores[0].bucket / LAYOUT.plain("run/step-2/w.bin")).write_bytes(b"bad")
    environ = {
        "CLOUD_PROVIDER": "local",
        "CLOUD_BUCKET": str(stores[0].bucket),
        "CLOUD_MIRROR": f"file://{stores[1].bucket}",
        "CHECKPOINT_DIR": str(tmp_path / "back"),
        "SYNCD_STATE_DIR": str(tmp_path / "state"),
    }
    settings = load_settings(Environment(environ, tmp_path / ".env"))
    assert manual.restore(settings, None, None, False, False, 0.0) == 0
    step = 2 if mirror_has_it else 1
    assert sorted(tree(tmp_path / "back/run")) == [f"step-{step}/w.bin"]
    words = capfd.readouterr().err
    assert "NOT INTACT in the first store: run/step-2 (commit 2)" in words
    assert ("of the mirror" in words) == mirror_has_it
