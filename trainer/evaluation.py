"""What the agents are worth beside policies that know nothing, on days they never trained on.

A split is traded through in one go, costs included; an episode's clock starts anew with every
episode's length, as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from trainer import networks, rollout
from trainer.crew import ALONE, Crew
from trainer.environment import Book, Exchange
from trainer.market import Split
from trainer.networks import Params
from trainer.randomness import stream
from trainer.rollout import Ahead, groups, of_group
from trainer.signals import STOP

Policy = Callable[[int, Book, torch.Tensor, torch.Tensor], torch.Tensor]
"""From step, book, day [N] and portfolio [P, N, K] to target weights [P, N, A]."""

BASELINES = ("do-nothing", "buy-and-hold", "equal-weight", "random")


@dataclass(frozen=True)
class Step:
    """One day of trading: the books before and after, and the log returns [P, 1]."""

    day: int
    before: Book
    after: Book
    gain: torch.Tensor


@torch.no_grad()
def walk(exchange: Exchange, split: Split, policy: Policy, agents: int = 1) -> Iterator[Step]:
    """Trade a policy through a whole split, day by day."""
    book, length = exchange.open_books(agents, 1), exchange.rules.length
    days = torch.arange(split.first, split.last + 1, device=book.cash.device)
    for step in range(split.steps):
        STOP.check()
        day = days[step : step + 1]
        seen = exchange.observe(book, day, 1.0 - (step % length) / length)
        after, gain = exchange.step(book, day, policy(step, book, day, seen), step % length)
        yield Step(split.first + step, book, after, gain)
        book = after


def trade(exchange: Exchange, split: Split, policy: Policy, agents: int = 1) -> torch.Tensor:
    """Log return [P] of a policy over a whole split."""
    gains = [step.gain for step in walk(exchange, split, policy, agents)]
    return torch.stack(gains).sum(0).squeeze(1)


@torch.no_grad()
def policy_of(exchange: Exchange, split: Split, actors: Params) -> Policy:
    """The agents' own policy on a split."""
    ahead = Ahead(actors, exchange.market, [split.first], split.steps)

    @torch.no_grad()
    def policy(step: int, _book: Book, day: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        listed = exchange.market.listed[day]
        return networks.act(actors, ahead.at(step), exchange.beside(seen), listed)

    return policy


def agents_returns(
    exchange: Exchange, split: Split, actors: Params, group_size: int, crew: Crew = ALONE
) -> list[float]:
    """Log return of each actor over a split."""
    each = groups(len(actors["out.b"]), group_size)

    def work(index: int) -> Params:
        some = of_group(actors, each[index])
        parts = rollout.trade(exchange, some, [split.first], split.steps)
        return {"returns": torch.cat([part["reward"] for part in parts]).sum(0).squeeze(1)}

    parts = [part["returns"] for part in crew.gather(len(each), work)]
    return [float(x) for x in torch.cat(parts).tolist()]


def baseline_policies(exchange: Exchange, split: Split, seed: int) -> dict[str, Policy]:
    """The policies that look at nothing."""
    assets = exchange.market.assets
    device = exchange.market.known.device
    noise = torch.rand(split.steps, 1, 1, assets, generator=stream(seed, "random-policy"))
    noise = noise.double().to(device)
    nothing = torch.zeros(1, 1, assets, dtype=torch.float64, device=device)

    def equal(day: torch.Tensor) -> torch.Tensor:
        here = exchange.market.listed[day].double()
        return (here / here.sum(-1, keepdim=True).clamp_min(1.0)).unsqueeze(0)

    return {
        "do-nothing": lambda _step, _book, _day, _seen: nothing,
        "buy-and-hold": lambda step, book, day, _seen: (
            exchange.weights(book, day) if step else equal(day)
        ),
        "equal-weight": lambda _step, _book, day, _seen: equal(day),
        "random": lambda step, _book, _day, _seen: noise[step],
    }


def unruled(exchange: Exchange) -> Exchange:
    """The same costs and cap without periods and limits: what a baseline trades by."""
    rules = replace(exchange.rules, horizon=1, settlement=0, max_positions=0, sale_target=0.0,
                    max_holding=0)  # fmt: skip
    return Exchange(exchange.market, rules)


def baseline_returns(exchange: Exchange, split: Split, seed: int) -> dict[str, float]:
    """Log return over a split of each policy that looks at nothing."""
    free = unruled(exchange)
    policies = baseline_policies(free, split, seed)
    return {name: float(trade(free, split, policies[name]).item()) for name in BASELINES}
