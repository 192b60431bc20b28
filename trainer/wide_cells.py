"""The cells of the wide form as numbers, fast: all at once, where the careful reader goes by cells.

Arrow reads numbers as quickly as a disk gives them, but only where each has a column of its own.
So the brackets go, by replacements in the bytes as they lie in memory. What is not exactly as it
should be is refused, and left to the careful reader: no cell may lend another one a number.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
from numpy.typing import NDArray

from trainer.arrow_reader import MISSING, csv_header

Cells = NDArray[np.float64]
"""[days, series, width], NaN where there is nothing; in memory the days lie together."""

CHUNK = 24 << 20
"""Bytes of the file that are read at a time: fewer, and Arrow is busy with columns, not rows."""

COLUMNS_AT_ONCE = 32
THREADS = min(4, (os.cpu_count() or 1) + 1)  # one replaces brackets while others are in Arrow
MARK = b"#"
NOTHING = [*MISSING, "None", " None"]


def of_csv(path: Path, width: int) -> tuple[list[str | None], Cells] | None:
    """Dates and cells of a wide CSV file, or None where the careful reader must look.

    Before and behind the numbers of each cell is a column with a mark: as numbers are not marks,
    and marks no numbers, every cell has as many numbers as it should have.
    """
    try:
        series = len(csv_header(path)) - 1
        data = path.read_bytes().rstrip()
    except (csv.Error, OSError, ValueError):
        return None
    begin = data.find(b"\n") + 1
    header = data[:begin].removesuffix(b"\n").removesuffix(b"\r")
    count = (data.count(b"\n") + 1) * series
    if not begin or b"\r" in header or header.count(b'"') % 2 or count > len(data):
        return None  # the header ends elsewhere, or the cells are not even parted by commas
    # a blank cell grows, so that fewer bytes of a file with many are read at a time
    pieces = list(_pieces(data, begin, min(CHUNK, CHUNK * len(data) // (60 * count) + 1)))
    rows = [data.count(b"\n", *piece) for piece in pieces]
    rows[-1] += 1  # its line end was stripped
    step = width + 2
    names = ["date"] + [f"{i}.{j}" for i in range(series) for j in range(step)]
    kinds = [pa.string()] + series * [pa.bool_(), *width * [pa.float64()], pa.bool_()]
    options = arrow_csv.ConvertOptions(
        column_types=dict(zip(names, kinds, strict=True)), null_values=NOTHING,
        strings_can_be_null=False, true_values=[MARK.decode()], false_values=[],
    )  # fmt: skip
    cells = np.empty((series, width, sum(rows)))

    def one(piece: tuple[int, int], until: int, count: int) -> list[str | None]:
        text = _flat(data[slice(*piece)], width)
        read = arrow_csv.read_csv(
            pa.BufferReader(text),
            arrow_csv.ReadOptions(column_names=names, block_size=len(text) + 1, use_threads=False),
            arrow_csv.ParseOptions(quote_char=False),
            options,
        )
        columns = read.columns
        marks = columns[1::step] + columns[step::step]
        if len(read) != count or any(mark.null_count for mark in marks):
            raise ValueError("not as it should be")
        for i in range(series):
            for j in range(width):
                cells[i, j, until - count : until] = columns[i * step + j + 2].to_numpy()
        return [_unquoted(date) for date in columns[0].to_pylist()]

    try:
        with ThreadPoolExecutor(THREADS) as pool:
            dates = [
                date for some in pool.map(one, pieces, accumulate(rows), rows) for date in some
            ]
    except (pa.ArrowException, ValueError, OverflowError):
        return None
    return dates, cells.transpose(2, 0, 1)


def _unquoted(date: str) -> str:
    return date[1:-1] if date[:1] == date[-1:] == '"' else date


def _pieces(data: bytes, at: int, size: int) -> Iterator[tuple[int, int]]:
    """Where whole lines begin and end, from ``at`` on."""
    while at < len(data):
        end = data.find(b"\n", at + size) + 1 or len(data)
        yield at, end
        at = end


def _flat(text: bytes, width: int) -> bytes:
    """Lines whose cells are numbers between marks, where they were lists in quotes or blank."""
    if MARK in text:
        raise ValueError("a mark of its own")
    text = text.replace(b"\r\n", b"\n")
    if b',""' in text:
        text = text.replace(b',"",', b",,").replace(b',"",', b",,").replace(b',""\n', b",\n")
    text = text.replace(b'"[', MARK + b",").replace(b']"', b"," + MARK)
    blank = b"," + MARK + width * b",nan" + b"," + MARK
    while b",," in text:
        text = text.replace(b",,", blank + b",")
    text = text.replace(b",\n", blank + b"\n")
    text = text.removesuffix(b'""') if text.endswith(b',""') else text
    return text[:-1] + blank if text.endswith(b",") else text


def of_columns(columns: list[Any], width: int) -> Cells | None:
    """The same of columns of texts; None where a cell is anything else.

    Their texts lie one behind the other in memory: "][" is where one ends, and what is left is a
    CSV file of its own.
    """
    cells = np.full((len(columns), width, len(columns[0])), np.nan)

    def some(begin: int) -> bool:
        taken = columns[begin : begin + COLUMNS_AT_ONCE]
        filled = [pc.greater(pc.binary_length(pc.fill_null(c, "")), 0) for c in taken]
        bodies = [_lists(c.filter(f)) for c, f in zip(taken, filled, strict=True)]
        where = np.stack([f.to_numpy() for f in filled])  # [columns, days], as the texts lie
        read = None if None in bodies else _numbers(b"".join(filter(None, bodies)), width)
        if read is None or len(read[0]) != np.count_nonzero(where):
            return False
        for number, found in enumerate(read):
            cells[begin : begin + len(taken), number][where] = found
        return True

    with ThreadPoolExecutor(THREADS) as pool:
        done = all(pool.map(some, range(0, len(columns), COLUMNS_AT_ONCE)))
    return cells.transpose(2, 0, 1) if done else None


def _lists(column: Any) -> bytes | None:
    """The texts of a column as they lie in memory; None where one has not both its brackets."""
    texts = column.combine_chunks()
    if not len(texts):
        return b""
    buffers = texts.buffers()
    offsets = np.frombuffer(buffers[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    letters = np.frombuffer(buffers[2], np.uint8)
    if (letters[offsets[:-1]] != ord("[")).any() or (letters[offsets[1:] - 1] != ord("]")).any():
        return None
    return letters[offsets[0] : offsets[-1]].tobytes()


def _numbers(body: bytes, width: int) -> list[NDArray[np.float64]] | None:
    """Of b"[1,2][3,4]" the first numbers, the second ones, ...; None where it is anything else."""
    if not body:
        return width * [np.empty(0)]
    if b"\n" in body or b"\r" in body:
        return None
    names = [f"c{i}" for i in range(width)]
    options = arrow_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.float64()), null_values=NOTHING
    )
    try:
        read = arrow_csv.read_csv(
            pa.BufferReader(body[1:-1].replace(b"][", b"\n")),
            arrow_csv.ReadOptions(column_names=names),
            arrow_csv.ParseOptions(quote_char=False, ignore_empty_lines=False),
            options,
        )
    except pa.ArrowException:
        return None
    return [column.to_numpy() for column in read.columns]
