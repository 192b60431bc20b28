"""Format checks: whole files pass, every cut of them is noticed, nothing in them does harm."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as save_safetensors

from syncd.formats import check_file
from syncd.shards import named_beside
from tests.faults.morewriters import record


def saved(save: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()


TENSORS = {
    "w": torch.arange(300, dtype=torch.float32),
    "h": torch.ones(7, dtype=torch.bfloat16),
    "n": torch.zeros(3, dtype=torch.int64),
}


def stable_baselines() -> bytes:
    """A zip of archives: a cut behind the end of an inner one must not pass for the whole."""

    def write(buffer: io.BytesIO) -> None:
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("data", json.dumps({"policy": "MlpPolicy"}))
            for name in ("pytorch_variables.pth", "policy.pth", "policy.optimizer.pth"):
                archive.writestr(name, saved(lambda b: torch.save(TENSORS, b)))
            archive.writestr("_stable_baselines3_version", "2.7.0")

    return saved(write)


def many_entries() -> bytes:
    """More entries than the 16-bit count of a zip holds: its 64-bit records are used."""

    def write(buffer: io.BytesIO) -> None:
        with zipfile.ZipFile(buffer, "w") as archive:
            for number in range(66_000):
                archive.writestr(zipfile.ZipInfo(f"{number}"), b"")

    return saved(write)


def hdf5(version: int, length: int = 400) -> bytes:
    """A superblock with the address of the end of the file, as the format's own text has it."""
    head = b"\x89HDF\r\n\x1a\n" + bytes([version])
    undefined, end = struct.pack("<Q", 2**64 - 1), struct.pack("<Q", length)
    if version < 2:
        head += bytes([0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHI", 4, 16, 0)
        head += struct.pack("<HH", 32, 0) if version == 1 else b""
    else:
        head += bytes([8, 8, 0])
    head += bytes(8) + undefined + end
    return head + b"x" * (length - len(head))


EXAMPLES: dict[str, bytes] = {
    "model.safetensors": save_safetensors({"w": np.arange(40.0), "b": np.ones(3)}),
    "model.pt": saved(lambda b: torch.save(TENSORS, b)),
    "pytorch_model.bin": saved(lambda b: torch.save({"w": torch.ones(5)}, b)),
    "old.pt": saved(lambda b: torch.save(TENSORS, b, _use_new_zipfile_serialization=False)),
    "rl_model_10_steps.zip": stable_baselines(),
    "__0_0.distcp": saved(lambda b: torch.save(TENSORS, b)) * 2,
    "buffer.pkl.gz": gzip.compress(bytes(range(256)) * 100),
    "state.json": json.dumps({"global_step": 5, "text": 'a "quoted" \\\\ {['}).encode(),
    "basic-variant-state.json": b"\x80\x05}\x94\x8c\x01n\x94K\x05s.",
    "metrics.jsonl": b'{"step": 1}\n{"step": 2, "loss": 0.5}\n',
    "optimizer.pkl": pickle.dumps(["x" * 70_000, list(range(300)), b"y" * 100]),
    "ancient.pkl": pickle.dumps({"a": [1, 2.5, "b"], "c": None}, protocol=2),
    "text.pkl": pickle.dumps({"a": [1, 2.5, "b"], "c": None}, protocol=0),
    "arrays.pkl": pickle.dumps({"a": np.arange(1000.0)}, protocol=5),
    "a.npy": saved(lambda b: np.save(b, np.arange(50, dtype=np.int16).reshape(5, 10))),
    "a.npz": saved(lambda b: np.savez(b, a=np.arange(50), b=np.ones(3))),
    "memory.tfrecord": record(b"one") + record(b"two" * 300),
    "v0.h5": hdf5(0),
    "v1.h5": hdf5(1),
    "v3.h5": hdf5(3),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_whole_file_passes_and_every_cut_is_noticed(tmp_path: Path, name: str) -> None:
    data = EXAMPLES[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert check_file(path) is None
    unnoticed = []
    steps = range(len(data)) if len(data) < 6000 else range(0, len(data), 7)
    with path.open("r+b") as file:
        for length in reversed(steps):
            file.truncate(length)
            if check_file(path) is None:
                unnoticed.append(length)
    allowed = {"metrics.jsonl": {0, 11, 12, len(data) - 1}, "__0_0.distcp": {len(data) // 2}}
    allowed["memory.tfrecord"] = {19}  # between two records
    assert set(unnoticed) <= allowed.get(name, set())


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_flipped_and_cut_files_do_no_harm(tmp_path: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(EXAMPLES)))
    content = bytearray(EXAMPLES[name])
    for _ in range(data.draw(st.integers(0, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = tmp_path / name
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    verdict = check_file(path)
    assert verdict is None or isinstance(verdict, str)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(cut=st.floats(0, 0.999999), name=st.sampled_from(["rl_model_10_steps.zip", "model.pt"]))
def test_cut_archive_never_passes_for_the_one_inside_it(
    tmp_path: Path, cut: float, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(EXAMPLES[name][: int(cut * len(EXAMPLES[name]))])
    assert check_file(path) is not None


def test_archive_with_very_many_entries_passes(tmp_path: Path) -> None:
    path = tmp_path / "many.zip"
    path.write_bytes(many_entries())
    assert check_file(path) is None


def test_archive_beyond_four_gigabytes_passes(tmp_path: Path) -> None:
    path = tmp_path / "large.pt"
    large = 5 << 30
    with path.open("wb") as file:
        name = b"archive/data/0"
        file.write(struct.pack("<4s5H3L2H", b"PK\3\4", 45, 0, 0, 0, 0, 0, 2**32 - 1, 2**32 - 1,
                               len(name), 20) + name)  # fmt: skip
        file.write(struct.pack("<HHQQ", 1, 16, large, large))
        file.seek(large, os.SEEK_CUR)  # its content is a hole here
        begin = file.tell()
        file.write(struct.pack("<4s6H3L5H2L", b"PK\1\2", 45, 45, 0, 0, 0, 0, 0, 2**32 - 1,
                               2**32 - 1, len(name), 20, 0, 0, 0, 0, 0) + name)  # fmt: skip
        file.write(struct.pack("<HHQQ", 1, 16, large, large))
        end = file.tell()
        file.write(struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, end - begin, begin))
        file.write(struct.pack("<4sLQL", b"PK\6\7", 0, end, 1))
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, end - begin, 2**32 - 1, 0))
    assert zipfile.is_zipfile(path)
    assert check_file(path) is None
    with path.open("r+b") as file:
        file.truncate(end + 10)
    assert check_file(path) is not None


def test_large_tensors_need_no_memory(tmp_path: Path) -> None:
    header = json.dumps(
        {f"w{n}": {"dtype": "U8", "shape": [1], "data_offsets": [n, n + 1]} for n in range(90_000)}
        | {"__metadata__": {"note": '"data_offsets":[0,999999999999]'}}
    ).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"x" * 90_000)
    assert check_file(path) is None
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"x" * 89_999)
    assert "header says" in (check_file(path) or "")


HOSTILE: dict[str, bytes] = {
    "a.safetensors": struct.pack("<Q", 2**63) + b"{}",
    "b.safetensors": struct.pack("<Q", 90_000_000) + b"[" * 90_000_000,
    "c.json": b"[" * 100_000,
    "d.json": b"[" * 30_000_000,
    "e.pkl": b"\x80\x04\x8e" + b"\xff" * 8 + b"x",
    "f.pkl": b"\x80\x02r\xff\xff\xff\x7f.",
    "g.zip": b"PK\x03\x04" + bytes(40) + b"PK\5\6" + b"\xff" * 16 + b"\0\0",
    "h.npy": b"\x93NUMPY\x02\0" + b"\xff" * 4 + b"x",
    "i.pkl": b"\x80\x02" + b"N" * 20_000_000,
    "j.pkl.gz": gzip.compress(bytes(200_000_000), 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_little_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(HOSTILE[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    verdict = check_file(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert verdict is not None or name in ("f.pkl", "j.pkl.gz")
    assert grown < 40 * 1024  # KiB


def test_file_made_to_size_but_not_written_is_noticed(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model.pt"):
        path = tmp_path / name
        path.write_bytes(bytes(5000))
        assert check_file(path) is not None


def test_end_that_was_never_written_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    data = save_safetensors({"w": np.zeros(100_000)})
    path.write_bytes(data)
    assert check_file(path) is None
    with path.open("wb") as file:
        file.truncate(len(data))
        file.write(data[: len(data) // 2])
    assert "never written" in (check_file(path) or "never written")  # not all systems can tell


def test_longer_safetensors_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(EXAMPLES["model.safetensors"] + b"x")
    assert "header says" in (check_file(path) or "")


def test_unknown_format_is_not_judged(tmp_path: Path) -> None:
    path = tmp_path / "weights.raw"
    path.write_bytes(b"anything")
    assert check_file(path) is None
    path.write_bytes(b"")
    assert check_file(path) is None


def test_gzip_of_two_members_passes(tmp_path: Path) -> None:
    path = tmp_path / "log.gz"
    path.write_bytes(gzip.compress(b"one") + gzip.compress(b"two" * 100000))
    assert check_file(path) is None


def test_large_json_is_counted_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    log: list[dict[str, Any]] = [{"loss": 0.1, "text": '}]"\\'}] * 150_000
    data = json.dumps({"log_history": log}).encode()
    assert len(data) > 4_000_000
    path.write_bytes(data + b"\n")
    assert check_file(path) is None
    for cut in (1, 2, 1000, 2_000_000):
        path.write_bytes(data[:-cut])
        assert check_file(path) is not None


def test_names_in_an_index_and_in_torch_metadata(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}))
    assert named_beside(index) == ["m-1.safetensors", "m-2.safetensors"]
    index.write_text("[]")
    assert named_beside(index) == []
    metadata = tmp_path / ".metadata"
    metadata.write_bytes(pickle.dumps({"a": "__0_0.distcp", "b": "__1_0.distcp"}))
    assert named_beside(metadata) == ["__0_0.distcp", "__1_0.distcp"]
