"""Trades, statistics, the page, and settings from a file."""

from __future__ import annotations

import csv
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.trainer.worlds import FLAGS, SMALL, exchange, run, state_of, world
from trainer import assess, checkpoint, evaluation, synthetic
from trainer.assess import Course
from trainer.cli import main
from trainer.environment import Exchange, Rules
from trainer.errors import UsageFault
from trainer.market import Split
from trainer.settings import Settings, build, from_file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    data = folder / "toy.csv"
    synthetic.write_market(data, days=160, tickers=5, seed=3)
    code, _, err = run(folder, "--data", str(data), "--run", "r", *FLAGS, "--generations", "4")
    assert code == 0, err
    return folder


def test_trades_are_what_was_filled_and_what_it_cost() -> None:
    place = Exchange(world([[(10, 10)], [(10, 20)], [(25, 20)], [(20, 20)]]), Rules(100))
    wishes = iter([0.5, 0.0, 0.0])

    def policy(step: int, book: object, day: object, seen: object):  # type: ignore[no-untyped-def]
        return place.market.known.new_full((1, 1, 1), next(wishes))

    one = assess.course("it", place, Split("s", 0, 2), policy, capital=1000)
    bought, sold = one.trades
    assert (bought.side, bought.date, bought.price) == ("buy", place.market.dates[1], 10.0)
    assert (bought.shares, bought.value, bought.costs) == pytest.approx((50, 500, 5))
    assert bought.gain is None
    assert (sold.side, sold.price, sold.reason) == ("sell", 25.0, "order")
    assert sold.gain == pytest.approx(math.log(2.5))
    assert one.equity[0] == pytest.approx(1000 - 500 - 5 + 50 * 20)
    assert one.equity[-1] == pytest.approx(495 + 50 * 25 * 0.99)


def test_a_delisted_series_is_sold_for_that_reason() -> None:
    rows = [[(10, 10), (1, 1)], [(10, 12), (1, 1)], [None, (1, 1)], [None, (1, 1)]]
    place = Exchange(world(rows), Rules())  # type: ignore[arg-type]
    free = evaluation.baseline_policies(place, Split("s", 0, 2), 0)["buy-and-hold"]
    one = assess.course("it", place, Split("s", 0, 2), free)
    last = one.trades[-1]
    assert (last.side, last.reason, last.price) == ("sell", "delisted", 12.0)


def test_statistics_of_a_known_course() -> None:
    gains = [math.log(1.1), math.log(0.5), math.log(1.2)]
    one = Course("it", ["a", "b", "c"], gains, [0.5, 1.0, 0.0], [], 100.0)
    assert one.equity == pytest.approx([110, 55, 66])
    assert one.drawdown == pytest.approx([0, -0.5, -0.4])
    found = one.statistics()
    assert found["return"] == pytest.approx(-0.34)
    assert found["largest_drawdown"] == pytest.approx(-0.5)
    assert found["mean_exposure"] == pytest.approx(0.5)
    mean, spread = -0.2 / 3, 0.3785938897  # of 0.1, -0.5 and 0.2
    assert found["sharpe"] == pytest.approx(mean / spread * 252**0.5, rel=1e-6)
    assert found["sales_with_gain"] is None


def test_the_course_of_a_policy_is_what_evaluation_says(tmp_path: Path) -> None:
    place = exchange(tmp_path, replace(SMALL, max_positions=2))
    split = place.market.holdout
    free = evaluation.unruled(place)
    policies = evaluation.baseline_policies(free, split, 0)
    known = evaluation.baseline_returns(place, split, 0)
    for name, policy in policies.items():
        assert sum(assess.course(name, free, split, policy).gains) == pytest.approx(known[name])


def test_evaluate_writes_trades_equity_and_statistics(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(finished / "checkpoints/r/gen-000004")
    assert main(["evaluate", where, "--out", str(tmp_path / "one"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["generation"] == 4
    assert shown["trained_on_this_data"] is True
    for split in ("validation", "hold-out"):
        numbers = shown["splits"][split]
        assert numbers["do-nothing"]["return"] == 0
        with (tmp_path / f"one/{split}-trades.csv").open() as handle:
            trades = list(csv.DictReader(handle))
        assert len(trades) == numbers["best"]["trades"] > 0
        with (tmp_path / f"one/{split}-equity.csv").open() as handle:
            days = list(csv.DictReader(handle))
        assert float(days[-1]["best"]) == pytest.approx(1e5 * (1 + numbers["best"]["return"]))
    # by the run's name it is the newest checkpoint, and the same
    root = str(finished / "checkpoints")
    assert main(["evaluate", "r", "--checkpoint-dir", root, "--out", str(tmp_path / "two")]) == 0
    assert "buy-and-hold" in capsys.readouterr().out
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes()


def test_what_cannot_be_evaluated_is_said(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "none", "--checkpoint-dir", str(tmp_path)]) == 2
    assert "no checkpoint and no run" in capsys.readouterr().err
    where = str(finished / "checkpoints/r")
    assert main(["evaluate", where, "--data", str(tmp_path / "gone.csv")]) == 2
    assert "--data FILE" in capsys.readouterr().err


def test_the_report_is_one_page_that_needs_nothing_else(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, page = str(finished / "checkpoints"), tmp_path / "page.html"
    assert main(["report", "r", "--checkpoint-dir", root, "--out", str(page)]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    text = page.read_text()
    assert text.count("data:image/svg+xml;base64,") == 6
    for word in ("Hold-out", "Validation", "buy-and-hold", "largest drawdown", "Trades"):
        assert word in text
    addresses = re.findall(r"(?:src|href)=\"(.{12})", text)
    assert set(addresses) == {"data:image/s"}, "nothing is loaded from elsewhere"
    assert "<script" not in text


def test_without_its_data_the_report_shows_the_fitness(finished: Path, tmp_path: Path) -> None:
    where = finished / "checkpoints/r/gen-000004"
    saved = state_of(where)
    saved["settings"]["data"] = str(tmp_path / "gone.csv")
    copy = tmp_path / "ck/r/gen-000004"
    copy.mkdir(parents=True)
    for path in where.rglob("*"):
        if path.is_file():
            (copy / path.relative_to(where)).parent.mkdir(exist_ok=True)
            (copy / path.relative_to(where)).write_bytes(path.read_bytes())
    saved["seal"] = checkpoint.seal(saved)
    (copy / "state.json").write_text(json.dumps(saved))
    page = tmp_path / "page.html"
    assert main(["report", "r", "--checkpoint-dir", str(tmp_path / "ck"), "--out", str(page)]) == 0
    assert "No equity and no trades" in page.read_text()
    assert "data:image/svg+xml" in page.read_text()


def test_settings_come_from_file_variable_and_option_in_this_order(
    finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "run.toml"
    path.write_text('population = 7\nactor-rate = 1e-3\ntradable = ["S001", "S002"]\nseed = 3\n')
    chosen = build(from_file(path))
    assert (chosen.population, chosen.tradable) == (7, "S001,S002")
    code, out, err = run(
        tmp_path, "--config", str(path), "--data", str(finished / "toy.csv"), *FLAGS[4:],
        "--context", "4", "--horizon", "10", "--population", "6", "--generations", "1",
    )  # fmt: skip
    assert code == 0, err
    assert " population=6 " in out
    assert " seed=3 " in out
    saved = state_of(next((tmp_path / "checkpoints").glob("*/gen-000001")))["settings"]
    assert (saved["population"], saved["seed"], saved["tradable"]) == (6, 3, "S001,S002")
    assert saved["costs_bps"] == Settings().costs_bps


def test_a_bad_settings_file_names_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("populaton = 7\nseed = true\n")
    with pytest.raises(UsageFault, match="populaton") as caught:
        from_file(path)
    assert len(caught.value.faults) == 2
    path.write_text("population: 7\n")
    with pytest.raises(UsageFault, match="not TOML"):
        from_file(path)
    with pytest.raises(UsageFault, match="cannot be read"):
        from_file(tmp_path / "gone.toml")
