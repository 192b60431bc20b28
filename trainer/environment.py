"""The exchange: every agent and every episode takes its step as one batch of tensors.

The order of a day, so that nobody sees the future: at the close of day t an agent sees prices up
to t and says target weights; they become orders in shares at the closes of t; the orders are
filled at the open of t+1, sales before purchases, purchases only as far as the cash reaches; the
book is valued at the closes of t+1. What cannot be traded that day stays as it is. A series that
has ended is sold at its last known price on the first day without it. Each trade pays costs.

Money is float64; the shapes are [P, N] for P agents and N episodes, and [P, N, A] for A assets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer.market import Market

START_CASH = 1.0
BOOK_EXTRAS = 2  # cash share and time left stand beside the weights


@dataclass(frozen=True)
class Book:
    """What each agent owns in each episode."""

    cash: torch.Tensor
    shares: torch.Tensor


@dataclass(frozen=True)
class Exchange:
    """The rules of a market: its costs and its cap on exposure."""

    market: Market
    costs_bps: float
    exposure: float

    @property
    def book_size(self) -> int:
        """How many numbers of the portfolio an agent sees."""
        return self.market.assets + BOOK_EXTRAS

    def open_books(self, agents: int, episodes: int) -> Book:
        """Fresh books: cash only."""
        options = {"dtype": torch.float64, "device": self.market.known.device}
        cash = torch.full((agents, episodes), START_CASH, **options)  # type: ignore[call-overload]
        shares = torch.zeros((agents, episodes, self.market.assets), **options)  # type: ignore[call-overload]
        return Book(cash, shares)

    def equity(self, book: Book, day: torch.Tensor) -> torch.Tensor:
        """Worth [P, N] at the last known closes of `day` [N]."""
        return book.cash + (book.shares * self.market.known[day]).sum(-1)

    def weights(self, book: Book, day: torch.Tensor) -> torch.Tensor:
        """Share of the equity in each asset, [P, N, A]."""
        return book.shares * self.market.known[day] / self.equity(book, day).unsqueeze(-1)

    def observe(self, book: Book, day: torch.Tensor, left: float) -> torch.Tensor:
        """Portfolio state [P, N, A+2], float32: weights, cash share, share of time left."""
        equity = self.equity(book, day)
        cash = (book.cash / equity).unsqueeze(-1)
        clock = torch.full_like(cash, left)
        return torch.cat([self.weights(book, day), cash, clock], dim=-1).float()

    def targets(self, action: torch.Tensor) -> torch.Tensor:
        """Target weights of actions: none below zero, together at most the exposure cap."""
        wanted = action.double().clamp(0.0, 1.0)
        total = wanted.sum(-1, keepdim=True)
        return wanted * (self.exposure / total.clamp_min(self.exposure))

    def step(
        self, book: Book, day: torch.Tensor, action: torch.Tensor
    ) -> tuple[Book, torch.Tensor]:
        """Go from the close of `day` [N] to the next; returns the book and log returns [P, N]."""
        market, cost = self.market, self.costs_bps / 10_000
        price, tomorrow = market.known[day], day + 1
        before = self.equity(book, day)
        wanted = self.targets(action) * before.unsqueeze(-1) / price.clamp_min(1e-300)
        wanted = torch.where(market.listed[day], wanted, book.shares)

        gone = market.delisted[tomorrow]
        at_open = market.opens[tomorrow]
        fillable = ~torch.isnan(at_open) & ~gone
        at_open = torch.where(fillable, at_open, torch.zeros_like(at_open))
        order = torch.where(fillable, wanted - book.shares, torch.zeros_like(wanted))
        sell = torch.where(gone, book.shares, (-order).clamp_min(0.0))
        sell_price = torch.where(gone, market.known[tomorrow], at_open)
        buy = order.clamp_min(0.0)

        cash = book.cash + (sell * sell_price).sum(-1) * (1 - cost)
        need = (buy * at_open).sum(-1) * (1 + cost)
        share = (cash / need.clamp_min(1e-300)).clamp(0.0, 1.0)
        after = Book((cash - need * share).clamp_min(0.0),
                     book.shares - sell + buy * share.unsqueeze(-1))  # fmt: skip
        equity = self.equity(after, tomorrow)
        return after, torch.log(equity.clamp_min(1e-12) / before)
