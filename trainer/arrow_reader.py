"""Reading market data fast: CSV and Parquet through Arrow.

What Arrow reads without a fault goes through the same checks as everything else. A CSV file in
which anything is odd is left to the careful readers, which know lines and columns.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainer import csv_reader
from trainer.errors import BadData
from trainer.table import COLUMNS, NUMBERS, Rows, Table, assemble, check_prices

MISSING = ["", "nan", "NaN", "NAN"]
TEXT = pa.dictionary(pa.int32(), pa.string())


def long_csv(path: Path) -> Table | None:
    """The table of a long-form CSV file, or None where the careful reader must look."""
    types = {"date": TEXT, "ticker": TEXT, **dict.fromkeys(NUMBERS, pa.float64())}
    try:
        header = csv_header(path)
        if sorted(set(header) & set(COLUMNS)) != sorted(COLUMNS):
            return None
        read = arrow_csv.read_csv(
            path,
            convert_options=arrow_csv.ConvertOptions(
                column_types=types, include_columns=list(COLUMNS), null_values=MISSING,
                strings_can_be_null=False,
            ),
        )  # fmt: skip
        return _long(path, read)
    except (pa.ArrowException, BadData, csv.Error, OSError, ValueError):
        return None


def long_parquet(path: Path, header: list[str]) -> Table:
    """The table of a long-form Parquet file; BadData names row (the first is 1) and column."""
    order = csv_reader.column_order(path, header)
    read = _opened(path, [header[i] for i in order]).rename_columns(list(COLUMNS))
    try:
        columns = [_dates(read["date"]), read["ticker"].cast(pa.string())]
        columns += [read[name].cast(pa.float64()) for name in NUMBERS]
    except pa.ArrowException as error:
        raise BadData(path, f"a column is of the wrong type: {error}") from None
    for name, column in zip(COLUMNS[:2], columns[:2], strict=True):
        if column.null_count:
            row = int(np.argmin(column.is_valid().to_numpy())) + 1
            raise BadData(path, "the cell is blank", line=row, column=name, unit="row")
    encoded = [column.dictionary_encode() for column in columns[:2]]
    try:
        return _long(path, pa.table([*encoded, *columns[2:]], names=list(COLUMNS)), first=1)
    except BadData as fault:
        raise BadData(path, fault.reason.replace("stands in line", "stands in row"),
                      line=fault.line, column=fault.column, unit="row") from None  # fmt: skip


def csv_header(path: Path) -> list[str]:
    """The cells of a CSV file's first line; raises what open and csv raise."""
    with path.open(newline="", encoding="utf-8-sig") as handle:
        return next(csv.reader(handle), [])


def parquet_header(path: Path) -> list[str]:
    """The names of a Parquet file's columns; BadData when it is none."""
    try:
        return [str(name) for name in pq.read_schema(path).names]
    except (pa.ArrowException, OSError) as error:
        raise BadData(path, f"not a Parquet file: {error}") from None


def wide_parquet(path: Path, header: list[str]) -> tuple[list[str | None], list[Any]]:
    """Dates and the columns of cells of a wide Parquet file, None where there is nothing."""
    read = _opened(path, header)
    columns = []
    for index, name in enumerate(header[1:], start=1):
        column = read.column(index)
        if column.null_count < len(column) and not _is_text(column.type):
            reason = f"cells must be texts such as [1,2,...], and are {column.type}"
            raise BadData(path, reason, line=1, column=name, unit="row")
        columns.append(column.cast(pa.string()))
    try:
        return _dates(read.column(0)).to_pylist(), columns
    except pa.ArrowException as error:
        raise BadData(path, f"the dates are of the wrong type: {error}") from None


def _long(path: Path, read: Any, first: int = 2) -> Table:
    """From columns of dates, tickers (both dictionaries) and numbers to a table."""
    if not len(read):
        raise BadData(path, "the file has a header and no rows")
    read = read.unify_dictionaries()
    rows, lines = Rows(path), np.arange(first, first + len(read))
    for name, codes, into in (("date", rows.day_codes, rows.days),
                              ("ticker", rows.ticker_codes, rows.tickers)):  # fmt: skip
        column = read[name].combine_chunks()
        for code, cell in enumerate(column.dictionary.to_pylist()):
            codes[cell] = code
        indices = column.indices.to_numpy().astype(np.int64)
        for cell, code in codes.items():
            _check(path, cell, name, lines, indices, code)
        into.append(indices)
    numbers = np.stack([read[name].to_numpy() for name in NUMBERS], axis=-1)
    if np.isinf(numbers).any():
        at, which = np.argwhere(np.isinf(numbers))[0]
        raise BadData(path, "not a finite number", line=int(lines[at]), column=NUMBERS[which])
    check_prices(path, lines, numbers)
    rows.lines.append(lines)
    rows.numbers.append(numbers)
    return assemble(rows)


def _check(
    path: Path, cell: str, name: str, lines: NDArray[np.int64], indices: NDArray[np.int64],
    code: int,
) -> None:  # fmt: skip
    try:
        csv_reader.check_filled(path, 0, name, cell)
        if name == "date":
            csv_reader.check_date(path, 0, cell)
    except BadData as fault:
        where = np.flatnonzero(indices == code)
        if where.size:
            line = int(lines[where[0]])
            raise BadData(path, fault.reason, line=line, column=name) from None


def _opened(path: Path, names: list[str]) -> Any:
    try:
        read = pq.read_table(path, columns=names)
    except (pa.ArrowException, OSError) as error:
        raise BadData(path, f"not a Parquet file: {error}") from None
    if not len(read):
        raise BadData(path, "the file has a header and no rows")
    return read


def _is_text(kind: Any) -> bool:
    """Texts, also as other programs than Arrow's write them."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _dates(column: Any) -> Any:
    """Dates as texts, whatever type they have; a midnight is its day."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return pc.strftime(column, format="%Y-%m-%d")
    return column.cast(pa.string())
