"""Format checks: whole files pass, and every cut of them is noticed."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest

from syncd.formats import check_file


def safetensors() -> bytes:
    header = json.dumps({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def torch_like(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"step": 1}))
        archive.writestr("archive/data/0", bytes(range(256)) * 8)
    return path.read_bytes()


def examples(tmp_path: Path) -> dict[str, bytes]:
    return {
        "model.safetensors": safetensors(),
        "model.pt": torch_like(tmp_path / "scratch"),
        "buffer.pkl.gz": gzip.compress(bytes(range(256)) * 100),
        "state.json": json.dumps({"global_step": 5}).encode(),
        "optimizer.pkl": pickle.dumps(list(range(100))),
    }


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.pt", "buffer.pkl.gz", "state.json", "optimizer.pkl"]
)
def test_whole_file_passes_and_every_cut_is_noticed(tmp_path: Path, name: str) -> None:
    data = examples(tmp_path)[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert check_file(path) is None
    unnoticed = []
    for length in range(len(data)):
        path.write_bytes(data[:length])
        if check_file(path) is None and not (
            name.endswith(".pkl") and data[length - 1 : length] == b"."
        ):
            unnoticed.append(length)
    assert unnoticed == []


def test_file_made_to_size_but_not_written_is_noticed(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pt"):
        path = tmp_path / name
        path.write_bytes(bytes(5000))
        assert check_file(path) is not None


def test_longer_safetensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors() + b"x")
    assert "header says" in (check_file(path) or "")


def test_unknown_format_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"anything")
    assert check_file(path) is None
    path.write_bytes(b"")
    assert check_file(path) is None


def test_gzip_of_two_members_passes(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(b"one") + gzip.compress(b"two" * 100000))
    assert check_file(path) is None
