"""What the container says: the report, the health line, the trainer's command."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from syncd.container import probe, report
from syncd.container.launcher import find_config, prepare
from syncd.container.probe import Status
from syncd.container.rundir import Outcome, RunDir
from syncd.container.sync_plugin import describe, environment_of
from syncd.container.train import trainer_command

POINT = {"checkpoint": "run-1/gen-000010", "seq": 2, "committed_at": "2026-01-01T00:00:00Z"}


def environ(folder: Path, **more: str) -> dict[str, str]:
    (folder / "checkpoints" / "run-1" / "gen-000010").mkdir(parents=True, exist_ok=True)
    base = {"CHECKPOINT_DIR": str(folder / "checkpoints"), "CLOUD_BUCKET": "/mnt/bucket"}
    return {**base, **more}


def text(lines: list[str]) -> str:
    return "\n".join(lines)


def test_the_report_names_every_place_and_the_next_command(tmp_path: Path) -> None:
    settings = environ(tmp_path, TRAINER_ARGS="--resume --data 'my data.csv'", LOG_DIR="my-logs")
    said = text(report.final(Outcome(0, "the trainer finished", True), 0, settings, POINT))
    for words in (
        "the trainer finished (exit 0)",
        "my data.csv",
        "newest run-1/gen-000010",
        "my-logs",
        "/mnt/bucket (local), under eigen2/",
        "run-1/gen-000010 (commit 2",
        "nothing: all that is complete is in the bucket",
        "bash start_vast.sh --resume --data 'my data.csv'",
    ):
        assert words in said


def test_the_report_holds_no_secret(tmp_path: Path) -> None:
    settings = environ(
        tmp_path, AWS_SECRET_ACCESS_KEY="hush", AZURE_STORAGE_CONNECTION_STRING="AccountKey=hush"
    )
    assert "hush" not in text(report.final(None, 143, settings, POINT))


def test_a_checkpoint_that_is_ahead_of_the_bucket_is_called_not_safe(tmp_path: Path) -> None:
    older = {**POINT, "checkpoint": "run-1/gen-000005"}
    said = text(report.final(Outcome(0, "done", True), 0, environ(tmp_path), older))
    assert "run-1/gen-000010 is not proven to be in the bucket" in said


def test_what_is_newer_and_not_complete_is_called_not_safe(tmp_path: Path) -> None:
    left = "last.pt is not complete and was not sent: it is cut off"
    said = text(report.final(Outcome(0, "done", True, left), 0, environ(tmp_path), POINT))
    assert left in said


def test_a_failed_flush_is_called_not_safe(tmp_path: Path) -> None:
    said = text(report.final(Outcome(0, "done", False), 0, environ(tmp_path), POINT))
    assert "the last flush failed" in said


def test_without_a_bucket_the_report_says_that_nothing_is_copied(tmp_path: Path) -> None:
    said = text(report.final(Outcome(0, "done", True), 0, environ(tmp_path, CLOUD_BUCKET="")))
    assert "nothing is copied" in said
    assert "exists on this machine only" in said


def test_a_killed_trainer_is_told_apart_from_one_that_saved(tmp_path: Path) -> None:
    assert "had to be killed" in text(report.final(None, 137, environ(tmp_path), POINT))
    assert "had to be killed" not in text(report.final(None, 143, environ(tmp_path), POINT))


@pytest.mark.parametrize(("code", "words"), [(2, "mend what"), (7, "last words"), (143, "goes on")])
def test_the_next_command_fits_the_end(tmp_path: Path, code: int, words: str) -> None:
    said = text(report.final(Outcome(code, "x", True), code, environ(tmp_path), POINT))
    assert words in said.splitlines()[-1]


def test_the_newest_checkpoint_is_a_finished_one(tmp_path: Path) -> None:
    for age, name in enumerate(["tmp-3", "gen-000010", "gen-000005"]):
        (tmp_path / "run-1" / name).mkdir(parents=True)
        os.utime(tmp_path / "run-1" / name, (1000 - age, 1000 - age))
    assert report.newest_checkpoint(tmp_path) == "run-1/gen-000010"


def test_a_lone_file_is_a_checkpoint_too(tmp_path: Path) -> None:
    (tmp_path / "last.pt").write_bytes(b"x")
    assert report.newest_checkpoint(tmp_path) == "last.pt"
    assert report.newest_checkpoint(tmp_path / "missing") is None


def test_health_is_told_with_reasons_and_remedies() -> None:
    document = {
        "reasons": [{"message": "credentials are wrong", "hint": "renew them"}],
        "recovery_point": {**POINT, "age_seconds": 12.4},
    }
    assert describe(Status(1, document)) == [
        "NOT HEALTHY",
        "recovery point: run-1/gen-000010 (commit 2), 12 s old",
        "problem: credentials are wrong (renew them)",
    ]
    assert describe(Status(0, {}))[0] == "healthy"
    assert describe(Status(4, {})) == ["syncd is not running"]
    assert describe(Status(None)) == ["syncd does not answer"]


def test_a_later_shell_finds_syncd_through_the_environment_of_the_container() -> None:
    assert environment_of(os.getpid())["PATH"]
    assert environment_of(0) == dict(os.environ)


def test_the_trainer_resumes_from_its_second_start(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "container")
    run_dir.renew()
    assert [run_dir.first_start() for _ in range(3)] == [True, False, False]
    run_dir.renew()
    assert run_dir.first_start()
    assert trainer_command(True, "--data 'a b.csv'")[2:] == ["trainer", "--data", "a b.csv"]
    assert trainer_command(False, "--demo")[3:] == ["--resume", "--demo"]
    assert trainer_command(False, "--resume")[3:] == ["--resume"]


def test_broken_notes_count_as_none(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for content in ("", "[]", '{"strange": 1}'):
        (tmp_path / "outcome.json").write_text(content)
        (tmp_path / "tally.json").write_text(content)
        assert run_dir.outcome() is None
        assert run_dir.tally() is None


@pytest.mark.parametrize(("given", "grace"), [("", 60), ("90", 90), ("fast", 60), ("-1", 0)])
def test_a_grace_that_is_no_number_is_the_default(given: str, grace: float) -> None:
    assert probe.shutdown_grace({"SYNCD_SHUTDOWN_GRACE": given}) == grace


def test_arguments_on_the_command_line_join_those_of_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.environ["PATH"])
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    monkeypatch.setenv("SYNCD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("TRAINER_ARGS", "--seed 7")
    (tmp_path / "supervisord.conf").touch()
    prepare(find_config(None), ["--data", "a b.csv"])
    assert os.environ["TRAINER_ARGS"] == "--data 'a b.csv' --seed 7"


def test_a_folder_too_deep_for_a_socket_is_refused(tmp_path: Path) -> None:
    deep = tmp_path / "/".join(["a-folder-with-a-long-name"] * 5)
    deep.mkdir(parents=True)
    with pytest.raises(click.UsageError, match="too deep a folder for a socket"):
        prepare(deep / "supervisord.conf", [])
