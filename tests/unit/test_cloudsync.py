"""The Python face: its old names, a bool or a count, and never an exception."""

from __future__ import annotations

from pathlib import Path

import pytest

import syncd
from syncd import CloudSync, get_cloud_sync_from_env


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "checkpoints" / "run1"
    folder.mkdir(parents=True)
    (folder / "agent.pth").write_bytes(b"agent")
    (folder / "replay_buffer.pkl").write_bytes(b"big")
    (tmp_path / "checkpoints" / "run10").mkdir()
    (tmp_path / "checkpoints" / "run10" / "agent.pth").write_bytes(b"other")
    return tmp_path


@pytest.fixture
def sync(here: Path) -> CloudSync:
    return CloudSync("local", str(here / "bucket"), patience=0.0)


def test_exported_names() -> None:
    assert syncd.__all__ == ["CloudSync", "get_cloud_sync_from_env"]
    for name in [
        "upload_file",
        "download_file",
        "upload_directory",
        "download_directory",
        "sync_checkpoints",
        "download_checkpoints",
        "sync_logs",
    ]:
        assert callable(getattr(CloudSync, name))


def test_there_and_back(sync: CloudSync, here: Path) -> None:
    assert (sync.provider, sync.bucket_name) == ("local", str(here / "bucket"))
    assert sync.upload_directory("checkpoints", "eigen2/checkpoints") == 3
    assert sync.download_checkpoints("back") == 3
    assert (here / "back/run1/agent.pth").read_bytes() == b"agent"
    assert sync.upload_file("checkpoints/run1/agent.pth")
    assert sync.download_file("eigen2/checkpoints/run1/agent.pth", "one/agent.pth")


def test_prefix_is_a_directory(sync: CloudSync, here: Path) -> None:
    sync.sync_checkpoints()
    assert sync.download_directory("eigen2/checkpoints/run1", "only") == 2
    assert sorted(path.name for path in (here / "only").iterdir()) == [
        "agent.pth",
        "replay_buffer.pkl",
    ]


def test_exclude_is_a_glob_not_a_part_of_a_name(sync: CloudSync) -> None:
    assert sync.sync_checkpoints(exclude_patterns=["replay_buffer*"]) == 2
    assert sync.sync_checkpoints(exclude_patterns=["agent"]) == 3


def test_failure_is_false_or_zero(
    sync: CloudSync, here: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert not sync.upload_file("missing.pt")
    assert not sync.download_file("eigen2/missing", "x")
    assert not (here / "x").exists()
    assert sync.upload_directory("missing") == 0
    assert "missing" in caplog.text
    broken = CloudSync("local", "/nonexistent/nowhere/bucket", patience=0.0)
    assert not broken.upload_file("checkpoints/run1/agent.pth")
    assert broken.download_checkpoints() == 0
    assert not CloudSync("floppy", "x").upload_file("checkpoints/run1/agent.pth")


def test_background_failures_are_counted(sync: CloudSync) -> None:
    assert sync.upload_file("checkpoints/run1/agent.pth", background=True)
    assert sync.upload_file("missing.pt", background=True)
    while sync.get_upload_status()[0]:
        pass
    assert sync.get_upload_status() == (0, 1, 1)
    assert not sync.wait_for_uploads(10)
    assert sync.wait_for_uploads(10)


def test_cut_download_leaves_the_old_file(sync: CloudSync, here: Path) -> None:
    sync.upload_file("checkpoints/run1/agent.pth", "eigen2/x")
    (here / "x").write_bytes(b"old")
    (here / "bucket/eigen2/x").unlink()
    assert not sync.download_file("eigen2/x", "x")
    assert (here / "x").read_bytes() == b"old"


def test_from_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_BUCKET", str(here / "b"))
    monkeypatch.setenv("CLOUD_PREFIX", "mine")
    sync = get_cloud_sync_from_env()
    assert (sync.provider, sync.bucket_name, sync.project_name) == (
        "local",
        str(here / "b"),
        "mine",
    )
    monkeypatch.setenv("CLOUD_PROVIDER", "floppy")
    assert get_cloud_sync_from_env().provider == "local"


def test_without_a_bucket_nothing_is_copied(here: Path) -> None:
    assert not CloudSync().upload_file("checkpoints/run1/agent.pth")
    assert CloudSync().sync_logs() == 0
