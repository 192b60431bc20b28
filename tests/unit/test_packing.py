"""zstd: what gains by it becomes shorter, and comes back in bounded memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.errors import Corrupt
from syncd.packing import Packer, unpack
from syncd.records import CommitRecord, parse_record
from syncd.stores.directory import DirectoryStore
from tests.workbench import LAYOUT, CountingStore, Machine, restore_newest, restorer, tree

MIB = 1024 * 1024


def text(size: int) -> bytes:
    return os.urandom(size // 2).hex().encode()


def machine_at(tmp_path: Path, name: str = "one") -> Machine:
    machine = Machine(tmp_path / name, tmp_path / "bucket").start()
    machine.transfer._packer = Packer(tmp_path / name / "packing")
    return machine


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=3000), times=st.integers(1, 200), cut=st.integers(1, 5000))
def test_what_was_packed_comes_back(data: bytes, times: int, cut: int) -> None:
    content = data * times
    packed = Packer(Path("unused")).pack(content)
    if packed is not None:
        assert len(packed) < len(content)
        chunks = [packed[at : at + cut] for at in range(0, len(packed), cut)]
        assert b"".join(unpack(chunks, len(content))) == content


@pytest.mark.parametrize("size", [0, 1, 100, MIB, 9 * MIB])
def test_what_gains_nothing_stays_as_it_is(size: int) -> None:
    assert Packer(Path("unused")).pack(os.urandom(size)) is None


def test_bomb_yields_no_more_than_was_promised() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MIB))
    assert sum(map(len, unpack([bomb], 1000))) == 1001


def test_frame_that_wants_too_much_memory_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters(window_log=30, enable_ldm=True)
    packing = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    greedy = packing.compress(b"0123456789" * 1000) + packing.flush()
    with pytest.raises(Corrupt, match="cannot be decompressed"):
        list(unpack([greedy], 10_000))


def test_what_is_damaged_is_refused(tmp_path: Path) -> None:
    machine = machine_at(tmp_path)
    machine.write("run/gen-000005/table.csv", text(100_000))
    machine.write("run/gen-000005/state.json", "{}")
    machine.commit_all()
    victim = tmp_path / "bucket/eigen2/checkpoints/run/gen-000005/table.csv.zst"
    whole = victim.read_bytes()
    for data in (b"rubbish", whole[:-100], whole[:100] + bytes(100) + whole[200:], b""):
        victim.write_bytes(data)
        back = restorer(tmp_path / "bucket")
        result = back.restore_newest(back.commits(), tmp_path / "two")
        assert result.record is None
        assert "table.csv" in result.rejected[0]
        with pytest.raises(Corrupt):
            back.verify(next(c for c in back.commits() if isinstance(c, CommitRecord)))


@pytest.mark.parametrize("size", [3000, 2 * MIB, 20 * MIB], ids=["small", "one request", "parts"])
def test_plain_tool_opens_what_lies_in_the_bucket(tmp_path: Path, size: int) -> None:
    machine, content = machine_at(tmp_path), text(size)
    machine.write("run/gen-000005/table.csv", content)
    machine.write("run/gen-000005/noise.bin", os.urandom(size))
    machine.write("run/gen-000005/state.json", "{}")
    (record,) = machine.commit_all()
    folder = tmp_path / "bucket/eigen2/checkpoints/run/gen-000005"
    packed = (folder / "table.csv.zst").read_bytes()
    assert zstandard.ZstdDecompressor().decompress(packed) == content
    assert (folder / "noise.bin").exists()
    entry = next(entry for entry in record.files if entry.path == "table.csv")
    assert (entry.encoding, entry.stored, entry.size) == ("zstd", len(packed), len(content))
    assert restore_newest(tmp_path / "bucket", tmp_path / "two") == record
    assert tree(tmp_path / "two") == tree(machine.root)
    assert not list((tmp_path / "one/packing").glob("*"))


def test_record_with_compressed_files_has_a_format_that_older_versions_refuse(
    tmp_path: Path,
) -> None:
    machine = machine_at(tmp_path)
    machine.write("run/gen-000005/table.csv", text(3000))
    machine.write("run/gen-000005/state.json", "{}")
    (record,) = machine.commit_all()
    assert b'"format": 2' in record.to_json()
    assert parse_record(record.to_json(), 1, "eigen2") == record
    plain = replace(record, files=tuple(replace(f, encoding="", stored=0) for f in record.files))
    assert b'"format": 1' in plain.to_json()
    for wrong in (
        record.to_json().replace(b'"format": 2', b'"format": 1'),
        record.to_json().replace(b'"zstd"', b'"lzma"'),
        plain.to_json().replace(b'"format": 1', b'"format": 2'),
    ):
        with pytest.raises(Corrupt):
            parse_record(wrong, 1, "eigen2")


def test_renamed_and_unchanged_files_are_not_sent_again(tmp_path: Path) -> None:
    store = CountingStore(DirectoryStore(tmp_path / "bucket"))
    machine = Machine(tmp_path / "one", tmp_path / "bucket", store=store).start()
    machine.transfer._packer = Packer(tmp_path / "packing")
    elite, same = text(50_000), text(60_000)
    for number, name in ((5, "agent-07"), (10, "agent-00")):
        before = store.sent_bytes
        machine.write(f"run/gen-{number:06}/agents/{name}.csv", elite)
        machine.write(f"run/gen-{number:06}/same.csv", same)
        machine.write(f"run/gen-{number:06}/state.json", f'{{"generation": {number}}}')
        (record,) = machine.commit_all()
    assert store.sent_bytes - before == len('{"generation": 10}')
    assert {e.encoding for e in record.files} == {"zstd", ""}
    assert restore_newest(tmp_path / "bucket", tmp_path / "two") == record
    assert tree(tmp_path / "two/run/gen-000010") == tree(machine.root / "run/gen-000010")


def test_plain_names_follow_a_file_that_gains_and_then_does_not(tmp_path: Path) -> None:
    machine, plain = machine_at(tmp_path), tmp_path / "bucket/eigen2/checkpoints/run/model"
    for content in (text(10_000), os.urandom(10_000), text(20_000)):
        machine.write("run/model/a.bin", content)
        machine.write("run/model/state.json", f'{{"x": "{content[:5].hex()}"}}')
        machine.commit_all()
        back = restorer(tmp_path / "bucket")
        commits = back.commits()
        for commit in commits:
            assert isinstance(commit, CommitRecord)
            back.verify(commit)
        names = {path.name for path in plain.iterdir()}
        assert len(names & {"a.bin", "a.bin.zst"}) == 1
        assert ("a.bin.zst" in names) == content.isalnum()
    assert len(commits) == 3


def test_file_whose_compressed_name_is_taken_stays_as_it_is(tmp_path: Path) -> None:
    machine = machine_at(tmp_path)
    machine.write("run/gen-000005/a.csv", text(10_000))
    machine.write("run/gen-000005/a.csv.zst", os.urandom(1000))
    machine.write("run/gen-000005/state.json", "{}")
    (record,) = machine.commit_all()
    assert {entry.key for entry in record.files} >= {
        LAYOUT.plain("run/gen-000005/a.csv"),
        LAYOUT.plain("run/gen-000005/a.csv.zst"),
    }
    restore_newest(tmp_path / "bucket", tmp_path / "two")
    assert tree(tmp_path / "two") == tree(machine.root)


def test_without_room_a_large_file_goes_as_it_is(tmp_path: Path) -> None:
    machine = machine_at(tmp_path)
    (tmp_path / "one/packing").write_text("a file is in the way")
    machine.write("run/gen-000005/table.csv", text(20 * MIB))
    machine.write("run/gen-000005/state.json", "{}")
    (record,) = machine.commit_all()
    assert {entry.encoding for entry in record.files} == {""}
