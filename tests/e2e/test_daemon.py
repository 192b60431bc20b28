"""The daemon among faults: red with the reason and the remedy, and well again by itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine, wait_until
from tests.servers.s3 import SeaweedFS


def checkpoint(machine: Machine, generation: int = 5) -> str:
    machine.write_checkpoint(f"run/gen-{generation:06}", {"state.json": b"{}"})
    return f"run/gen-{generation:06}"


def is_red(machine: Machine, *words: str) -> Callable[[], bool]:
    return lambda: all(word in machine.reasons() for word in words)


def ends_with(path: Path, end: bytes) -> Callable[[], bool]:
    return lambda: path.exists() and path.read_bytes().endswith(end)


def test_commits_when_told_to_stop(build: Build) -> None:
    one = build()
    one.start()
    for generation in (5, 10):
        checkpoint(one, generation)
    (one.checkpoints / "last.bin").write_bytes(b"x")
    assert one.stop() == 0
    rows = json.loads(one.syncd("ls", "--json").stdout)
    assert {row["checkpoint"] for row in rows} == {"run/gen-000005", "run/gen-000010", "last.bin"}


def test_second_daemon_on_one_state_directory_refuses(build: Build) -> None:
    one = build()
    one.start()
    second = one.syncd()
    assert second.returncode == 1
    assert "running already" in second.stdout


def test_without_a_bucket_it_says_so_and_stays(build: Build) -> None:
    one = build(CLOUD_BUCKET="")
    one.start()
    wait_until(lambda: "nothing is copied" in one.log(), "the warning")
    assert one.syncd("status").returncode == 0
    assert one.stop() == 0


AUTOGROUP = Path("/proc/self/autogroup")


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="this Linux does not share among sessions")
@pytest.mark.parametrize("through", [(), ("setsid",)])
def test_daemon_with_a_session_to_itself_lowers_all_of_it(
    build: Build, through: tuple[str, ...]
) -> None:
    """Its own niceness counts against nobody there."""
    one = build()
    one.start(*through)
    assert one.daemon
    told = Path(f"/proc/{one.daemon.pid}/autogroup").read_text()
    assert told.endswith("nice 10\n") == bool(through)
    assert os.getpriority(os.PRIO_PROCESS, one.daemon.pid) == 10


def test_status_without_a_daemon(build: Build) -> None:
    one = build()
    assert one.syncd("status").returncode == 4
    assert json.loads(one.syncd("status", "--json").stdout) == {"running": False}


def test_bad_settings_end_in_2_with_every_fault(build: Build) -> None:
    one = build(CLOUD_PROVIDER="s4", SYNCD_BWLIMIT="fast", CHECKPOINT_DIR="/etc/hostname")
    for arguments in ((), ("--once",), ("restore",), ("status",), ("check",)):
        ended = one.syncd(*arguments)
        assert ended.returncode == 2
        for name in ("CLOUD_PROVIDER", "SYNCD_BWLIMIT", "CHECKPOINT_DIR"):
            assert f"syncd: {name}: " in ended.stderr
    assert one.syncd("--nonsense").returncode == 2


def test_help_teaches(build: Build) -> None:
    text = build().syncd("--help").stdout
    for word in ("--once", "restore", "status", "verify", "CLOUD_PROVIDER", "Exit codes"):
        assert word in text


def test_logs_follow_their_writer(build: Build, tmp_path: Path) -> None:
    one = build()
    log = one.disk / "logs/run/events.jsonl"
    log.parent.mkdir(parents=True)
    copy = tmp_path / "bucket/eigen2/logs/run/events.jsonl"
    one.start()
    with log.open("ab", buffering=0) as file:
        for number in range(3):
            file.write(b"line %d\n" % number)
            wait_until(ends_with(copy, b"line %d\n" % number), one.log)


def test_root_that_comes_late_goes_and_comes_back(build: Build) -> None:
    import shutil

    one = build()
    one.start()
    name = checkpoint(one, 5)
    wait_until(one.has_committed(name), one.log)
    shutil.rmtree(one.checkpoints)
    name = checkpoint(one, 10)
    wait_until(one.has_committed(name), one.log)


def test_rubbish_in_the_journal_is_no_crash_loop(build: Build) -> None:
    one = build()
    checkpoint(one)
    assert one.syncd("--once").returncode == 0
    for leftover in (one.disk / ".syncd").glob("journal.sqlite-*"):
        leftover.unlink()
    (one.disk / ".syncd/journal.sqlite").write_bytes(os.urandom(20000))
    one.start()
    name = checkpoint(one, 10)
    wait_until(one.has_committed(name), one.log)
    assert "journal was corrupt" in one.log()


# -- S3: faults that a person has to mend


@pytest.fixture
def s3(seaweedfs: SeaweedFS) -> dict[str, str]:
    return {**seaweedfs.env(), "CLOUD_PROVIDER": "s3"}


def test_missing_bucket_is_named_and_forgiven(
    build: Build, s3: dict[str, str], seaweedfs: SeaweedFS
) -> None:
    one = build(**{**s3, "CLOUD_BUCKET": "made-later"})
    name = checkpoint(one)
    one.start()
    wait_until(is_red(one, "made-later"), one.log)
    assert one.syncd("status").returncode == 1
    once = one.syncd("--once", "--timeout", "5")
    assert once.returncode == 1
    assert "NOT SAFE" in once.stderr
    assert one.daemon
    assert one.daemon.poll() is None
    client = seaweedfs.client()
    client.create_bucket(Bucket="made-later")
    client.close()
    wait_until(one.has_committed(name), one.log)
    assert one.syncd("status").returncode == 0


@pytest.mark.parametrize("where", ["environment file", "credentials file"])
def test_wrong_credentials_are_named_and_replaced_without_a_restart(
    build: Build, s3: dict[str, str], seaweedfs: SeaweedFS, where: str
) -> None:
    client = seaweedfs.client()
    bucket = f"credentials-{os.getpid()}-{where.split(maxsplit=1)[0]}"
    client.create_bucket(Bucket=bucket)
    client.close()
    good = {k: s3[k] for k in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    others = {k: v for k, v in s3.items() if k not in good}
    one = build(**{**others, "CLOUD_BUCKET": bucket})

    def write(secret: str) -> None:
        if where == "environment file":
            text = (
                f"AWS_ACCESS_KEY_ID={good['AWS_ACCESS_KEY_ID']}\nAWS_SECRET_ACCESS_KEY={secret}\n"
            )
            (one.disk / ".env").write_text(text)
        else:
            (one.disk / "credentials").write_text(
                f"[default]\naws_access_key_id = {good['AWS_ACCESS_KEY_ID']}\n"
                f"aws_secret_access_key = {secret}\n"
            )
            one.environ["AWS_SHARED_CREDENTIALS_FILE"] = str(one.disk / "credentials")

    write("not-the-secret")
    name = checkpoint(one)
    one.start()
    wait_until(lambda: one.reasons() != "[]", one.log)
    assert "AWS_SECRET_ACCESS_KEY" in one.reasons()
    assert "not-the-secret" not in one.log() + one.reasons()
    write(good["AWS_SECRET_ACCESS_KEY"])
    wait_until(one.has_committed(name), one.log)
    assert one.syncd("status").returncode == 0
    assert good["AWS_SECRET_ACCESS_KEY"] not in one.log()


def test_store_that_is_down_from_the_start_is_waited_for(build: Build) -> None:
    server = SeaweedFS()
    server.start()
    try:
        settings = {**server.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": "late"}
        client = server.client()
        client.create_bucket(Bucket="late")
        client.close()
        server.kill()
        one = build(**settings)
        name = checkpoint(one)
        one.start()
        wait_until(is_red(one, "cannot be reached"), one.log)
        assert one.daemon
        assert one.daemon.poll() is None
        server.start()
        wait_until(lambda: one.point() == name, one.log(), patience=150)
        wait_until(lambda: one.reasons() == "[]", one.reasons())
        assert one.stop() == 0
    finally:
        server.stop()


def test_sdk_that_is_not_installed_is_named(build: Build, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "boto3.py").write_text("raise ModuleNotFoundError('boto3', name='boto3')\n")
    (hidden / "botocore.py").write_text("raise ModuleNotFoundError('botocore', name='botocore')\n")
    one = build(CLOUD_PROVIDER="s3", CLOUD_BUCKET="b", PYTHONPATH=str(hidden))
    checkpoint(one)
    one.start()
    wait_until(is_red(one, "boto3", "pip install"), one.log)
    assert one.stop() == 1


def test_fenced_daemon_says_so_and_stays_away(build: Build) -> None:
    one, two = build("one"), build("two")
    one.start()
    name = checkpoint(one)
    wait_until(one.has_committed(name), one.log)
    assert two.syncd("restore").returncode == 0
    two.start()
    newer = checkpoint(two, 10)
    wait_until(two.has_committed(newer), two.log)
    checkpoint(one, 15)
    wait_until(is_red(one, "another machine"), one.log)
    assert one.stop() == 1
    rows = json.loads(two.syncd("ls", "--json").stdout)
    assert [row["checkpoint"] for row in rows] == [newer, name]


def test_s3_daemon_imports_no_other_sdk_and_no_torch(s3: dict[str, str]) -> None:
    code = (
        "import sys; from syncd.config import load_settings; from syncd import daemon, opening;"
        "s = load_settings(); opening.open_store(s.cloud_provider, s.cloud_bucket, s.environ);"
        "loaded = {m.split('.')[0] for m in sys.modules};"
        "bad = loaded & {'google', 'azure', 'torch', 'numpy', 'rich'};"
        "sys.exit(repr(bad) if bad else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **s3, "CLOUD_BUCKET": "b"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


def test_local_checkpoint_wins_unless_the_newest_is_asked_for(build: Build) -> None:
    one, two = build("one"), build("two")
    checkpoint(one, 5)
    one.syncd("--once")
    two.syncd("restore")
    checkpoint(one, 10)
    one.syncd("--once")
    kept = two.syncd("restore")
    assert kept.returncode == 0
    assert "the store is AHEAD" in kept.stderr
    assert not (two.checkpoints / "run/gen-000010").exists()
    two.environ["RESUME_FROM"] = "newest"
    assert two.syncd("restore").returncode == 0
    assert (two.checkpoints / "run/gen-000010").exists()


def test_file_overwritten_on_another_machine_is_seen_as_ahead(build: Build) -> None:
    one, two = build("one"), build("two")
    for machine, content in ((one, b"first"), (two, b"later")):
        if machine is two:
            assert two.syncd("restore").returncode == 0
        (machine.checkpoints / "last.bin").parent.mkdir(exist_ok=True)
        (machine.checkpoints / "last.bin").write_bytes(content)
        assert machine.syncd("--once").returncode == 0
    kept = one.syncd("restore")
    assert (kept.returncode, "the store is AHEAD" in kept.stderr) == (0, True)
    one.environ["RESUME_FROM"] = "newest"
    taken = one.syncd("restore")
    assert taken.returncode == 0
    assert (one.checkpoints / "last.bin").read_bytes() == b"later"
    assert "kept as" in taken.stderr
    assert [p.read_bytes() for p in one.checkpoints.glob(".syncd-replaced/*")] == [b"first"]
    rows = one.syncd("ls", "--json").stdout
    assert one.syncd("--once").returncode == 0
    assert one.syncd("ls", "--json").stdout.count("last.bin") == rows.count("last.bin")


def test_wrong_endpoint_is_mended_in_the_environment_file(
    build: Build, s3: dict[str, str], seaweedfs: SeaweedFS
) -> None:
    client = seaweedfs.client()
    bucket = f"endpoint-{os.getpid()}"
    client.create_bucket(Bucket=bucket)
    client.close()
    right = s3.pop("AWS_ENDPOINT_URL")
    one = build(**{**s3, "CLOUD_BUCKET": bucket, "AWS_ENDPOINT_URL": ""})
    (one.disk / ".env").write_text("AWS_ENDPOINT_URL=http://127.0.0.1:9\n")
    del one.environ["AWS_ENDPOINT_URL"]
    name = checkpoint(one)
    one.start()
    wait_until(is_red(one, "cannot be reached"), one.log)
    (one.disk / ".env").write_text(f"AWS_ENDPOINT_URL={right}\n")
    wait_until(one.has_committed(name), one.log(), patience=120)


def test_restore_from_a_store_that_cannot_be_reached_is_1(build: Build) -> None:
    one = build(
        CLOUD_PROVIDER="s3",
        CLOUD_BUCKET="b",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
    )
    ended = one.syncd("restore", "--retry-for", "1")
    assert ended.returncode == 1
    assert "cannot be used" in ended.stderr


def test_nothing_intact_is_3_and_empty_is_0(build: Build, tmp_path: Path) -> None:
    one, two = build("one"), build("two")
    empty = two.syncd("restore")
    assert (empty.returncode, "empty" in empty.stderr) == (0, True)
    checkpoint(one)
    one.syncd("--once")
    (tmp_path / "bucket/eigen2/checkpoints/run/gen-000005/state.json").write_bytes(b"!!")
    ended = two.syncd("restore")
    assert ended.returncode == 3
    assert "NOT INTACT" in ended.stderr
    assert two.syncd("verify").returncode == 3


def test_a_name_without_its_checkpoint_is_not_brought_back(build: Build) -> None:
    """The trainer would look for what it names, and fail."""
    one, two = build("one"), build("two")
    one.checkpoints.mkdir()
    (one.checkpoints / "last_checkpoint").write_text("iter_40.pth")
    one.syncd("--once")
    found = two.syncd("restore")
    assert (found.returncode, "holds no checkpoint" in found.stderr) == (0, True)
    assert not (two.checkpoints / "last_checkpoint").exists()


def test_uploaded_by_the_python_face_and_restored_as_unproven(build: Build, tmp_path: Path) -> None:
    one, two = build("one"), build("two")
    one.write_checkpoint("run/gen-000005", {"state.json": b"{}", "w.bin": b"weights"})
    code = "from syncd import get_cloud_sync_from_env as get; import sys; s = get();"
    code += "sys.exit(s.upload_directory('checkpoints', 'eigen2/checkpoints') != 2)"
    uploaded = subprocess.run(
        [sys.executable, "-c", code], cwd=one.disk, env=one.environ, check=False
    )
    assert uploaded.returncode == 0
    restored = two.syncd("restore")
    assert restored.returncode == 0
    assert "restored run/gen-000005, UNPROVEN" in restored.stderr
    assert (two.checkpoints / "run/gen-000005/w.bin").read_bytes() == b"weights"
    assert two.syncd("--once").returncode == 0
    assert [row["checkpoint"] for row in json.loads(two.syncd("ls", "--json").stdout)] == [
        "run/gen-000005"
    ]


def test_both_retentions_leave_the_newest_in_the_store_and_on_disk(build: Build) -> None:
    one = build(SYNCD_KEEP_LAST="1", SYNCD_KEEP_LAST_LOCAL="1")
    for generation in (5, 10, 15):
        checkpoint(one, generation)
    assert one.syncd("--once").returncode == 0
    assert [path.name for path in (one.checkpoints / "run").iterdir()] == ["gen-000015"]
    rows = json.loads(one.syncd("ls", "--json").stdout)
    assert [row["checkpoint"] for row in rows] == ["run/gen-000015"]
    assert one.syncd("verify").returncode == 0
