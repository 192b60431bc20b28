"""More manners of writing, for the labelled corpus."""

from __future__ import annotations

import gzip
import json
import struct

from tests.faults.disks import Content, Disk
from tests.faults.writers import Units, Writer


def sharded(disk: Disk, content: Content) -> Units:
    """save_pretrained of a large model: shards, and an index that names them last."""
    folder = f"pretrained/step-{content.save}"
    shards = [f"model-{n:05}-of-00003.safetensors" for n in range(1, 4)]
    for shard in shards:
        disk.presized(f"{folder}/{shard}", content.safetensors(shard, 0.3))
    index = {"metadata": {}, "weight_map": {f"w{n}": shard for n, shard in enumerate(shards)}}
    disk.write(f"{folder}/model.safetensors.index.json", json.dumps(index).encode())
    return [[*(f"{folder}/{s}" for s in shards), f"{folder}/model.safetensors.index.json"]]


def gzipped(disk: Disk, content: Content) -> Units:
    """One compressed file, in place (a population of NEAT-Python, and others)."""
    path = "neat/population.pkl.gz"
    disk.write(path, *_halves(gzip.compress(content.body("population"), mtime=0)))
    return [[path]]


def tensorflow_records(disk: Disk, content: Content) -> Units:
    """A replay memory as TFRecord."""
    path = "replay/memory.tfrecord"
    disk.write(path, *_halves(b"".join(record(content.body(f"r{n}", 0.2)) for n in range(4))))
    return [[path]]


def keras(disk: Disk, content: Content) -> Units:
    """ModelCheckpoint's zip archives, one a save."""
    path = f"keras/weights.{content.save:02}.keras"
    disk.write(path, *content.torch("keras"))
    return [[path]]


def _halves(data: bytes) -> tuple[bytes, bytes]:
    return data[: len(data) // 2], data[len(data) // 2 :]


def record(data: bytes) -> bytes:
    """One TFRecord: length, masked CRC-32C of it, data, masked CRC-32C of that."""
    import google_crc32c

    def masked(of: bytes) -> bytes:
        crc = google_crc32c.value(of)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


MORE = {save.__name__: Writer(save.__name__, save) for save in (sharded, gzipped, keras)}
MORE["tensorflow_records"] = Writer("tensorflow_records", tensorflow_records)
