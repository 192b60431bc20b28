"""The exchange: every agent and every episode takes its step as one batch of tensors.

The order of a day, so that nobody sees the future: at the close of day t an agent sees prices up
to t and says target weights; they become orders in shares at the closes of t; the orders are
filled at the open of t+1, sales before purchases, purchases only as far as the cash reaches; the
book is valued at the closes of t+1. What cannot be traded that day stays as it is. A series that
has ended is sold at its last known price on the first day without it. Each trade pays costs.

The rules of an episode: `horizon` days of trading, then `settlement` days in which nothing is
bought and on the last of which all is sold; at most `max_positions` series; a position is sold at
the open after a close that has reached its sale target, or after its longest time.

Money is float64; the shapes are [P, N] for P agents and N episodes, and [P, N, A] for A assets.
Sums over assets are taken in the order of the assets, so that a plain program gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from trainer.market import Market
from trainer.recorder import Recorder
from trainer.settings import Settings

START_CASH = 1.0
BOOK_NUMBERS = 5  # what an agent sees of its portfolio beside each series
OWN_NUMBERS = 3  # of these: weight, gain and age of the position itself
LEAST = 1e-300


@dataclass(frozen=True)
class Rules:
    """What is allowed, and what it costs."""

    costs_bps: float = 0.0
    exposure: float = 1.0
    horizon: int = 1
    settlement: int = 0
    max_positions: int = 0
    sale_target: float = 0.0
    max_holding: int = 0

    @staticmethod
    def of(settings: Settings) -> Rules:
        """The rules a run was asked to play by."""
        return Rules(settings.costs_bps, settings.exposure, settings.horizon, settings.settlement,
                     settings.max_positions, settings.sale_target,
                     settings.max_holding)  # fmt: skip

    @property
    def length(self) -> int:
        """Days of an episode."""
        return self.horizon + self.settlement

    def phase(self, number: int) -> str:
        """What is done on an episode's step, counted from 0: trade, settle, or sell all."""
        if self.settlement and number == self.length - 1:
            return "sell all"
        return "settle" if number >= self.horizon else "trade"


@dataclass(frozen=True)
class Book:
    """What each agent owns in each episode."""

    cash: torch.Tensor
    shares: torch.Tensor
    entry: torch.Tensor
    """Mean price paid for the shares held; 0 where there are none."""
    age: torch.Tensor
    """Days since the position was opened; 0 where there is none."""


@dataclass(frozen=True)
class Exchange:
    """A market and the rules to trade it by."""

    market: Market
    rules: Rules
    recorder: Recorder = field(default_factory=Recorder, compare=False)
    """The recordings of what is done here, by these rules."""

    @property
    def book_size(self) -> int:
        """How many numbers of the portfolio a transition stores."""
        return self.market.assets * OWN_NUMBERS + BOOK_NUMBERS - OWN_NUMBERS

    def open_books(self, agents: int, episodes: int) -> Book:
        """Fresh books: cash only."""
        options = {"dtype": torch.float64, "device": self.market.known.device}
        cash = torch.full((agents, episodes), START_CASH, **options)  # type: ignore[call-overload]
        none = torch.zeros((agents, episodes, self.market.assets), **options)  # type: ignore[call-overload]
        return Book(cash, none, none, none)

    def equity(self, book: Book, day: torch.Tensor) -> torch.Tensor:
        """Worth [P, N] at the last known closes of `day` [N]."""
        return book.cash + _total(book.shares * self.market.known[day])

    def weights(self, book: Book, day: torch.Tensor) -> torch.Tensor:
        """Share of the equity in each asset, [P, N, A]."""
        return book.shares * self.market.known[day] / self.equity(book, day).unsqueeze(-1)

    def observe(self, book: Book, day: torch.Tensor, left: float | torch.Tensor) -> torch.Tensor:
        """Portfolio [P, N, 3 A + 2], float32: weights, gains, ages, cash share, time left.

        `left` is one number, the share of the episode that is to come. A gain is the log of price
        over entry; an age is told as the share of an episode.
        """
        equity, price = self.equity(book, day).unsqueeze(-1), self.market.known[day]
        held = book.entry > 0
        gain = torch.where(held, torch.log(price / book.entry.clamp_min(LEAST)), 0.0)
        cash = book.cash.unsqueeze(-1) / equity
        if not isinstance(left, torch.Tensor):
            left = torch.tensor(left, dtype=cash.dtype, device=cash.device)
        parts = [book.shares * price / equity, gain.clamp(-5, 5), book.age / self.rules.length,
                 cash, left.expand_as(cash)]  # fmt: skip
        return torch.cat(parts, dim=-1).float()

    def beside(self, seen: torch.Tensor) -> torch.Tensor:
        """A stored portfolio [..., 3 A + 2] laid beside the series: [..., A, 5]."""
        assets = self.market.assets
        own = seen[..., : assets * OWN_NUMBERS].reshape(*seen.shape[:-1], OWN_NUMBERS, assets)
        common = (
            seen[..., assets * OWN_NUMBERS :].unsqueeze(-2).expand(*seen.shape[:-1], assets, -1)
        )
        return torch.cat([own.transpose(-1, -2), common], dim=-1)

    def targets(self, action: torch.Tensor) -> torch.Tensor:
        """Target weights of actions: none below zero, the largest few, together at most the cap."""
        wanted = action.double().clamp(0.0, 1.0)
        few = self.rules.max_positions
        if 0 < few < self.market.assets:
            place = wanted.argsort(dim=-1, descending=True, stable=True)
            wanted = wanted.scatter(-1, place[..., few:], 0.0)
        total = _total(wanted).unsqueeze(-1)
        return wanted * self.rules.exposure / total.clamp_min(self.rules.exposure)

    def step(
        self, book: Book, day: torch.Tensor, action: torch.Tensor, number: int = 0
    ) -> tuple[Book, torch.Tensor]:
        """Go from the close of `day` [N] to the next; returns the book and log returns [P, N].

        `number` counts the steps of the episode from 0; steps of one phase are the same work.
        """
        market, rules, cost = self.market, self.rules, self.rules.costs_bps / 10_000
        price, tomorrow = market.known[day], day + 1
        before = self.equity(book, day)
        wanted = self.targets(action) * before.unsqueeze(-1) / price.clamp_min(LEAST)
        if rules.max_holding:
            wanted = torch.where(book.age >= rules.max_holding, 0.0, wanted)
        if rules.sale_target:
            goal = book.entry * (1 + rules.sale_target)
            wanted = torch.where((book.entry > 0) & (price >= goal), 0.0, wanted)
        phase = rules.phase(number)
        if phase == "settle":
            wanted = torch.minimum(wanted, book.shares)
        if phase == "sell all":
            wanted = torch.zeros_like(wanted)
        wanted = torch.where(market.listed[day], wanted, book.shares)

        gone = market.delisted[tomorrow]
        at_open = market.opens[tomorrow]
        fillable = ~torch.isnan(at_open) & ~gone
        at_open = torch.where(fillable, at_open, 0.0)
        order = torch.where(fillable, wanted - book.shares, 0.0)
        sell = torch.where(gone, book.shares, (-order).clamp_min(0.0))
        sell_price = torch.where(gone, market.known[tomorrow], at_open)
        buy = order.clamp_min(0.0)

        cash = book.cash + _total(sell * sell_price) * (1 - cost)
        need = _total(buy * at_open) * (1 + cost)
        share = (cash / need.clamp_min(LEAST)).clamp(0.0, 1.0)
        bought = buy * share.unsqueeze(-1)
        kept = book.shares - sell
        shares = kept + bought
        held = shares > 0
        paid = kept * book.entry + bought * at_open
        after = Book(
            (cash - need * share).clamp_min(0.0),
            shares,
            torch.where(held, paid / shares.clamp_min(LEAST), 0.0),
            torch.where(held, torch.where(kept > 0, book.age, 0.0) + 1, 0.0),
        )
        equity = self.equity(after, tomorrow)
        return after, torch.log(equity.clamp_min(1e-12) / before)


def _total(x: torch.Tensor) -> torch.Tensor:
    """Sum over assets, first to last: a running sum has an order, a plain sum has not.

    On a GPU it is the other way round: there the running sum has no deterministic form.
    """
    return x.sum(-1) if x.is_cuda else x.cumsum(-1)[..., -1]
