"""What the agents are worth beside policies that know nothing, on days they never trained on.

A split is traded through in one go, costs included; the agents' clock of time left starts anew
every `horizon` days, as in training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from trainer import networks
from trainer.environment import Book, Exchange
from trainer.market import Split
from trainer.networks import Params
from trainer.randomness import stream
from trainer.rollout import market_codes
from trainer.signals import STOP

Policy = Callable[[int, Book, torch.Tensor, torch.Tensor], torch.Tensor]
"""From step, book, day [N] and portfolio state [P, N, K] to an action [P, N, A]."""

BASELINES = ("do-nothing", "buy-and-hold", "equal-weight", "random")


@torch.no_grad()
def trade(
    exchange: Exchange, split: Split, horizon: int, policy: Policy, agents: int = 1
) -> torch.Tensor:
    """Log return [P] of a policy over a whole split."""
    book = exchange.open_books(agents, 1)
    day = torch.tensor([split.first], device=book.cash.device)
    total = torch.zeros_like(book.cash)
    for step in range(split.steps):
        STOP.check()
        seen = exchange.observe(book, day, 1.0 - (step % horizon) / horizon)
        book, gain = exchange.step(book, day, policy(step, book, day, seen))
        total += gain
        day = day + 1
    return total.squeeze(1)


def agents_returns(
    exchange: Exchange, split: Split, horizon: int, context: int, actors: Params
) -> list[float]:
    """Log return of each actor over a split."""
    codes = market_codes(actors, exchange.market.inputs, [split.first], split.steps, context)

    def policy(step: int, _book: Book, _day: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        return networks.act(actors, codes[:, :, step], seen)

    with torch.no_grad():
        result = trade(exchange, split, horizon, policy, len(actors["out.b"]))
    return [float(x) for x in result.tolist()]


def baseline_returns(exchange: Exchange, split: Split, horizon: int, seed: int) -> dict[str, float]:
    """Log return over a split of each policy that looks at nothing."""
    assets = exchange.market.assets
    device = exchange.market.known.device
    noise = torch.rand(split.steps, 1, 1, assets, generator=stream(seed, "random-policy"))
    noise = noise.double().to(device)
    nothing = torch.zeros(1, 1, assets, dtype=torch.float64, device=device)

    def equal(day: torch.Tensor) -> torch.Tensor:
        here = exchange.market.listed[day].double()
        return (here / here.sum(-1, keepdim=True).clamp_min(1.0)).unsqueeze(0)

    policies: dict[str, Policy] = {
        "do-nothing": lambda _step, _book, _day, _seen: nothing,
        "buy-and-hold": lambda step, book, day, _seen: (
            exchange.weights(book, day) if step else equal(day)
        ),
        "equal-weight": lambda _step, _book, day, _seen: equal(day),
        "random": lambda step, _book, _day, _seen: noise[step],
    }
    return {
        name: float(trade(exchange, split, horizon, policies[name]).item()) for name in BASELINES
    }
