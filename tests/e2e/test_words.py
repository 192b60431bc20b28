"""Messages of docs/failures.md that no other test is about, from real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.e2e.processes import Build, wait_until


def test_state_directory_that_cannot_be_made_is_2(build: Build) -> None:
    one = build(SYNCD_STATE_DIR="/proc/1/syncd")
    for words in ([], ["--once"]):
        done = one.syncd(*words)
        assert done.returncode == 2
        assert "SYNCD_STATE_DIR" in done.stderr
        assert "Traceback" not in done.stderr


def test_environment_file_in_another_encoding_is_2_and_not_nothing_to_do(build: Build) -> None:
    one = build()
    (one.disk / ".env").write_text("CLOUD_BUCKET=b\n", encoding="utf-16")
    for words in ([], ["--once"], ["restore"], ["--", "true"]):
        done = one.syncd(*words)
        assert done.returncode == 2
        assert ".env: it is not UTF-8 text; save it as UTF-8" in done.stderr
        assert "Traceback" not in done.stderr


def test_checkpoint_that_is_not_there_is_named(build: Build) -> None:
    one = build()
    one.write_checkpoint("run/gen-000001", {"state.json": b"{}"})
    assert one.syncd("--once").returncode == 0
    for name in ("run/gen-000009", "#7"):
        asked = one.syncd("restore", "--to", "there", "--at", name)
        assert asked.returncode == 1
        assert f"the store has no checkpoint '{name}'" in asked.stderr


def test_a_flush_that_leaves_out_what_is_not_complete_does_not_say_all(build: Build) -> None:
    one = build()
    one.write_checkpoint("run/gen-000001", {"w.bin": b"one", "state.json": b"{}"})
    assert "syncd: all safe: 1 checkpoints committed now" in one.syncd("--once").stderr
    (one.checkpoints / "run/gen-000001/w.bin").write_bytes(b"two!")  # its state.json still to come
    done = one.syncd("--once")
    assert done.returncode == 0
    assert "syncd: not complete, not sent: run/gen-000001: state.json" in done.stderr
    assert "syncd: all that is complete is safe: 0 checkpoints" in done.stderr


_BROKEN = """
import syncd.engine
step, calls = syncd.engine.Engine.step, []

def broken(self, give_up):
    calls.append(1)
    if len(calls) == 2:
        raise LookupError("made up")
    return step(self, give_up)

syncd.engine.Engine.step = broken
"""


def test_fault_in_syncd_itself_is_said_and_it_starts_over(build: Build, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sitecustomize.py").write_text(_BROKEN)
    one = build()
    one.environ["PYTHONPATH"] = f"{tmp_path / 'broken'}:{one.environ['PYTHONPATH']}"
    one.start()
    wait_until(lambda: "please report it" in one.reasons(), one.log)
    assert "LookupError: made up" in one.reasons()
    one.write_checkpoint("run/gen-000001", {"state.json": b"{}"})
    wait_until(one.has_committed("run/gen-000001"), one.log)
    wait_until(lambda: one.reasons() == "[]", one.reasons())
    assert "unexpected failure; starting over" in one.log()


def test_daemon_that_is_frozen_is_named_by_a_flush(build: Build) -> None:
    one = build()
    one.start()
    assert one.daemon
    os.kill(one.daemon.pid, signal.SIGSTOP)
    began = time.monotonic()
    flushed = one.syncd("--once", "--timeout", "1")
    os.kill(one.daemon.pid, signal.SIGCONT)
    assert flushed.returncode == 1
    assert "NOT SAFE: the daemon: it is running but not answering" in flushed.stderr
    assert time.monotonic() - began < 45


def test_daemon_that_ends_during_a_flush_is_named(build: Build) -> None:
    one = build(SYNCD_BWLIMIT="3M")
    one.start()
    one.write_checkpoint("run/gen-000001", {"w": os.urandom(80_000_000), "state.json": b"{}"})
    command = [sys.executable, "-m", "syncd", "--once"]
    with subprocess.Popen(
        command, cwd=one.disk, env=one.environ, stderr=subprocess.PIPE, text=True
    ) as flush:
        wait_until(lambda: bool((one.status() or {}).get("sent_bytes")), one.log)
        time.sleep(3)  # by then the flush has been asked for
        one.kill()
        _, words = flush.communicate(timeout=60)
    assert flush.returncode == 1
    assert "NOT SAFE" in words


def test_limit_changes_while_the_daemon_sends(build: Build) -> None:
    one = build(SYNCD_BWLIMIT="20K")
    said = one.syncd("limit", "5M")
    assert (said.returncode, "no daemon is running" in said.stdout) == (4, True)
    one.start()
    assert one.syncd("limit").stdout == "at most 20.5 kB/s\n"
    path = "run/gen-000001"  # at 20 KB a second it would take a quarter of an hour
    one.write_checkpoint(path, {"w": os.urandom(20_000_000), "state.json": b"{}"})
    wait_until(lambda: bool((one.status() or {}).get("under_way")), one.log)
    refused = one.syncd("limit", "fast")
    assert refused.returncode == 2
    assert "'fast' is not a number of bytes such as 500K, 50M or 1G, or off" in refused.stderr
    assert one.syncd("limit", "20M").stdout == "at most 21.0 MB/s\n"
    wait_until(one.has_committed(path), one.log)
    assert "(at most 21.0 MB/s)" in one.syncd("status").stdout
    assert one.syncd("limit", "off").stdout == "no limit\n"
    assert "limit_bytes_per_second" in (one.status() or {})
    assert (one.status() or {})["limit_bytes_per_second"] is None
