"""Episodes: the same starts for every agent of a generation, drawn from a counter.

Agents play in groups of a fixed size, whatever the number of workers: a product of matrices may
round otherwise when its size is another, and fitness must not depend on who plays where.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import partial

import torch

from trainer import networks
from trainer.environment import Book, Exchange
from trainer.market import Market, Split
from trainer.networks import Params
from trainer.randomness import below
from trainer.recorder import Tensors, named, under
from trainer.signals import STOP

AHEAD = 8  # days of the market worked on at once
REWARD_SCALE = 100.0  # rewards are log returns in percent

Transitions = dict[str, torch.Tensor]
"""day [M] int32, book and next_book [M, K], action [M, A], reward [M], done [M] bool."""


@dataclass(frozen=True)
class Experience:
    """What came of a generation's episodes: M transitions and each agent's log returns."""

    returns: torch.Tensor
    """[P, N] float64: each agent's log return in each episode."""
    transitions: Transitions
    """In the order of steps, agents, episodes."""


def starts(split: Split, length: int, episodes: int, seed: int, generation: int) -> list[int]:
    """First days of a generation's episodes; they depend on seed, generation and episode alone."""
    room = split.steps - length + 1
    return [
        split.first + below(room, seed, "episode-start", generation, episode)
        for episode in range(episodes)
    ]


def groups(agents: int, size: int) -> list[range]:
    """The agents in groups of `size`; the last may be smaller."""
    return [range(first, min(first + size, agents)) for first in range(0, agents, size)]


def of_group(params: Params, group: range) -> Params:
    """The parameters of some agents, without a copy."""
    return {name: p[group.start : group.stop] for name, p in params.items()}


@dataclass(frozen=True)
class Days:
    """The market of `length` days of each episode, a few days at a time.

    What depends on the day alone is worked on once for all states of it; a few days at a time stay
    in the processor's caches, and a year of a whole market needs no gigabyte.
    """

    market: Market
    first_days: list[int]
    length: int

    def blocks(self) -> Iterator[range]:
        """The steps, a few at a time."""
        return (range(begin, min(begin + AHEAD, self.length))
                for begin in range(0, self.length, AHEAD))  # fmt: skip

    def seen(self, steps: range) -> Tensors:
        """`seen` [N * C, S, I] and `listed` [N * C, S] of C steps of N episodes."""
        spans = [range(first + steps.start, first + steps.stop) for first in self.first_days]
        rows = [self.market.view.row(span.start, len(span)) for span in spans]
        listed = [self.market.present[span.start : span.stop] for span in spans]
        return {"seen": torch.cat(rows), "listed": torch.cat(listed)}

    def part(self, actors: Params, seen: Tensors, count: int) -> torch.Tensor:
        """What `networks.market_part` makes of `count` steps: [P, N, C, A, H]."""
        part = networks.market_part(actors, seen["seen"], seen["listed"], self.market.places)
        return part.view(len(part), len(self.first_days), count, *part.shape[2:])


class Ahead:
    """The market's part of an actor's network, step by step."""

    def __init__(self, params: Params, market: Market, first_days: list[int], length: int) -> None:
        self._params, self._days = params, Days(market, first_days, length)
        self._blocks = self._days.blocks()
        self._block, self._part = range(0), torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """[P, N, A, H] of one step; steps are asked for in their order."""
        while step not in self._block:
            STOP.check()
            self._block = next(self._blocks)
            seen = self._days.seen(self._block)
            self._part = self._days.part(self._params, seen, len(self._block))
        return self._part[:, :, step - self._block.start]


@torch.no_grad()
def trade(
    exchange: Exchange, actors: Params, first_days: list[int], length: int,
    noise: torch.Tensor | None = None,
) -> Iterator[Tensors]:  # fmt: skip
    """All agents trade all episodes together for `length` days; yields some days at a time.

    That is `day` [C, N], `book`, `action`, `next_book` [C, P, N, ...], and `reward` [C, P, N], the
    log returns. Where the days are more than an episode has, its clock starts anew. `noise`
    [T, P, N, A + 1] is on the scores.
    """
    device, rules = exchange.market.known.device, exchange.rules
    day = torch.tensor(first_days, device=device)
    book = exchange.open_books(len(actors["out.b"]), len(first_days))
    state = {**vars(book), "day": day, "portfolio": exchange.observe(book, day, 1.0)}
    days = Days(exchange.market, first_days, length)
    over = [1 if step == length else step % rules.length / rules.length
            for step in range(1, length + 1)]  # fmt: skip
    left = 1.0 - torch.tensor(over, dtype=torch.float64).to(device)
    for block in days.blocks():
        clock = [step % rules.length for step in block]
        given = {**named("actor", actors), **state, **days.seen(block),
                 "left": left[block.start : block.stop]}  # fmt: skip
        if noise is not None:
            given["noise"] = noise[block.start : block.stop]
        key = ("a few days of trading", *(rules.phase(number) for number in clock))
        done = exchange.recorder.run(key, partial(_trade, exchange, days, clock), given)
        state = under("state", done)
        yield under("steps", done)


def _trade(exchange: Exchange, days: Days, clock: list[int], given: Tensors) -> Tensors:
    """Some days of `trade`: what was done, as `steps/...`, and where that led, as `state/...`."""
    actors = under("actor", given)
    part = days.part(actors, given, len(clock))
    book = Book(*(given[field.name] for field in fields(Book)))
    day, seen = given["day"], given["portfolio"]
    steps: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("day", "book", "action", "reward", "next_book")
    }
    for index, number in enumerate(clock):
        STOP.check()
        listed = exchange.market.listed[day]
        loud = given["noise"][index] if "noise" in given else None
        action = networks.act(actors, part[:, :, index], exchange.beside(seen), listed, loud)
        book, gain = exchange.step(book, day, action, number)
        after = exchange.observe(book, day + 1, given["left"][index])
        for name, one in (("day", day), ("book", seen), ("action", action), ("reward", gain),
                          ("next_book", after)):  # fmt: skip
            steps[name].append(one)
        day, seen = day + 1, after
    stacked = {name: torch.stack(each) for name, each in steps.items()}
    state = {**vars(book), "day": day, "portfolio": seen}
    return {**named("steps", stacked), **named("state", state)}


@torch.no_grad()
def play(
    exchange: Exchange,
    actors: Params,
    first_days: list[int],
    noise: torch.Tensor | None = None,
) -> Experience:
    """All these agents play all episodes together; `noise` [T, P, N, A + 1] is on their scores."""
    parts = list(trade(exchange, actors, first_days, exchange.rules.length, noise))
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    shape = joined["reward"].shape
    returns = joined["reward"].sum(0)
    joined["reward"] = (joined["reward"] * REWARD_SCALE).float()
    joined["day"] = joined["day"].int().unsqueeze(1).expand(shape)
    joined["done"] = torch.zeros(shape, dtype=torch.bool, device=returns.device)
    joined["done"][-1] = True
    return Experience(returns, {name: part.flatten(0, 2) for name, part in joined.items()})
