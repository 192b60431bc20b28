"""Long and wide, CSV and Parquet: the same market, and the same care."""

from __future__ import annotations

import csv
import io
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import torch

from tests.unit.trainer.worlds import CPU, SMALL
from trainer import (
    arrow_reader,
    cache,
    csv_reader,
    market,
    reading,
    synthetic,
    wide_cells,
    wide_reader,
)
from trainer.errors import BadData, UsageFault
from trainer.table import Table

CELL = "[10,10.5,11,9,55,0.1,0.2,0.3,-0.4]"


def same(one: Table, other: Table) -> None:
    assert (one.dates, one.tickers) == (other.dates, other.tickers)
    np.testing.assert_array_equal(one.values, other.values)
    assert (one.given is None) == (other.given is None)
    if one.given is not None and other.given is not None:
        np.testing.assert_array_equal(one.given, other.given)


def wide(folder: Path, *rows: str, header: str = "date,A,B") -> Path:
    path = folder / "wide.csv"
    path.write_text("\n".join([header, *rows, ""]))
    return path


def parquet(folder: Path, **columns: Any) -> Path:
    path = folder / "file.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_the_quick_reader_and_the_careful_one_read_the_same(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=120, tickers=5, seed=3)
    quick = arrow_reader.long_csv(path)
    assert quick is not None
    same(quick, csv_reader.read_csv(path))
    pq.write_table(pa_csv.read_csv(path), tmp_path / "toy.parquet")
    same(reading.read(tmp_path / "toy.parquet"), quick)


def test_what_the_quick_reader_finds_odd_is_read_with_care(tmp_path: Path) -> None:
    path = tmp_path / "odd.csv"
    path.write_text(
        "\ufeffDate,Ticker,open,high,low,close,volume,note\n"
        '2024-01-03,"A", 10 ,11,9,10.5,,"a\nb"\n2024-01-02,A,,,,10,NaN,\n'
    )
    assert arrow_reader.long_csv(path) is None
    table = reading.read(path)
    assert table.dates == ["2024-01-02", "2024-01-03"]
    assert table.values[1, 0, :4].tolist() == [10, 11, 9, 10.5]


def test_the_wide_form_is_read_blank_cells_are_not_listed(tmp_path: Path) -> None:
    rows = [f'2024-01-03,"{CELL}",', '2024-01-02,,"[1, 2, 3, 0.5, nan, nan, nan, nan, nan]"']
    path = wide(tmp_path, *rows)
    table = reading.read(path)
    assert (table.dates, table.tickers) == (["2024-01-02", "2024-01-03"], ["A", "B"])
    assert table.given is not None
    assert table.values[1, 0, :4].tolist() == [10, 11, 9, 10.5]
    assert table.given[1, 0].tolist() == [55, 0.1, 0.2, 0.3, -0.4]
    assert np.isnan(table.values[1, 1]).all()
    assert np.isnan(table.given[0, 1]).all()
    texts = [line.split(",", 1) for line in rows]
    dates, cells = [t[0] for t in texts], [[CELL, None], [None, texts[1][1][2:-1]]]
    file = parquet(tmp_path, date=dates, A=[c[0] for c in cells], B=[c[1] for c in cells])
    same(reading.read(file), table)


def test_the_careful_wide_reader_reads_the_same(tmp_path: Path) -> None:
    draw = np.random.Generator(np.random.PCG64(5))
    rows = []
    for day in range(1, 29):
        cells = []
        for _ in range(2):
            opened, close = draw.uniform(9, 11, 2)
            numbers = [opened, close, 12.0, 8.0, *draw.standard_normal(5)]
            shown = "[" + ",".join(repr(float(x)) for x in numbers) + "]"
            cells.append(f'"{shown}"' if draw.random() < 0.8 else "")
        rows.append(f"2024-02-{day:02d},{','.join(cells)}")
    path = wide(tmp_path, *rows)
    dates, lines, cube = wide_reader._careful(path, ["date", "A", "B"])
    careful = wide_reader._table(path, dates, ["A", "B"], np.stack(cube), lines, "line")
    same(reading.read(path), careful)
    assert not np.isnan(careful.values).all()


def test_the_quick_wide_reader_never_reads_what_the_careful_one_does_not() -> None:
    """Lists of wrong lengths beside each other, blanks, quotes, and whatever else goes wrong."""
    taken = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "wide.csv"
        for text in damaged_texts(np.random.Generator(np.random.PCG64(6)), 1500):
            path.write_text(text)
            quick = wide_cells.of_csv(path, 9)
            if quick is None:
                refused += 1
                continue
            lines = range(2, len(quick[0]) + 2)
            try:
                table = wide_reader._table(path, quick[0], ["A", "B"], quick[1], lines, "line")
            except BadData:
                continue
            dates, cells = plainly(text)
            same(table, wide_reader._table(path, dates, ["A", "B"], cells, lines, "line"))
            taken += 1
    assert taken > 200
    assert refused > 200


@pytest.mark.parametrize(
    "text",
    [
        f'date,A\r2024-01-02,"{CELL}"\n2024-01-03,"{CELL}"\n',
        f'date,A\r7\n2024-01-03,"{CELL}"\n',
        'dat,"[e,A\n2024-01-02,\n',
        f'date,"A\nB"\n2024-01-02,"{CELL}"\n',
        "date,A",
        "date,A\n\n \n",
        "date,A,B,C,D,E,F,G,H,I,J\n2024-01-02\n2024-01-03\n",
    ],
)
def test_a_header_that_ends_elsewhere_is_left_to_the_careful_reader(
    tmp_path: Path, text: str
) -> None:
    (tmp_path / "wide.csv").write_bytes(text.encode())
    assert wide_cells.of_csv(tmp_path / "wide.csv", 9) is None


def test_lists_are_read_quickly_as_python_shows_them(tmp_path: Path) -> None:
    path = wide(tmp_path, f'2024-01-02,"{[1.5, 2.5, 3.0, 1.0, *5 * [None]]}",""', "2024-01-03,,")
    quick = wide_cells.of_csv(path, 9)
    assert quick is not None
    assert quick[1][0, 0, :4].tolist() == [1.5, 2.5, 3.0, 1.0]
    assert np.isnan(quick[1]).sum() == 5 + 3 * 9


@pytest.mark.parametrize(
    "cells",
    [
        ("[1,2,3][4,5,6]", "[]", "[7,8,9]"),
        ("[1,2,3][4,5,6]", "[7,8,9", ",]"),
        ("[1,2,3]\r[4,5,6]", "[]", "[7,8,9]"),
        ("[1,2,3]", '["4",5,6]', "[7,8,9]"),
        ("[1,2,3]", "[4,5]", "[6,7,8,9]"),
        ("[1,2,3]", "4,5,6", "[7,8,9]"),
    ],
)
def test_no_cell_lends_another_its_numbers(cells: tuple[str, str, str]) -> None:
    assert wide_cells.of_columns([pa.chunked_array([list(cells)])], 3) is None
    whole = wide_cells.of_columns([pa.chunked_array([["[1,2, 3]", None, "[7, nan,9]"]])], 3)
    assert whole is not None
    assert whole[0, 0].tolist() == [1, 2, 3]


def plainly(text: str) -> tuple[list[str | None], Any]:
    """Cell by cell; numbers as Python reads them, which takes more than JSON does (01.5, 5.)."""
    dates: list[str | None] = []
    days = []
    for row in list(csv.reader(io.StringIO(text)))[1:]:
        cells = [cell.strip() for cell in row[1:]]
        assert all(cell == "" or (cell[0], cell[-1]) == ("[", "]") for cell in cells)
        bare = [cell[1:-1].replace("None", "nan") or ",".join(9 * ["nan"]) for cell in cells]
        lists = [[float(number) for number in cell.split(",")] for cell in bare]
        assert [len(numbers) for numbers in lists] == [9, 9]
        dates.append(row[0])
        days.append(lists)
    return dates, np.array(days)


def damaged_texts(draw: np.random.Generator, count: int) -> Iterator[str]:
    """Small files of the wide form with up to two odd places each."""
    pieces = ["", ",", '"', "[", "]", '""', "nan", "#", " ", "1", "-", ".5", "\n", "\r\n", ",,"]
    pieces += ['","', ",nan", '"[]"', "None", "e3", f'"{CELL}"', " 00:00:00", "inf", "[[", "\t"]
    long, short = "[10,10.5,11,9,55,0.1,0.2,0.3,nan,nan]", "[10.5,11,9,55,0.1,0.2,0.3,-0.4]"
    cells = ["", f'"{CELL}"', f'"{CELL}"', f'"{CELL}"', "nan", f'"{long}"', f'"{short}"']
    odds = np.array([2, 9, 9, 9, 0.2, 0.5, 0.5])
    for _ in range(count):
        rows = [",".join(draw.choice(cells, 2, p=odds / odds.sum())) for _ in range(3)]
        text = "".join(f"2024-01-0{day},{row}\n" for day, row in enumerate(rows, start=2))
        for _ in range(draw.integers(0, 3)):
            at = int(draw.integers(0, len(text)))
            text = text[:at] + str(draw.choice(pieces)) + text[at + int(draw.integers(0, 3)) :]
        yield "date,A,B\n" + text


@pytest.mark.parametrize(
    ("row", "line", "column", "words"),
    [
        ('2024-01-03,"[1,2]",', 3, "A", "9 numbers .* and this one 2"),
        ('2024-01-03,,"[1,2,x,4,5,6,7,8,9]"', 3, "B", "not a list of numbers"),
        ("2024-01-03,,{}", 3, "B", "not a list of numbers|this one 0"),
        ('2024-01-03,"[1,2,inf,4,5,6,7,8,9]",', 3, "A", "not"),
        (f'2024-01-03,"[1,2,{"9" * 400},4,5,6,7,8,9]",', 3, "A", "not"),
        (f'2024-01-03,"{"[" * 9000}",', 3, "A", "not a list of numbers"),
        (f'2024-01-03,"{CELL}"', 3, None, "2 cells where the header has 3"),
        (f'2024-01-02,"{CELL}",', 3, "date", "stands in line 2 already"),
        (f'3/1/2024,"{CELL}",', 3, "date", "not a date"),
        (f',"{CELL}",', 3, "date", "blank"),
    ],
)
def test_a_bad_wide_file_is_refused_by_line_and_column(
    tmp_path: Path, row: str, line: int, column: str | None, words: str
) -> None:
    with pytest.raises(BadData, match=words) as caught:
        reading.read(wide(tmp_path, f'2024-01-02,"{CELL}",', row))
    assert (caught.value.line, caught.value.column) == (line, column)


LONG: dict[str, list[Any]] = {
    "date": ["2024-01-02", "2024-01-03"], "ticker": ["A", "A"], "open": [10.0, 10.0],
    "high": [11.0, 11.0], "low": [9.0, 9.0], "close": [10.0, 10.0], "volume": [5, None],
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "row", "column", "words"),
    [
        ({"close": [10.0, -1.0]}, 2, "close", "above zero"),
        ({"high": [11.0, math.inf]}, 2, "high", "finite"),
        ({"date": ["2024-01-02", "2024-01-02"]}, 2, "ticker", "stands in row 1 already"),
        ({"date": ["2024-01-02", "soon"]}, 2, "date", "not a date"),
        ({"ticker": [None, "A"]}, 1, "ticker", "blank"),
        ({"open": ["x", "y"]}, None, None, "wrong type"),
    ],
)
def test_a_bad_parquet_file_is_refused_by_row_and_column(
    tmp_path: Path, changed: dict[str, list[Any]], row: int | None, column: str, words: str
) -> None:
    with pytest.raises(BadData, match=words) as caught:
        reading.read(parquet(tmp_path, **{**LONG, **changed}))
    assert (caught.value.line, caught.value.column) == (row, column)
    if row:
        assert f"row {row}, column {column}" in str(caught.value)


def test_parquet_dates_may_be_dates_and_what_is_no_parquet_is_told(tmp_path: Path) -> None:
    days = [np.datetime64(text).astype(object) for text in LONG["date"]]
    assert reading.read(parquet(tmp_path, **{**LONG, "date": days})).dates == LONG["date"]
    with pytest.raises(BadData, match="no such column") as caught:
        reading.read(parquet(tmp_path, **{k: v for k, v in LONG.items() if k != "low"}))
    assert caught.value.column == "low"
    (tmp_path / "file.parquet").write_text("date,ticker")
    with pytest.raises(BadData, match="not a Parquet file"):
        reading.read(tmp_path / "file.parquet")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_texts_may_be_as_other_programs_write_them(tmp_path: Path, kind: Any) -> None:
    cells = pa.array([CELL, None, CELL], pa.string()).cast(kind)
    dates = pa.array(["2024-01-02", "2024-01-03", "2024-01-04"]).cast(kind)
    table = reading.read(parquet(tmp_path, date=dates, A=cells))
    assert table.dates == ["2024-01-02", "2024-01-03", "2024-01-04"]
    assert table.values[2, 0, :4].tolist() == [10, 11, 9, 10.5]
    assert np.isnan(table.values[1]).all()


def test_a_time_zone_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    day = pa.array([0], pa.timestamp("us")).cast(pa.timestamp("us", tz="Mars/Base"))
    with pytest.raises(BadData, match="Mars/Base"):
        reading.read(parquet(tmp_path, date=day, A=[CELL]))


def test_a_series_below_zero_may_be_looked_at_and_not_traded(tmp_path: Path) -> None:
    dates = np.arange("2024-01-01", "2024-03-01", dtype="datetime64[D]").astype(str).tolist()
    rate = CELL.replace("[10,10.5,11,9", "[-1,-1,-1,-1")
    path = wide(tmp_path, *(f'{date},"{CELL}","{rate}"' for date in dates))
    small = replace(SMALL, context=2, horizon=4)
    with pytest.raises(UsageFault, match="B has a price of -1 on 2024-01-01"):
        market.load(path, small, CPU)
    world = market.load(path, replace(small, tradable="A"), CPU)
    assert (world.tradable, world.tickers) == (("A",), ("A", "B"))
    assert bool(torch.isfinite(world.view.daily).all())
    assert bool(world.present.all())


def test_a_file_that_did_not_change_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "RACE", -1)
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=160, tickers=3, seed=1)
    first = market.load(path, SMALL, CPU)
    with monkeypatch.context() as patch:
        for name in ("_read_hash", "features"):
            patch.setattr(cache, name, None)
        patch.setattr(market, "read", None)
        again = market.load(path, SMALL, CPU)
    assert again.data_hash == first.data_hash
    assert torch.equal(again.view.daily, first.view.daily)
    again.view.daily.zero_()  # what is done to a view does not reach the cache
    assert torch.equal(market.load(path, SMALL, CPU).view.daily, first.view.daily)
    synthetic.write_market(path, days=160, tickers=3, seed=2)
    assert market.load(path, SMALL, CPU).data_hash != first.data_hash
