"""The data file: what is read, what is refused, and where."""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.trainer.worlds import CPU, REPO, SMALL
from trainer import cache, csv_reader, market, reading, synthetic
from trainer.cli import main
from trainer.errors import BadData, UsageFault
from trainer.settings import Settings, build

HEADER = "date,ticker,open,high,low,close,volume\n"
GOOD = "2024-01-02,A,10,11,9,10.5,100\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "bad.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("", None, None, "empty"),
        (HEADER, None, None, "no rows"),
        ("date,ticker,open,high,low,close\n", 1, "volume", "no such column"),
        ("date,AAPL,MSFT\n", None, None, "no rows"),
        (HEADER.replace("open", "high"), 1, "open", "no such column"),
        (HEADER + GOOD + "2024-01-03,A,10,11,9,ten,100\n", 3, "close", "'ten' is not a number"),
        (HEADER + "2024-01-03,A,inf,11,9,10,100\n", 2, "open", "finite"),
        (HEADER + GOOD + "2024-01-03,A,10,11,-9,10,100\n", 3, "low", "above zero"),
        (HEADER + "2024-01-03,A,0,11,9,10,100\n", 2, "open", "above zero"),
        (HEADER + "2024-01-03,A,10,8,9,10,100\n", 2, "high", "below the low"),
        (HEADER + "2024-01-03,A,12,11,9,10,100\n", 2, "open", "between low and high"),
        (HEADER + "2024-01-03,A,10,11,9,8,100\n", 2, "close", "between low and high"),
        (HEADER + "2024-01-03,A,10,11,9,10,-1\n", 2, "volume", "negative"),
        (HEADER + GOOD + GOOD, 3, "ticker", "2024-01-02 A stands in line 2 already"),
        (HEADER + "03/01/2024,A,10,11,9,10,1\n", 2, "date", "not a date"),
        (HEADER + "2024-02-30,A,10,11,9,10,1\n", 2, "date", "not a date"),
        (HEADER + "2024-01-03,,10,11,9,10,1\n", 2, "ticker", "blank"),
        (HEADER + "2024-01-03,A,10,11\n", 2, None, "4 cells where the header has 7"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_column(
    tmp_path: Path, text: str, line: int | None, column: str | None, words: str
) -> None:
    with pytest.raises(BadData, match=words) as caught:
        reading.read(written(tmp_path, text))
    assert (caught.value.line, caught.value.column) == (line, column)
    if line is not None:
        assert f"line {line}" in str(caught.value)


def test_a_fault_far_down_is_found_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_reader, "BLOCK", 7)
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=40, tickers=3, seed=1)
    lines = path.read_text().splitlines()
    lines[77] = lines[77].rsplit(",", 1)[0] + ",many"
    with pytest.raises(BadData, match="line 78, column volume: 'many' is not a number"):
        reading.read(written(tmp_path, "\n".join(lines)))


def test_days_are_sorted_and_blank_cells_are_missing_values(tmp_path: Path) -> None:
    text = HEADER + "2024-01-03,B,10,11,9,10,\n\n2024-01-02,A,,,,10.5,7\n"
    table = reading.read(written(tmp_path, text))
    assert (table.dates, table.tickers) == (["2024-01-02", "2024-01-03"], ["A", "B"])
    assert table.values[1, 1, :4].tolist() == [10, 11, 9, 10]
    assert np.isnan(table.values[1, 1, 4])
    assert np.isnan(table.values[0, 0, 0])
    assert np.isnan(table.values[0, 1]).all()


def test_too_few_days_and_unknown_series_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=60, tickers=2, seed=1)
    with pytest.raises(BadData, match="60 days are too few"):
        market.load(path, Settings(), CPU)
    with pytest.raises(UsageFault, match="no series named X"):
        market.load(path, replace(SMALL, tradable="S000,X"), CPU)
    assert market.load(path, replace(SMALL, tradable="S001"), CPU).tradable == ("S001",)


def test_the_cache_gives_the_same_market_and_follows_the_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=160, tickers=4, seed=1)
    first = market.load(path, SMALL, CPU)
    with monkeypatch.context() as patch:
        patch.setattr(market, "read", None)
        again = market.load(path, SMALL, CPU)
    assert torch.equal(first.view.daily, again.view.daily)
    assert torch.equal(first.opens.nan_to_num(), again.opens.nan_to_num())
    synthetic.write_market(path, days=160, tickers=4, seed=2)
    assert not torch.equal(market.load(path, SMALL, CPU).view.daily, first.view.daily)


def test_a_broken_cache_is_read_past(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=160, tickers=4, seed=1)
    first = market.load(path, SMALL, CPU)
    for entry in tmp_path.glob(".trainer-cache/*/closes.npy"):
        entry.write_bytes(entry.read_bytes()[:100])
    assert torch.equal(market.load(path, SMALL, CPU).view.daily, first.view.daily)


def test_many_first_readers_at_once_come_to_one_cache(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=160, tickers=4, seed=1)
    command = [sys.executable, "-m", "trainer.reading", str(path)]
    readers = [subprocess.Popen(command, cwd=REPO) for _ in range(4)]
    assert [reader.wait() for reader in readers] == [0] * 4
    assert not list(tmp_path.glob(".trainer-cache/.tmp-*"))
    assert len(list(tmp_path.glob(".trainer-cache/*/names.json"))) == 1
    found = cache.find(path, cache.content_hash(path))
    assert found is not None
    np.testing.assert_array_equal(found.closes, reading.read(path).values[:, :, 3])


def test_where_nothing_can_be_written_the_cache_is_the_users_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, home = tmp_path / "data/toy.csv", tmp_path / "home"
    synthetic.write_market(path, days=160, tickers=4, seed=1)
    (tmp_path / "data/.trainer-cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    first = market.load(path, SMALL, CPU)
    assert len(list(home.glob("trainer-data/*/closes.npy"))) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # and here there cannot even be a folder
    reading.warm(path)
    assert torch.equal(market.load(path, SMALL, CPU).view.daily, first.view.daily)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "the file is empty"),
        ("a.csv", b" \n \n", "the file is empty"),
        ("a.csv", b"\x00" * 5000, "line 1"),  # Python 3.10 calls it no CSV file, later ones read it
        ("a.csv", bytes(range(256)) * 20, "not a text file in UTF-8"),
        ("a.csv", HEADER.encode("utf-16"), "not a text file in UTF-8"),
        ("a.csv.gz", gzip.compress((HEADER + GOOD).encode()), "not a text file in UTF-8"),
        ("a.csv", HEADER.replace(",", ";").encode(), "no such column"),
        ("a.csv", (HEADER + GOOD + '"2024').encode(), "line 3: 1 cells where the header has 7"),
        ("a.csv", (HEADER + GOOD).encode(), "1 days are too few"),
        ("a.csv", (HEADER + "2024-01-02,A,10,1e400,9,10,1").encode(), "line 2, column high"),
        ("a.csv", (HEADER + "2024-01-02T09:30:00+02:00,A,1,1,1,1,1").encode(), "not a date"),
        ("a.parquet", b"", "not a Parquet file"),
        ("a.parquet", b"PAR1" + bytes(range(200)) + b"PAR1", "not a Parquet file"),
    ],
    ids=[
        *("empty", "blank", "zeros", "every byte", "UTF-16", "gzip", "semicolons", "open quote"),
        *("one day", "infinity", "a time", "empty Parquet", "broken Parquet"),
    ],
)
def test_rubbish_ends_in_2_with_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    folders = ["--checkpoint-dir", str(tmp_path / "ck"), "--log-dir", str(tmp_path / "logs")]
    assert main(["--data", str(path), "--device", "cpu", "--threads", "1", *folders]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"trainer: {path}")
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "ck").exists()


def test_line_ends_quotes_and_order_make_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=50, tickers=3, seed=1)
    text = path.read_text()
    header, *lines = text.splitlines()
    quoted = ['"' + line.replace(",", '","') + '"' for line in lines]
    plain = reading.read(path)
    for other in (text.replace("\n", "\r\n"), "\ufeff" + text, "\n".join([header, *quoted]),
                  "\n".join([header, *reversed(lines)])):  # fmt: skip
        path.write_text(other, newline="")
        table = reading.read(path)
        assert table.dates == plain.dates
        order = [table.tickers.index(name) for name in plain.tickers]
        np.testing.assert_array_equal(table.values[:, order], plain.values)


def test_splits_follow_each_other_and_overlap_by_no_decision(tmp_path: Path) -> None:
    path = tmp_path / "toy.csv"
    synthetic.write_market(path, days=160, tickers=4, seed=1)
    world = market.load(path, SMALL, CPU)
    assert world.train.first == SMALL.context - 1
    assert world.train.last + 1 == world.validation.first
    assert world.validation.last + 1 == world.holdout.first
    assert world.holdout.last == len(world.dates) - 2


def test_the_made_market_is_the_same_each_time_and_has_holes(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        synthetic.write_market(tmp_path / name, days=100, tickers=5, seed=9)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    with (tmp_path / "a.csv").open() as handle:
        assert 250 < len(list(csv.reader(handle))) < 480


def test_every_fault_of_the_settings_is_named_at_once() -> None:
    with pytest.raises(UsageFault) as caught:
        build({"population": "few", "seed": "-1", "device": "tpu", "discount": "nan",
               "train_share": "0.9", "validation_share": "0.2", "run": "../up"})  # fmt: skip
    text = "\n".join(caught.value.faults)
    for word in ("--population", "--seed", "--device", "--discount", "--train-share", "--run"):
        assert word in text
