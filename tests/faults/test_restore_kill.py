"""A restore that is killed, doubled, or whose disk fails: the old or the new, never between."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd import manual
from syncd.config import Environment, load_settings
from syncd.place import REPLACED, STAGING, alone, clear_staging
from tests.faults.restore_kill import kill, kill_at_each_line, look
from tests.workbench import Machine

pytestmark = pytest.mark.first


@pytest.mark.slow
def test_killed_at_200_points_it_is_the_old_or_the_new() -> None:
    assert kill(200, seed=1) == []


@pytest.mark.slow
def test_files_of_one_step_come_into_a_new_folder_all_at_once() -> None:
    assert kill_at_each_line("fresh, beside") == []


@pytest.mark.slow
def test_killed_after_any_time_of_its_life() -> None:
    assert kill(20, seed=1, by="time") == []


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number in range(300):
        machine.write(f"run/gen-000010/part-{number}", b"x" * 100)
    machine.write("run/gen-000010/state.json", "{}")
    machine.commit_all()
    return tmp_path / "bucket"


def restore(
    bucket: Path, disk: Path, *, force: bool = False, to: Path | None = None, **environ: str
) -> int:
    """The command, in this process."""
    disk.mkdir(exist_ok=True)
    places = {"CHECKPOINT_DIR": str(disk / "checkpoints"), "SYNCD_STATE_DIR": str(disk / "state")}
    cloud = {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": str(bucket)}
    settings = load_settings(Environment({**cloud, **places, **environ}, disk / ".env"))
    return manual.restore(settings, to, None, False, force, 5.0)


def start(bucket: Path, disk: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "syncd", "restore"],
        cwd=disk,
        env={
            **os.environ,
            "PYTHONPATH": str(Path.cwd()),
            "CLOUD_PROVIDER": "local",
            "CLOUD_BUCKET": str(bucket),
        },
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_at_once_do_not_disturb_each_other(bucket: Path, tmp_path: Path) -> None:
    disk = tmp_path / "two"
    disk.mkdir()
    with start(bucket, disk) as one, start(bucket, disk) as other:
        words = [process.communicate(timeout=60)[1] for process in (one, other)]
    assert (one.returncode, other.returncode) == (0, 0), words
    assert sum("every byte verified" in said for said in words) == 1
    assert sum("is on disk already" in said for said in words) == 1
    assert look(disk / "checkpoints") == look(tmp_path / "one/checkpoints")
    assert not list(disk.rglob(f"{STAGING}*"))


def test_second_one_waits_and_says_so(bucket: Path, tmp_path: Path) -> None:
    disk = tmp_path / "two"
    disk.mkdir()
    with alone(disk / "checkpoints", None) as free:
        assert free
        second = start(bucket, disk)
        assert second.stderr
        assert "waiting for another restore" in second.stderr.readline()
        with alone(disk / "checkpoints", None) as free_again:
            assert not free_again
    with second:
        second.communicate(timeout=60)
    assert second.returncode == 0
    assert look(disk / "checkpoints") == look(tmp_path / "one/checkpoints")


def test_folder_that_stays_empty_is_not_left(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    assert restore(tmp_path / "bucket", tmp_path / "two", to=tmp_path / "a/b") == 0
    assert not (tmp_path / "a").exists()


# -- the disk


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for what the files have, and not for the blocks they take."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if subprocess.run(command, check=False).returncode:
        pytest.skip("only root can mount a small disk")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("force", [False, True], ids=["kept", "forced"])
def test_disk_that_fills_up_leaves_what_was_there(
    bucket: Path, small: Path, capsys: pytest.CaptureFixture[str], force: bool
) -> None:
    old = small / "checkpoints/run/gen-000010/state.json"
    old.parent.mkdir(parents=True)
    old.write_text('{"old": 1}')
    os.utime(old, (1, 1))
    assert restore(bucket, small, force=force, RESUME_FROM="newest") == 1
    words = capsys.readouterr().err
    assert "No space left on device; nothing was restored" in words
    assert "free some space" in words
    assert look(small / "checkpoints") == {"run/gen-000010/state.json": b'{"old": 1}'.hex()}
    assert not list(small.rglob(f"{STAGING}*"))


@pytest.mark.parametrize("place", ["none", "kept", "forced"])
def test_every_fsync_that_fails_is_reported_and_leaves_the_old(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: str,
) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    machine.write("ds/global_step20/a/w.bin", b"x" * 100)
    machine.write("ds/latest", "global_step20")
    machine.commit_all()
    new, real = look(machine.root), os.fsync
    for nth in range(1, 50):
        disk = tmp_path / f"disk-{nth}"
        if place != "none":
            old = disk / "checkpoints/ds/global_step20/a/w.bin"
            old.parent.mkdir(parents=True)
            old.write_bytes(b"old")
            os.utime(old, (1, 1))
            (disk / "checkpoints/ds/latest").write_text("global_step20")
        before = look(disk / "checkpoints")
        calls = 0

        def fail(fd: int, nth: int = nth) -> None:
            nonlocal calls
            calls += 1
            if calls == nth:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            real(fd)

        monkeypatch.setattr(os, "fsync", fail)
        code = restore(tmp_path / "bucket", disk, force=place == "forced", RESUME_FROM="newest")
        monkeypatch.setattr(os, "fsync", real)
        words = capsys.readouterr().err
        assert not list(disk.rglob(f"{STAGING}*"))
        if calls < nth:
            assert (code, look(disk / "checkpoints")) == (0, new)
            return
        assert code == 1
        assert "Input/output error" in words
        assert "restore --to another one" in words
        # a tracker that could not be made durable comes after the checkpoint itself
        assert look(disk / "checkpoints") in (before, new, {**new, **before}, _without(new))
    pytest.fail("it never came to its end")


def _without(tree: dict[str, str]) -> dict[str, str]:
    return {name: content for name, content in tree.items() if name != "ds/latest"}


def test_sparse_file_comes_back_sparse_and_empty_ones_empty(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    with machine.write("set-1/sparse.bin", b"head").open("r+b") as file:
        file.seek(96 << 20)
        file.write(b"tail")
    machine.write("set-1/empty.dat", b"")
    machine.commit_all()
    assert restore(tmp_path / "bucket", tmp_path / "two") == 0
    back = tmp_path / "two/checkpoints/set-1"
    assert (back / "empty.dat").stat().st_size == 0
    assert (back / "sparse.bin").stat().st_size == (96 << 20) + 4
    assert (back / "sparse.bin").stat().st_blocks * 512 < 16 << 20
    both = [root / "set-1/sparse.bin" for root in (machine.root, tmp_path / "two/checkpoints")]
    assert subprocess.run(["cmp", *both], check=False).returncode == 0


def test_thousands_of_files_come_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "one", tmp_path / "bucket").start()
    for number in range(3000):
        machine.write(f"set-1/{number % 50}-part/{number}.bin", b"%d" % number)
    machine.write("set-1/state.json", "{}")
    assert len(machine.commit_all()) == 1
    assert restore(tmp_path / "bucket", tmp_path / "two") == 0
    assert look(tmp_path / "two/checkpoints") == look(machine.root)


def test_what_a_killed_restore_had_put_aside_is_not_lost_with_its_staging(tmp_path: Path) -> None:
    """Killed between the exchange and the keeping: the next one keeps it."""
    from syncd import place

    staging = place.new_staging(tmp_path)
    (staging / "content").mkdir()
    (staging / "content/w.bin").write_text("new")
    inode = (staging / "content").stat().st_ino
    (tmp_path / "gen-1").mkdir()
    (tmp_path / "gen-1/w.bin").write_text("old")
    place._write_note(staging, place.Note("gen-1", inode, keep=True))
    assert place._exchange(staging / "content", tmp_path / "gen-1")
    clear_staging(tmp_path)
    assert (tmp_path / "gen-1/w.bin").read_text() == "new"
    assert [p.read_text() for p in tmp_path.glob(f"{REPLACED}/*/w.bin")] == ["old"]


def test_what_is_left_of_files_placed_one_by_one_is_not_taken_for_all_of_them(
    tmp_path: Path,
) -> None:
    """Killed between two of them; then somebody deleted the folder with those that were placed."""
    from syncd import place

    staging = place.new_staging(tmp_path)
    (staging / "content").mkdir()
    (staging / "replaced").mkdir()
    (staging / "content/model_10_steps.zip").write_text("new")
    names = ["model_10_steps.zip", "model_replay_buffer_10_steps.pkl"]
    inode = (staging / "content").stat().st_ino
    place._write_note(
        staging, place.Note("ppo/model_10_steps.zip", inode, keep=False, beside=names)
    )
    clear_staging(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_not_writable_is_removed_all_the_same(tmp_path: Path) -> None:
    from syncd.place import remove

    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("x")
    (tmp_path / "a/b").chmod(0o500)
    remove(tmp_path / "a")
    assert not (tmp_path / "a").exists()
