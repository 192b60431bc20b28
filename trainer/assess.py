"""What a checkpoint's actor did with the money, day by day, beside the baselines."""

from __future__ import annotations

import csv
import json
import math
import statistics as st
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, evaluation, market, settings, state
from trainer.checkpoint import Damaged, Loaded
from trainer.environment import Exchange, Rules
from trainer.errors import BadData, UsageFault
from trainer.evaluation import BASELINES, Policy, Step
from trainer.market import Market, Split
from trainer.state import TrainState

YEAR = 252  # trading days
TRADE_COLUMNS = ("date", "ticker", "side", "shares", "price", "value", "costs", "gain", "reason")


@dataclass(frozen=True)
class Trade:
    """One fill; `gain` is the log of price over the mean price paid, of sales only."""

    date: str
    ticker: str
    side: str
    shares: float
    price: float
    value: float
    costs: float
    gain: float | None
    reason: str
    """order; delisted where the series has ended."""


@dataclass(frozen=True)
class Course:
    """A policy's way through a split; the equity begins at `capital`."""

    name: str
    dates: list[str]
    gains: list[float]
    """Log return of each day, after costs."""
    exposure: list[float]
    trades: list[Trade]
    capital: float

    @property
    def equity(self) -> list[float]:
        """Worth at the close of each day."""
        total, result = 0.0, []
        for gain in self.gains:
            total += gain
            result.append(self.capital * math.exp(total))
        return result

    @property
    def drawdown(self) -> list[float]:
        """How far each day's equity is below its highest so far: 0 to -1."""
        top, result = self.capital, []
        for worth in self.equity:
            top = max(top, worth)
            result.append(worth / top - 1)
        return result

    def statistics(self) -> dict[str, float | None]:
        """Returns, risk and trading in numbers; shares of one, not percent."""
        plain = [math.expm1(gain) for gain in self.gains]
        days, total = len(plain), sum(self.gains)
        deviation = st.stdev(plain) if days > 1 else 0.0
        below = math.sqrt(sum(min(x, 0.0) ** 2 for x in plain) / days) if days else 0.0
        mean = st.fmean(plain) if plain else 0.0
        sales = [t.gain for t in self.trades if t.gain is not None]
        return {
            "days": days,
            "return": math.expm1(total),
            "return_a_year": math.expm1(total * YEAR / days) if days else 0.0,
            "volatility_a_year": deviation * math.sqrt(YEAR),
            "sharpe": mean / deviation * math.sqrt(YEAR) if deviation else None,
            "sortino": mean / below * math.sqrt(YEAR) if below else None,
            "largest_drawdown": min(self.drawdown, default=0.0),
            "mean_exposure": st.fmean(self.exposure) if self.exposure else 0.0,
            "trades": len(self.trades),
            "turnover": sum(t.value for t in self.trades) / self.capital,
            "costs": sum(t.costs for t in self.trades) / self.capital,
            "sales_with_gain": sum(g > 0 for g in sales) / len(sales) if sales else None,
        }


@dataclass(frozen=True)
class Subject:
    """A checkpoint brought to life on a data file."""

    loaded: Loaded
    current: TrainState
    exchange: Exchange
    same_data: bool
    """Whether the data file is the one it was trained on."""

    def splits(self) -> dict[str, Split]:
        """The splits by name."""
        world = self.exchange.market
        return {split.name: split for split in (world.train, world.validation, world.holdout)}

    def courses(self, split: Split, capital: float = 1.0) -> list[Course]:
        """The run's best actor first, then each baseline."""
        policy = evaluation.policy_of(self.exchange, split, self.current.chosen)
        result = [course("best", self.exchange, split, policy, capital)]
        free = evaluation.unruled(self.exchange)
        others = evaluation.baseline_policies(free, split, self.current.settings.seed)
        return result + [course(name, free, split, others[name], capital) for name in BASELINES]


def find(path: Path) -> tuple[Loaded, list[str]]:
    """A checkpoint by its folder, or the newest whole one of a run's folder; and what was refused.

    UsageFault where there is none that is whole.
    """
    if (path / checkpoint.STATE_FILE).exists():
        try:
            return checkpoint.read(path), []
        except Damaged as error:
            raise UsageFault(f"{path}: {error}") from None
    loaded, refused = checkpoint.newest(path.parent, path.name)
    if loaded is None:
        raise UsageFault(*refused, f"{path}: no checkpoint and no run with a whole one")
    return loaded, refused


def open_subject(loaded: Loaded, data: Path | None, device: torch.device) -> Subject:
    """Bring a checkpoint to life on its own data file, or another; UsageFault where it cannot."""
    chosen = settings.from_saved(loaded.state["settings"])
    path = data or Path(chosen.data)
    if not path.is_file():
        raise BadData(path, "there is no such file: name the market data with --data FILE")
    world = market.load(path, chosen, device)
    exchange = Exchange(world, Rules.of(chosen))
    current = state.fresh(chosen, exchange, device)
    current.load(loaded.files, loaded.state)
    return Subject(loaded, current, exchange, world.data_hash == loaded.state["data_hash"])


def course(
    name: str, exchange: Exchange, split: Split, policy: Policy, capital: float = 1.0
) -> Course:
    """Trade a policy through a split and keep what it did."""
    dates, gains, exposure, trades = [], [], [], []
    cost = exchange.rules.costs_bps / 10_000
    for step in evaluation.walk(exchange, split, policy):
        dates.append(exchange.market.dates[step.day + 1])
        gains.append(float(step.gain))
        day = torch.tensor([step.day + 1], device=step.gain.device)
        exposure.append(float(exchange.weights(step.after, day).sum()))
        trades += list(_trades(exchange.market, step, cost, capital))
    return Course(name, dates, gains, exposure, trades, capital)


def write(folder: Path, subject: Subject, courses: dict[str, list[Course]]) -> list[Path]:
    """trades.csv and equity.csv of each split, and statistics.json; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = subject.loaded.state
    document: dict[str, Any] = {
        "checkpoint": str(subject.loaded.path), "run": saved["run"],
        "generation": saved["generation"], "data_hash": subject.exchange.market.data_hash,
        "trained_on_this_data": subject.same_data, "splits": {},
    }  # fmt: skip
    paths = []
    for split, each in courses.items():
        document["splits"][split] = {one.name: one.statistics() for one in each}
        path = folder / f"{split}-trades.csv"
        _write_csv(path, TRADE_COLUMNS,
                   ([getattr(t, c) for c in TRADE_COLUMNS] for t in each[0].trades))  # fmt: skip
        paths.append(path)
        path = folder / f"{split}-equity.csv"
        rows = zip(each[0].dates, *(one.equity for one in each), strict=True)
        _write_csv(path, ("date", *(one.name for one in each)), rows)
        paths.append(path)
    path = folder / "statistics.json"
    _aside(path, lambda aside: aside.write_text(json.dumps(document, indent=1) + "\n"))
    return [*paths, path]


def _trades(world: Market, step: Step, cost: float, capital: float) -> Iterator[Trade]:
    before, after = step.before.shares[0, 0], step.after.shares[0, 0]
    for place in torch.nonzero(before != after).flatten().tolist():
        shares = float(after[place] - before[place])
        gone = bool(world.delisted[step.day + 1, place])
        price = float((world.known if gone else world.opens)[step.day + 1, place])
        value = abs(shares) * price * capital
        paid = float(step.before.entry[0, 0, place])
        yield Trade(
            date=world.dates[step.day + 1], ticker=world.tradable[place],
            side="buy" if shares > 0 else "sell", shares=abs(shares) * capital, price=price,
            value=value, costs=value * cost,
            gain=math.log(price / paid) if shares < 0 and paid > 0 else None,
            reason="delisted" if gone else "order",
        )  # fmt: skip


def _write_csv(path: Path, header: tuple[str, ...], rows: Any) -> None:
    def write_rows(aside: Path) -> None:
        with aside.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    _aside(path, write_rows)


def _aside(path: Path, write_to: Callable[[Path], object]) -> None:
    """Whole or not there."""
    aside = path.with_name(f".{path.name}.tmp")
    write_to(aside)
    aside.replace(path)
