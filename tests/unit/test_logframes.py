"""Where the last whole record ends: for each way to cut a file that its own writer has written."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from syncd.logframes import Broken, Kind, kind_of, last_edge


def edge(name: str, data: bytes, known: int = 0) -> int:
    def read(start: int, count: int) -> bytes:
        return data[start : start + count]

    return last_edge(kind_of(name, data[:4096]), read, known, len(data))


def tensorboard(folder: Path) -> bytes:
    """An event file as torch's SummaryWriter writes it."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(folder))
    for step in range(25):
        writer.add_scalar("loss", 1 / (step + 1), step)
        writer.add_text("words", "w" * (step * 37 % 500), step)
    writer.close()
    (path,) = folder.glob("events.out.tfevents.*")
    return path.read_bytes()


def tfrecord_edges(data: bytes) -> list[int]:
    """By TensorFlow's own framing, as TensorBoard's reader walks it."""
    edges, at = [0], 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        at += 8 + 4 + length + 4
        edges.append(at)
    return edges


def wandb_log(records: list[bytes]) -> tuple[bytes, list[int]]:
    """A ``.wandb`` as wandb's DataStore writes it, and where its records end."""
    out, edges = io.BytesIO(), [7]
    out.write(struct.pack("<4sHB", b":W&B", 0xBEE1, 0))
    for record in records:
        rest, first = record, True
        while first or rest:
            left = 32768 - out.tell() % 32768
            if left < 7:
                out.write(b"\0" * left)
                left = 32768
            piece, rest = rest[: left - 7], rest[left - 7 :]
            kind = {(1, 1): 1, (1, 0): 2, (0, 0): 3, (0, 1): 4}[first, not rest]
            check = zlib.crc32(piece, zlib.crc32(bytes([kind])))
            out.write(struct.pack("<IHB", check, len(piece), kind) + piece)
            first = False
        edges.append(out.tell())
    return out.getvalue(), edges


def cuts(data: bytes, edges: list[int]) -> Iterator[int]:
    """Places to cut at: beside every edge, and anywhere."""
    draw = random.Random(1)
    beside = [place + by for place in edges for by in (-1, 0, 7, 12)]
    yield from (at for at in beside if 0 <= at <= len(data))
    yield from (draw.randrange(len(data)) for _ in range(100))


def test_tensorboard_is_cut_after_its_last_whole_event(tmp_path: Path) -> None:
    data = tensorboard(tmp_path)
    edges = tfrecord_edges(data)
    assert edges[-1] == len(data)
    name = "events.out.tfevents.1"
    for cut in cuts(data, edges):
        best = max(e for e in edges if e <= cut)
        assert edge(name, data[:cut], draw_known(edges, cut)) == best


def draw_known(edges: list[int], cut: int) -> int:
    return random.Random(cut).choice([e for e in edges if e <= cut])


def test_wandb_is_cut_after_its_last_whole_record() -> None:
    draw = random.Random(7)
    sizes = [draw.choice((0, 1, 300, 32754, 32755, 40_000, 100_000)) for _ in range(40)]
    sizes[:3] = [32768 - 7 - 7 - 3, 5, 5]  # leaves three bytes of the block: too few for a head
    data, edges = wandb_log([draw.randbytes(size) for size in sizes])
    for cut in cuts(data, edges):
        best = max((e for e in edges if e <= cut), default=0)
        got = edge("run-1.wandb", data[:cut])
        # zeros at the end of a block belong to nothing
        assert got == best, (cut, got, best)


def test_lines_are_cut_after_the_last_end_of_line() -> None:
    lines = [json.dumps({"n": n, "text": "é" * n}).encode() + b"\n" for n in range(50)]
    data = b"".join(lines)
    for cut in range(0, len(data), 7):
        got = edge("m.jsonl", data[:cut])
        assert got == data[:cut].rfind(b"\n") + 1
    assert edge("t.log", b"10%\r20%\r3") == 8
    long = b"a\n" + b"x" * 300_000
    assert edge("t.log", long) == 2
    assert edge("t.log", long, 2) == 2


@pytest.mark.parametrize("at", [3, 9, 20, -2])
def test_a_damaged_event_is_no_edge(tmp_path: Path, at: int) -> None:
    data = bytearray(tensorboard(tmp_path))
    data[at] ^= 1
    with pytest.raises(Broken):
        edge("events.out.tfevents.1", bytes(data))


def test_a_damaged_wandb_record_is_no_edge() -> None:
    data, edges = wandb_log([b"a" * 100, b"b" * 100])
    torn = bytearray(data)
    torn[edges[1] + 20] ^= 1
    with pytest.raises(Broken) as broken:
        edge("r.wandb", bytes(torn))
    assert broken.value.edge == edges[1]


def test_kinds_are_told_by_content() -> None:
    assert kind_of("a.db", b"SQLite format 3\0") is Kind.SQLITE
    assert kind_of("x", b":W&B\xe1\xbe\0") is Kind.WANDB
    assert kind_of("train.log", b"hello\n") is Kind.LINES
    assert kind_of("m.csv", b"a,b\n") is Kind.LINES
    assert kind_of("state.json", b"{\n}") is Kind.BYTES
    assert kind_of("p.png", b"\x89PNG\r\n\x1a\n\0") is Kind.BYTES
    assert kind_of("weights", os.urandom(4096)) is Kind.BYTES
    assert kind_of("events.out.tfevents.7", b"") is Kind.TFRECORD
