"""The trainer's mathematics once more, plainly: one agent, one series, one number at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from trainer.environment import Exchange, Rules
from trainer.market import Market
from trainer.networks import Params
from trainer.view import spans


@dataclass
class PlainBook:
    """One agent's belongings in one episode."""

    cash: float
    shares: list[float]
    entry: list[float] = field(default_factory=list)
    age: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.entry = self.entry or [0.0] * len(self.shares)
        self.age = self.age or [0.0] * len(self.shares)


class PlainExchange:
    """The same exchange for one agent, one asset after the other."""

    def __init__(self, market: Market, rules: Rules) -> None:
        self.rules = rules
        self.known, self.opens = market.known.tolist(), market.opens.tolist()
        self.listed, self.gone = market.listed.tolist(), market.delisted.tolist()

    def equity(self, book: PlainBook, day: int) -> float:
        total = 0.0
        for shares, price in zip(book.shares, self.known[day], strict=True):
            total += shares * price
        return book.cash + total

    def targets(self, action: list[float]) -> list[float]:
        wish = [min(max(a, 0.0), 1.0) for a in action]
        if self.rules.max_positions:
            order = sorted(range(len(wish)), key=lambda i: (-wish[i], i))
            for i in order[self.rules.max_positions :]:
                wish[i] = 0.0
        total = 0.0
        for w in wish:
            total += w
        return [w * self.rules.exposure / max(total, self.rules.exposure) for w in wish]

    def step(
        self, book: PlainBook, day: int, action: list[float], number: int
    ) -> tuple[PlainBook, float]:
        rules, cost, before = self.rules, self.rules.costs_bps / 10_000, self.equity(book, day)
        after = PlainBook(book.cash, list(book.shares), list(book.entry), list(book.age))
        sold, need, buys = 0.0, 0.0, [0.0] * len(action)
        for i, weight in enumerate(self.targets(action)):
            held, price, fill = book.shares[i], self.known[day][i], self.opens[day + 1][i]
            wanted = held
            if self.listed[day][i]:
                wanted = weight * before / price
                if rules.max_holding and book.age[i] >= rules.max_holding:
                    wanted = 0.0
                if rules.sale_target and held and price >= book.entry[i] * (1 + rules.sale_target):
                    wanted = 0.0
                if number >= rules.horizon:
                    wanted = min(wanted, held)
                if rules.settlement and number == rules.length - 1:
                    wanted = 0.0
            if self.gone[day + 1][i]:
                sold += held * self.known[day + 1][i]
                after.shares[i] = 0.0
            elif not math.isnan(fill) and wanted < held:
                sold += (held - wanted) * fill
                after.shares[i] = held - (held - wanted)
            elif not math.isnan(fill):
                buys[i] = wanted - held
                need += buys[i] * fill
        after.cash += sold * (1 - cost)
        need *= 1 + cost
        part = min(after.cash / need, 1.0) if need > 0 else 1.0
        after.cash = max(after.cash - need * part, 0.0)
        for i, buy in enumerate(buys):
            kept, bought, fill = after.shares[i], buy * part, self.opens[day + 1][i]
            paid = kept * book.entry[i] + (bought * fill if bought else 0.0)
            after.shares[i] = kept + bought
            after.entry[i] = paid / after.shares[i] if after.shares[i] > 0 else 0.0
            after.age[i] = (book.age[i] if kept > 0 else 0.0) + 1 if after.shares[i] > 0 else 0.0
        return after, math.log(max(self.equity(after, day + 1), 1e-12) / before)


def seen_of(market: Market, day: int, series: int) -> torch.Tensor:
    """What is seen of one series: the mean of each span of days, the newest first."""
    parts, end = [], day + 1
    for length in spans(market.view.context, market.view.recent):
        parts.append(market.view.daily[end - length : end, series].mean(0))
        end -= length
    return torch.cat(parts)


def settled(x: torch.Tensor) -> torch.Tensor:
    x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
    return torch.relu(x)


def hidden_of(p: Params, place: Exchange, day: int, book: torch.Tensor) -> list[torch.Tensor]:
    """`head`'s hidden vector of each tradable series, of one agent in one state."""
    market = place.market
    first = [
        settled(seen_of(market, day, i) @ p["first.w"] + p["first.b"][0])
        for i in range(len(market.tickers))
    ]
    here = [x for i, x in enumerate(first) if market.present[day, i]]
    climate = torch.stack(here).mean(0) if here else torch.zeros_like(first[0])
    assets, result = market.assets, []
    for a, place_of in enumerate(market.places.tolist()):
        own = torch.stack([book[a], book[assets + a], book[2 * assets + a], book[-2], book[-1]])
        x = first[place_of] @ p["series.w"] + climate @ p["climate.w"]
        x = settled(x + own @ p["book.w"] + p["head.b"][0])
        result.append(settled(x @ p["hidden.w"] + p["hidden.b"][0]))
    return result


def act_of(p: Params, place: Exchange, day: int, book: torch.Tensor) -> torch.Tensor:
    """Target weights of one agent in one state."""
    hidden = hidden_of(p, place, day, book)
    listed = place.market.listed[day].tolist()
    wishes = [(x @ p["out.w"] + p["out.b"][0])[0] for x in hidden]
    cash = (torch.stack(hidden).mean(0) @ p["rest.w"] + p["rest.b"][0])[0]
    total = torch.exp(cash) + sum(torch.exp(w) for w, on in zip(wishes, listed, strict=True) if on)
    zero = torch.zeros(())
    return torch.stack(
        [torch.exp(w) / total if on else zero for w, on in zip(wishes, listed, strict=True)]
    )


def value_of(
    p: Params, place: Exchange, day: int, book: torch.Tensor, action: torch.Tensor
) -> torch.Tensor:
    """What a critic holds an action to be worth."""
    hidden = hidden_of(p, place, day, book)
    worth = (torch.stack(hidden).mean(0) @ p["rest.w"] + p["rest.b"][0])[0]
    for a, x in enumerate(hidden):
        gain, cost, wide = x @ p["out.w"] + p["out.b"][0]
        change = (action[a] - book[a]).abs()
        worth = worth + gain * action[a] - torch.log1p(torch.exp(cost)) * change
        worth = worth - wide * action[a] ** 2
    return worth
