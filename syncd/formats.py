"""Cheap checks that a file is whole, in bounded memory and without the library that wrote it.

Each check answers None for "nothing wrong with it" or a few words on what is. A format that is
not known is not judged: quiet time decides there, and the checkpoint before it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import struct
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import BinaryIO

from syncd.archives import check_zip
from syncd.pickles import check_pickle

_PARSE_LIMIT = 2 * 1024 * 1024
"""Bytes of JSON that are parsed; of more, only what opens and closes is counted."""

_HEADER_LIMIT = 100 * 1024 * 1024
"""The safetensors library's own limit on its header."""

_CHUNK = 1024 * 1024
_PAGE = 4096

_NEVER_EMPTY = (
    ".pt", ".pth", ".ckpt", ".safetensors", ".zip", ".pkl", ".pickle", ".gz", ".npz", ".npy",
    ".json", ".bin", ".distcp", ".h5", ".hdf5", ".keras", ".msgpack", ".joblib", ".tfrecord",
)  # fmt: skip

_ZIP, _GZIP, _PICKLE = b"PK\x03\x04", b"\x1f\x8b", b"\x80"
_NO_ENTRIES = b"PK\x05\x06"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_NPY = b"\x93NUMPY"

_BEGINNINGS = {
    ".pt": (_ZIP, _PICKLE),
    ".pth": (_ZIP, _PICKLE),
    ".ckpt": (_ZIP, _PICKLE, _HDF5),
    ".zip": (_ZIP, _NO_ENTRIES),
    ".npz": (_ZIP, _NO_ENTRIES),
    ".keras": (_ZIP,),
    ".gz": (_GZIP,),
    ".npy": (_NPY,),
    ".h5": (_HDF5,),
    ".hdf5": (_HDF5,),
}
"""How files of these names begin, if they are what their name says."""


def check_safetensors(file: BinaryIO, size: int) -> str | None:
    """Exact length: 8 bytes, the header, and the furthest offset that the header names."""
    head = file.read(8)
    if len(head) < 8:
        return "shorter than its own header length"
    (length,) = struct.unpack("<Q", head)
    if length > min(size - 8, _HEADER_LIMIT):
        return "cut off inside its header"
    if length <= _PARSE_LIMIT:
        try:
            header = json.loads(file.read(length))
            ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
            end = max(ends, default=0)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            return "its header cannot be read"
    else:
        begins, end = file.read(1), _furthest(file, length - 1)
        if begins != b"{":
            return "its header cannot be read"
    expected = 8 + length + end
    if size != expected:
        return f"{size} bytes where its header says {expected}"
    return _hole_at_end(file, size)


def _furthest(file: BinaryIO, length: int) -> int:
    """The furthest offset that a large header names, found without parsing all of it at once."""
    pattern = re.compile(rb'(?<!\\)"data_offsets"\s*:\s*\[\s*\d{1,20}\s*,\s*(\d{1,20})\s*\]')
    end, rest = 0, b""
    while length > 0 and (chunk := file.read(min(length, _CHUNK))):
        length -= len(chunk)
        text = rest + chunk
        end = max([end, *(int(found[1]) for found in pattern.finditer(text))])
        rest = text[-256:]
    return end


def _hole_at_end(file: BinaryIO, size: int) -> str | None:
    """Made to its full size, and its end never written? Where the file system can tell."""
    try:
        os.lseek(file.fileno(), max(0, size - _PAGE), os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return "made to its size, but its end was never written"
    return None


def check_gzip(file: BinaryIO, size: int) -> str | None:
    """A gzip stream that ends with its own checksum; read through once in bounded memory."""
    del size
    stream = zlib.decompressobj(wbits=31)
    try:
        while chunk := file.read(_CHUNK):
            while chunk:
                stream.decompress(chunk, 1 << 22)
                chunk = stream.unconsumed_tail
                if stream.eof:
                    chunk = stream.unused_data
                    if chunk.strip(b"\0"):
                        stream = zlib.decompressobj(wbits=31)
                    else:
                        break
    except zlib.error as error:
        return f"not a whole gzip stream ({error})"
    return None if stream.eof else "cut off: the gzip stream does not end"


def check_json(file: BinaryIO, size: int) -> str | None:
    """JSON that parses; of a large one, that it closes exactly what it opened."""
    if size > _PARSE_LIMIT:
        return None if _closes(file) else "cut off: the JSON does not end"
    text = file.read()
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return None if _is_lines(text) else f"not whole JSON ({error})"
    return None


def _is_lines(text: bytes) -> bool:
    """Whether it is JSON line by line, which Detectron2 and MMEngine write under this name."""
    try:
        lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        return False
    return len(lines) > 1


def _closes(file: BinaryIO) -> bool:
    """Whether a JSON document has closed all that it opened, strings left aside."""
    depth, quoted, rest, tail = 0, False, b"", b""
    while chunk := file.read(_CHUNK):
        text = rest + chunk
        escapes = len(text) - len(text.rstrip(b"\\"))
        rest = text[-1:] if escapes % 2 else b""  # its other half is in the next chunk
        text = text[: len(text) - len(rest)].replace(b"\\\\", b"").replace(b'\\"', b"")
        parts = text.split(b'"')
        outside = b"".join(parts[quoted::2])
        quoted ^= len(parts) % 2 == 0
        depth += sum(map(outside.count, (b"[", b"{"))) - sum(map(outside.count, (b"]", b"}")))
        tail = text.rstrip()[-1:] or tail
    return depth == 0 and not quoted and tail in (b"}", b"]")


def check_jsonl(file: BinaryIO, size: int) -> str | None:
    """Lines of JSON: the last one is whole, even if no end of line follows it."""
    file.seek(max(0, size - _CHUNK))
    line = file.read().rstrip(b"\r\n").rpartition(b"\n")[2]
    if len(line) == _CHUNK:
        return None
    try:
        json.loads(line or b"null")
    except (ValueError, RecursionError):
        return "cut off in its last line"
    return None


_ITEM = re.compile(r"'descr':\s*'[<>|=]?([a-zA-Z])(\d{1,9})'")
_SHAPE = re.compile(r"'shape':\s*\(([\d,\s]*)\)")


def check_npy(file: BinaryIO, size: int) -> str | None:
    """A numpy array: its header says how many bytes follow, but for arrays of objects."""
    head = file.read(12)
    if len(head) < 12:
        return "cut off inside its header"
    wide = head[6] >= 2
    length = struct.unpack_from("<I" if wide else "<H", head, 8)[0]
    begin = 12 if wide else 10
    if begin + length > size:
        return "cut off inside its header"
    file.seek(begin)
    text = file.read(min(length, _CHUNK)).decode("latin-1")
    item, shape = _ITEM.search(text), _SHAPE.search(text)
    if not item or not shape:
        return None
    width = int(item[2]) * (4 if item[1] == "U" else 1)
    expected = begin + length + width * math.prod(int(n) for n in shape[1].split(",") if n.strip())
    if size < expected:
        return f"{size} bytes where its header says {expected}"
    return _hole_at_end(file, size)


def check_hdf5(file: BinaryIO, size: int) -> str | None:
    """HDF5, as Keras writes it: its superblock says where the file ends."""
    head = file.read(128)
    version = head[8] if len(head) > 8 else 255
    at, width_at = {0: (24, 13), 1: (28, 13), 2: (12, 9), 3: (12, 9)}.get(version, (0, 0))
    if not at or len(head) < at + 24:
        return "cut off inside its header" if size < 96 else None
    width = head[width_at]
    if width not in (2, 4, 8):
        return "its header cannot be read"
    if version == 3 and head[11] & 1:
        return "marked as open for writing"
    end = int.from_bytes(head[at + 2 * width : at + 3 * width], "little")
    return None if size == end else f"{size} bytes where its header says {end}"


def check_tfrecord(file: BinaryIO, size: int) -> str | None:
    """TFRecord: each record's length, with its own checksum, leads to the next one, to the end."""
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(12)
        if len(head) < 12:
            return "cut off between two records"
        length, check = struct.unpack("<QI", head)
        crc = crc32c(head[:8])
        if check != ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF:
            return "not whole: the length of a record fails its checksum"
        at += 12 + length + 4
    return _hole_at_end(file, size) if at == size else "cut off inside a record"


def _table() -> tuple[int, ...]:
    """CRC-32C of each byte."""
    crcs = list(range(256))
    for _ in range(8):
        crcs = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in crcs]
    return tuple(crcs)


_CRC32C = _table()


def crc32c(data: bytes) -> int:
    """CRC-32C, as TFRecord has it; a megabyte or two in a second: for small pieces."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC32C[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


_PICKLE = b"\x80"
"""No text in UTF-8 begins so."""

_Check = Callable[[BinaryIO, int], "str | None"]

_BY_MAGIC: tuple[tuple[bytes, _Check], ...] = (
    (_ZIP, check_zip),
    (_NO_ENTRIES, check_zip),
    (_GZIP, check_gzip),
    (_HDF5, check_hdf5),
    (_NPY, check_npy),
)

_BY_SUFFIX: dict[str, _Check] = {
    ".safetensors": check_safetensors,
    ".json": check_json,
    ".jsonl": check_jsonl,
    ".pkl": check_pickle,
    ".pickle": check_pickle,
    ".pt": check_pickle,
    ".pth": check_pickle,
    ".ckpt": check_pickle,
    ".tfrecord": check_tfrecord,
    ".tfrecords": check_tfrecord,
}


def _check_for(suffix: str, magic: bytes) -> _Check | None:
    if suffix == ".distcp" and magic.startswith(_ZIP):
        return partial(check_zip, joined=True)
    for beginning, check in _BY_MAGIC:
        if magic.startswith(beginning):
            return check
    if suffix == ".json" and magic.startswith(_PICKLE):  # Ray's searchers keep theirs so
        return check_pickle
    return _BY_SUFFIX.get(suffix)


def is_known(path: Path) -> bool:
    """Whether there is a check for the format of this file; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return _check_for(path.suffix.lower(), file.read(8)) is not None
    except OSError:
        return False


def proves_its_end(path: Path) -> bool:
    """Whether the format of a file says where it ends, so that a cut one cannot pass for whole."""
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError:
        return False
    return _check_for(path.suffix.lower(), magic) in (check_zip, check_safetensors)


def check_file(path: Path) -> str | None:
    """What is wrong with one file, or None; raises OSError if it cannot be read."""
    suffix = path.suffix.lower()
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        if size == 0:
            return "empty" if suffix in _NEVER_EMPTY else None
        magic = file.read(8)
        beginnings = _BEGINNINGS.get(suffix)
        if beginnings and any(magic) and not magic.startswith(beginnings):
            words = suffix == ".ckpt" and not _ZIP.startswith(magic) and _is_text(file)
            return None if words else "cut off, or not what its name says"
        if not any(magic) and suffix in _NEVER_EMPTY:
            return "begins with zeros: made to size, but not written yet"
        file.seek(0)
        check = _check_for(suffix, magic)
        if not check and any(known.startswith(magic) for known, _ in _BY_MAGIC):
            return "cut off inside its header"
        try:
            return check(file, size) if check else None
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - files hold anything, on purpose too
            return f"not what its name says ({type(error).__name__})"


def _is_text(file: BinaryIO) -> bool:
    """Whether it is a few numbers and words (SpeechBrain keeps its counters so)."""
    data = os.pread(file.fileno(), 1024, 0)
    return len(data) < 1024 and re.fullmatch(rb"[\w.:+\-#, \t\r\n]*", data) is not None
