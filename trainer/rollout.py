"""Episodes: the same starts for every agent of a generation, drawn from a counter.

Agents play in groups of a fixed size, whatever the number of workers: a product of matrices may
round otherwise when its size is another, and fitness must not depend on who plays where.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer import networks
from trainer.environment import Exchange
from trainer.market import Market, Split
from trainer.networks import Params
from trainer.randomness import below
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


class Ahead:
    """The market's part of `length` days of each episode, computed a few days at a time.

    It depends on the day alone, so each day is worked on once, for all states of it; a few days at
    a time stay in the processor's caches, and a year of a whole market needs no gigabyte.
    """

    def __init__(self, params: Params, market: Market, first_days: list[int], length: int) -> None:
        self._params, self._market = params, market
        self._first_days, self._length = first_days, length
        self._block, self._rows = -1, torch.empty(0)

    def at(self, step: int) -> torch.Tensor:
        """[P, N, A, H] of one step."""
        if step // AHEAD != self._block:
            STOP.check()
            self._block = step // AHEAD
            begin = self._block * AHEAD
            self._rows = self.rows(begin, min(AHEAD, self._length - begin))
        return self._rows[:, :, step % AHEAD]

    def rows(self, begin: int, count: int) -> torch.Tensor:
        """[P, N, count, A, H] of `count` steps from `begin`."""
        market, days = self._market, [first + begin for first in self._first_days]
        seen = torch.cat([market.view.row(day, count) for day in days])
        listed = torch.cat([market.present[day : day + count] for day in days])
        part = networks.market_part(self._params, seen, listed, market.places)
        return part.view(len(part), len(days), count, *part.shape[2:])


@torch.no_grad()
def play(
    exchange: Exchange,
    actors: Params,
    first_days: list[int],
    noise: torch.Tensor | None = None,
) -> Experience:
    """All these agents play all episodes together; `noise` [T, P, N, A + 1] is on their scores."""
    agents, episodes, length = len(actors["out.b"]), len(first_days), exchange.rules.length
    ahead = Ahead(actors, exchange.market, first_days, length)
    day = torch.tensor(first_days, device=exchange.market.known.device)
    book = exchange.open_books(agents, episodes)
    seen = exchange.observe(book, day, 1.0)
    steps: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("day", "book", "action", "reward", "next_book")
    }
    for step in range(length):
        STOP.check()
        listed = exchange.market.listed[day]
        loud = None if noise is None else noise[step]
        action = networks.act(actors, ahead.at(step), exchange.beside(seen), listed, loud)
        book, gain = exchange.step(book, day, action, step)
        after = exchange.observe(book, day + 1, 1.0 - (step + 1) / length)
        for name, part in (("day", day.int().expand(agents, -1)), ("book", seen),
                           ("action", action), ("reward", gain), ("next_book", after)):  # fmt: skip
            steps[name].append(part)
        day, seen = day + 1, after
    joined = {name: torch.stack(parts) for name, parts in steps.items()}
    returns = joined["reward"].sum(0)
    joined["reward"] = (joined["reward"] * REWARD_SCALE).float()
    done = torch.zeros((length, agents, episodes), dtype=torch.bool, device=day.device)
    done[-1] = True
    joined["done"] = done
    return Experience(returns, {name: part.flatten(0, 2) for name, part in joined.items()})
