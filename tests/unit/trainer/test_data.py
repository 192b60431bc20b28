"""The data file: what is read, what is refused, and where."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.unit.trainer.worlds import CPU, SMALL
from trainer import csv_reader, market, synthetic
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
        market.read(written(tmp_path, text))
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
        market.read(written(tmp_path, "\n".join(lines)))


def test_days_are_sorted_and_blank_cells_are_missing_values(tmp_path: Path) -> None:
    text = HEADER + "2024-01-03,B,10,11,9,10,\n\n2024-01-02,A,,,,10.5,7\n"
    table = market.read(written(tmp_path, text))
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
