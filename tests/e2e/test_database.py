"""A study in a SQLite database that its process never closes, beside weights: all comes back."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys

import pytest

from tests.e2e.processes import Build, wait_until

STUDY = """
import itertools, pathlib, sqlite3, sys, time
root = pathlib.Path(sys.argv[1])
study = sqlite3.connect(root / "study.db", isolation_level=None)
study.execute("PRAGMA journal_mode=" + sys.argv[2])
study.execute("CREATE TABLE trials (number INTEGER, value TEXT)")
for number in itertools.count():
    study.execute("BEGIN")  # a trial is two rows, or none
    study.execute("INSERT INTO trials VALUES (?, ?)", (number, "x" * 2000))
    study.execute("INSERT INTO trials VALUES (?, ?)", (number, "y" * 2000))
    study.execute("COMMIT")
    if number % 50 == 0:
        (root / "model.pt.tmp").write_bytes(b"\\x80\\x02J" + number.to_bytes(4, "little") + b".")
        (root / "model.pt.tmp").rename(root / "model.pt")
    time.sleep(0.02)
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_study_that_is_always_open_comes_back_whole(build: Build, mode: str) -> None:
    one, other = build("one"), build("two")
    one.checkpoints.mkdir()
    one.start()
    command = [sys.executable, "-c", STUDY, str(one.checkpoints), mode]
    with subprocess.Popen(command) as trainer:
        for name in ("study.db", "model.pt"):
            wait_until(lambda name=name: f"committed {name} " in one.log(), one.log)  # type: ignore[misc]
        trainer.send_signal(signal.SIGKILL)
        one.kill()
    done = other.syncd("restore")
    assert done.returncode == 0, done.stderr
    found = {path.name for path in other.checkpoints.iterdir() if not path.name.startswith(".")}
    assert found == {"study.db", "model.pt"}
    with contextlib.closing(sqlite3.connect(other.checkpoints / "study.db")) as study:
        assert study.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        counts = study.execute("SELECT COUNT(*) FROM trials GROUP BY number").fetchall()
    assert counts
    assert set(counts) == {(2,)}, "each trial is there as a whole"
