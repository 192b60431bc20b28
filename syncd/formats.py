"""Cheap checks that a file is whole, in bounded memory and without the library that wrote it.

Each check answers None for "nothing wrong with it" or a few words on what is. A format that is
not known is not judged: quiet time decides there.
"""

from __future__ import annotations

import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_JSON_LIMIT = 16 * 1024 * 1024
_HEADER_LIMIT = 100 * 1024 * 1024
"""The safetensors library's own limit on its header."""

_NEVER_EMPTY = (
    ".pt", ".pth", ".ckpt", ".safetensors", ".zip", ".pkl", ".gz", ".npz", ".npy", ".json"
)  # fmt: skip

_ZIP, _GZIP, _PICKLE = b"PK\x03\x04", b"\x1f\x8b", b"\x80"

_BEGINNINGS = {
    ".pt": (_ZIP, _PICKLE),
    ".pth": (_ZIP, _PICKLE),
    ".zip": (_ZIP, b"PK\x05\x06"),
    ".npz": (_ZIP, b"PK\x05\x06"),
    ".gz": (_GZIP,),
}
"""How files of these names begin, if they are what their name says."""


def check_zip(file: BinaryIO, size: int) -> str | None:
    """A zip archive, as torch.save writes: the central directory comes last and must fit."""
    try:
        with zipfile.ZipFile(file) as archive:
            end = max(
                (info.header_offset + info.compress_size for info in archive.infolist()), default=0
            )
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        return f"cut off: no readable zip directory at its end ({error})"
    return "a record lies beyond the end of the archive" if end > size else None


def check_safetensors(file: BinaryIO, size: int) -> str | None:
    """Exact length: 8 bytes, the header, and the furthest offset that the header names."""
    head = file.read(8)
    if len(head) < 8:
        return "shorter than its own header length"
    (length,) = struct.unpack("<Q", head)
    if length > min(size - 8, _HEADER_LIMIT):
        return "cut off inside its header"
    try:
        header = json.loads(file.read(length))
        ends = [v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return "its header cannot be read"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"{size} bytes where its header says {expected}"


def check_gzip(file: BinaryIO, size: int) -> str | None:
    """A gzip stream that ends with its own checksum; read through once in bounded memory."""
    del size
    stream = zlib.decompressobj(wbits=31)
    try:
        while chunk := file.read(1 << 20):
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
    """JSON that parses; of a very large one only that it closes what it opened."""
    if size > _JSON_LIMIT:
        file.seek(-64, 2)
        tail = file.read().rstrip()
        return None if tail.endswith((b"}", b"]")) else "cut off: the JSON does not end"
    try:
        json.loads(file.read())
    except ValueError as error:
        return f"not whole JSON ({error})"
    return None


def check_pickle(file: BinaryIO, size: int) -> str | None:
    """A pickle ends with its STOP opcode."""
    del size
    file.seek(-1, 2)
    return None if file.read(1) == b"." else "cut off: the pickle does not end"


_Check = Callable[[BinaryIO, int], "str | None"]

_BY_SUFFIX: dict[str, _Check] = {
    ".safetensors": check_safetensors,
    ".json": check_json,
    ".pkl": check_pickle,
    ".pickle": check_pickle,
}


def _check_for(path: Path, magic: bytes) -> _Check | None:
    if magic.startswith((_ZIP, b"PK\x05\x06")):
        return check_zip
    if magic.startswith(_GZIP):
        return check_gzip
    return _BY_SUFFIX.get(path.suffix.lower())


def proves_its_end(path: Path) -> bool:
    """Whether the format of a file says where it ends, so that a cut one cannot pass for whole."""
    try:
        with path.open("rb") as file:
            magic = file.read(8)
    except OSError:
        return False
    return _check_for(path, magic) in (check_zip, check_safetensors)


def check_file(path: Path) -> str | None:
    """What is wrong with one file, or None; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        if size == 0:
            return "empty" if path.suffix.lower() in _NEVER_EMPTY else None
        magic = file.read(8)
        beginnings = _BEGINNINGS.get(path.suffix.lower())
        if beginnings and any(magic) and not magic.startswith(beginnings):
            return "cut off, or not what its name says"
        if not any(magic) and path.suffix.lower() in _NEVER_EMPTY:
            return "begins with zeros: made to size, but not written yet"
        file.seek(0)
        check = _check_for(path, magic)
        try:
            return check(file, size) if check else None
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - files hold anything, on purpose too
            return f"not what its name says ({type(error).__name__})"
