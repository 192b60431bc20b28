"""The data file that a machine comes without: put into the bucket once, fetched and proven."""

from __future__ import annotations

import os
from pathlib import Path

from tests.e2e.processes import Machine


def test_a_data_file_comes_back_proven_or_not_at_all(tmp_path: Path) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    machine = Machine(tmp_path / "one", {"CLOUD_BUCKET": str(bucket)})
    content = os.urandom(20_000_000)
    (machine.disk / "market.csv").write_bytes(content)
    assert machine.syncd("data", "put", "market.csv").returncode == 0

    other = Machine(tmp_path / "two", {"CLOUD_BUCKET": str(bucket)})
    done = other.syncd("data", "get", "market.csv")
    assert done.returncode == 0, done.stderr
    assert "20.0 MB, verified" in done.stderr
    assert (other.disk / "data" / "market.csv").read_bytes() == content

    stored = bucket / "eigen2" / "data" / "market.csv"
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    done = other.syncd("data", "get", "market.csv", "--to", "again.csv")
    assert done.returncode == 1
    assert "is not what its digest says" in done.stderr
    assert not (other.disk / "again.csv").exists()
    assert not list(other.disk.glob(".*.part"))

    done = other.syncd("data", "get", "missing.csv")
    assert done.returncode == 1
    assert "python -m syncd data put missing.csv" in done.stderr


def test_a_file_put_there_by_other_tools_is_fetched_and_called_unproven(tmp_path: Path) -> None:
    place = tmp_path / "bucket" / "eigen2" / "data"
    place.mkdir(parents=True)
    (place / "market.csv").write_text("date,close\n")
    machine = Machine(tmp_path / "one", {"CLOUD_BUCKET": str(tmp_path / "bucket")})
    done = machine.syncd("data", "get", "market.csv")
    assert done.returncode == 0, done.stderr
    assert "no digest beside it" in done.stderr


def test_the_newest_commit_alone_can_be_proven(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    machine = Machine(tmp_path / "one", {"CLOUD_BUCKET": str(tmp_path / "bucket")})
    assert machine.syncd("verify", "--newest").returncode == 3, "there is none"
    machine.write_checkpoint("run/gen-000001", {"weights.bin": b"1" * 100})
    assert machine.syncd("--once").returncode == 0
    machine.write_checkpoint("run/gen-000002", {"weights.bin": b"2" * 100})
    assert machine.syncd("--once").returncode == 0
    files = tmp_path / "bucket" / "eigen2" / "checkpoints" / "run"
    (files / "gen-000001" / "weights.bin").write_bytes(b"broken")
    assert machine.syncd("verify").returncode == 3
    assert machine.syncd("verify", "--newest").returncode == 0
    (files / "gen-000002" / "weights.bin").write_bytes(b"broken")
    assert machine.syncd("verify", "--newest").returncode == 3
