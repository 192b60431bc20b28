"""The commit record: frozen by a golden file, and trusted in nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from syncd.errors import Corrupt
from syncd.pathrules import member
from syncd.records import CommitRecord, Layout, parse_record

GOLDEN = Path(__file__).parent / "golden" / "commit-1.json"


def test_golden_record_is_read_and_written_byte_for_byte() -> None:
    data = GOLDEN.read_bytes()
    record = parse_record(data, 7, "eigen2")
    assert record.checkpoint == "run/gen-000015"
    assert record.files[1].path == "état.json"
    assert record.links[0].target == "agent-00.safetensors"
    assert record.size == 5
    assert record.to_json() == data


def test_layout_is_frozen() -> None:
    layout = Layout("eigen2")
    assert layout.plain("run/gen-1/a/b") == "eigen2/checkpoints/run/gen-1/a/b"
    assert layout.commit(12) == "eigen2/.syncd/commits/00000000000000000012.json"
    assert layout.seq_of("eigen2/.syncd/commits/00000000000000000012.json") == 12
    assert layout.seq_of("eigen2/.syncd/commits/12.json") is None
    assert layout.version(3, "c/p") == "eigen2/.syncd/versions/00000000000000000003/c/p"
    assert layout.version(3, "c/p", "w.1").endswith("/00000000000000000003-w.1/c/p")
    assert layout.writer_of(layout.version(7, "a/b", "w1.2")) == "w1"
    assert layout.writer_of(layout.plain("a/b")) == ""
    assert layout.pruned(3) == "eigen2/.syncd/pruning/00000000000000000003.json"


def test_path_of_a_member_is_joined_in_one_way() -> None:
    assert member("run/gen-1", "a/b") == "run/gen-1/a/b"
    assert member("run/last.pt", "") == "run/last.pt"
    assert member("run/m_1_steps.zip", "m_1_steps.zip", beside=True) == "run/m_1_steps.zip"
    assert member("m_1_steps.zip", "m_replay.pkl", beside=True) == "m_replay.pkl"


def test_golden_record_of_files_beside_each_other() -> None:
    data = (GOLDEN.parent / "commit-1-beside.json").read_bytes()
    record = parse_record(data, 8, "eigen2")
    assert [record.below(entry.path) for entry in record.files] == [
        "run/model_1000_steps.zip",
        "run/model_replay_buffer_1000_steps.pkl",
    ]
    assert record.to_json() == data


def beside(change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads((GOLDEN.parent / "commit-1-beside.json").read_bytes())
    change(document)
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["files"][1].update(path="../model_replay_buffer_1000_steps.pkl"),
        lambda d: d["files"][1].update(path="deeper/model_replay_buffer_1000_steps.pkl"),
        lambda d: d["files"][1].update(path=""),
        lambda d: d.update(files=d["files"][1:]),
        lambda d: d.update(links=[{"path": "best", "target": "model_1000_steps.zip"}]),
        lambda d: d.update(beside="yes"),
    ],
)
def test_tampered_record_of_files_beside_each_other_is_refused(
    change: Callable[[dict[str, Any]], None],
) -> None:
    with pytest.raises(Corrupt):
        parse_record(beside(change), 8, "eigen2")


def tampered(change: Callable[[dict[str, Any]], None]) -> bytes:
    document = json.loads(GOLDEN.read_bytes())
    change(document)
    return json.dumps(document).encode()


TAMPERINGS: dict[str, Callable[[dict[str, Any]], None]] = {
    "path climbs out": lambda d: d["files"][0].update(path="../../etc/passwd"),
    "absolute path": lambda d: d["files"][0].update(path="/etc/passwd"),
    "empty part": lambda d: d["files"][0].update(path="a//b"),
    "checkpoint climbs out": lambda d: d.update(checkpoint="../x"),
    "absolute checkpoint": lambda d: d.update(checkpoint="/x"),
    "key of another prefix": lambda d: d["files"][0].update(key="other/x"),
    "size is text": lambda d: d["files"][0].update(size="5"),
    "negative size": lambda d: d["files"][0].update(size=-1),
    "no digest": lambda d: d["files"][0].update(sha256="abc"),
    "same path twice": lambda d: d["files"].append(d["files"][0]),
    "link climbs out": lambda d: d["links"][0].update(target="../../../etc"),
    "absolute link": lambda d: d["links"][0].update(target="/etc"),
    "path leads through a link": lambda d: d["links"][0].update(path="agents"),
    "another number": lambda d: d.update(seq=8),
    "after itself": lambda d: d.update(after=7),
    "after is text": lambda d: d.update(after="5"),
    "later format": lambda d: d.update(format=2),
    "no files": lambda d: d.update(files=[], links=[]),
    "files without a checkpoint": lambda d: d.update(checkpoint=""),
    "missing field": lambda d: d.pop("writer"),
    "files is no list": lambda d: d.update(files=5),
}


@pytest.mark.parametrize("name", TAMPERINGS)
def test_tampered_record_is_refused(name: str) -> None:
    with pytest.raises(Corrupt):
        parse_record(tampered(TAMPERINGS[name]), 7, "eigen2")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'"text"'])
def test_rubbish_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_record(data, 7, "eigen2")


def test_claim_and_lone_link_are_records() -> None:
    claim = CommitRecord(3, "", "w", "2026-11-23T20:00:00Z", "claim")
    assert parse_record(claim.to_json(), 3, "eigen2").is_claim
    link = json.dumps(
        {
            **json.loads(claim.to_json()),
            "checkpoint": "run/last",
            "links": [{"path": "", "target": "gen-000015"}],
        }
    ).encode()
    assert parse_record(link, 3, "eigen2").links[0].target == "gen-000015"
