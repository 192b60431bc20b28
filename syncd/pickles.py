"""Is a pickle whole? Walked opcode by opcode, never loaded: a pickle can run any code.

Large strings and the frames of newer protocols are stepped over, so a file of any size takes
little memory and, as a rule, little time.
"""

from __future__ import annotations

import itertools
import os
import pickletools
import struct
from typing import BinaryIO

_STOP, _PROTO, _FRAME = b".", b"\x80", b"\x95"

_OPCODE_LIMIT = 3_000_000
"""Opcodes that are walked, a few seconds; of a longer pickle only the end is looked at."""

_LINE_LIMIT = 1024 * 1024

_LENGTHS = {
    pickletools.TAKEN_FROM_ARGUMENT1: "<B",
    pickletools.TAKEN_FROM_ARGUMENT4: "<i",
    pickletools.TAKEN_FROM_ARGUMENT4U: "<I",
    pickletools.TAKEN_FROM_ARGUMENT8U: "<Q",
}
"""How an argument says its own length, by what pickletools calls it."""

_ARGUMENTS = {
    opcode.code.encode("latin-1"): opcode.arg.n if opcode.arg else 0
    for opcode in pickletools.opcodes
}
_TWO_LINES = (b"c", b"i")

TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How a file begins that torch.save wrote before it wrote zip archives."""

_ELEMENT = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1,
    "Byte": 1, "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8,
}  # fmt: skip
"""Bytes of one element of torch's storages, by the beginning of the storage's name."""

_OBJECT_LIMIT = 16 * 1024 * 1024
"""Bytes of the pickle that names the tensors of an old torch file; more is not looked into."""

CUT = "cut off: the pickle does not end"


class _Cut(Exception):
    """The file ends before what was begun does."""


class _Unjudged(Exception):
    """Nothing can be said of this one."""


def check_pickle(file: BinaryIO, size: int) -> str | None:
    """What is wrong with a pickle, or with several one after another, or None."""
    file.seek(0)
    beginning = file.read(4096)
    try:
        if beginning.startswith(TORCH_MAGIC):
            _old_torch(file, size)
            return None
        if b"joblib" not in beginning:  # there arrays lie raw between the opcodes
            at = 0
            while at < size:
                at = _end_of(file, at, size)
            return None
    except _Cut:
        return CUT
    except _Unjudged:
        if beginning.startswith(TORCH_MAGIC):
            return None
    file.seek(-1, os.SEEK_END)
    return None if file.read(1) == _STOP else CUT


def _end_of(file: BinaryIO, at: int, size: int) -> int:
    """Where the pickle that begins at ``at`` ends, or one that follows it."""
    file.seek(at)
    for _ in range(_OPCODE_LIMIT):
        code = file.read(1)
        if not code:
            raise _Cut
        if code == _STOP:
            return file.tell()
        if code == _FRAME:
            end = _skip(file, "<Q", size)
            if end == size:  # STOP is in the last frame
                file.seek(-1, os.SEEK_CUR)
                if file.read(1) != _STOP:
                    raise _Cut
                return end
            continue
        length = _ARGUMENTS.get(code)
        if length is None:
            raise _Unjudged
        if length == pickletools.UP_TO_NEWLINE:
            for _line in range(2 if code in _TWO_LINES else 1):
                if not file.readline(_LINE_LIMIT).endswith(b"\n"):
                    raise _Cut
        elif length in _LENGTHS:
            _skip(file, _LENGTHS[length], size)
        elif len(file.read(length)) < length:
            raise _Cut
    raise _Unjudged


def _skip(file: BinaryIO, layout: str, size: int) -> int:
    """Step over something that says its length first; where it ends."""
    data = file.read(struct.calcsize(layout))
    if len(data) < struct.calcsize(layout):
        raise _Cut
    end = file.tell() + max(0, int(struct.unpack(layout, data)[0]))
    if end > size:
        raise _Cut
    file.seek(end)
    return end


def _old_torch(file: BinaryIO, size: int) -> None:
    """Five pickles, then for each storage its number of elements and the elements."""
    ends = [0]
    for _ in range(5):
        ends.append(_end_of(file, ends[-1], size))
    if ends[5] - ends[3] > _OBJECT_LIMIT:
        raise _Unjudged
    widths = _widths(_slice(file, ends[3], ends[4]))
    at = ends[5]
    for key in _strings(_slice(file, ends[4], ends[5])):
        if key not in widths:
            raise _Unjudged
        file.seek(at)
        data = file.read(8)
        if len(data) < 8:
            raise _Cut
        at += 8 + struct.unpack("<q", data)[0] * widths[key]
    if at > size:
        raise _Cut


def _slice(file: BinaryIO, begin: int, end: int) -> bytes:
    file.seek(begin)
    return file.read(end - begin)


def _strings(data: bytes) -> list[str]:
    return [str(value) for opcode, value, _ in pickletools.genops(data) if "UNICODE" in opcode.name]


def _widths(data: bytes) -> dict[str, int]:
    """Bytes of an element of each storage, by its key.

    A storage is a persistent id: ('storage', its class, its key, its place, its length).
    """
    widths: dict[str, int] = {}
    memo: dict[int, object] = {}
    counter = itertools.count()
    values: list[object] = []
    for opcode, value, _ in pickletools.genops(data):
        name = opcode.name
        if name == "MEMOIZE":
            memo[next(counter)] = values[-1] if values else None
        elif "PUT" in name:
            memo[int(str(value))] = values[-1] if values else None
        elif "GET" in name:
            values.append(memo.get(int(str(value))))
        elif name == "BINPERSID":
            _note_width(values[-8:], widths)
        else:
            values.append(value)
        del values[:-16]
    return widths


def _note_width(values: list[object], widths: dict[str, int]) -> None:
    for kind, key in itertools.pairwise(values):
        text = str(kind)
        if text.startswith("torch ") and text.endswith("Storage"):
            element = text.removeprefix("torch ").removesuffix("Storage")
            if element in _ELEMENT:
                widths[str(key)] = _ELEMENT[element]
