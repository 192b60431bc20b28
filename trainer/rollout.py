"""Episodes: the same starts for every agent of a generation, drawn from a counter."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer import networks
from trainer.environment import Exchange
from trainer.market import Split
from trainer.networks import Params
from trainer.randomness import below
from trainer.signals import STOP

REWARD_SCALE = 100.0  # rewards are log returns in percent


@dataclass(frozen=True)
class Experience:
    """What came of a generation's episodes: M transitions and each agent's mean log return."""

    returns: torch.Tensor
    """[P] float64."""
    transitions: dict[str, torch.Tensor]
    """day [M] int32, book and next_book [M, K], action [M, A], reward [M], done [M] bool."""


def starts(split: Split, horizon: int, episodes: int, seed: int, generation: int) -> list[int]:
    """First days of a generation's episodes; they depend on seed, generation and episode alone."""
    room = split.steps - horizon + 1
    return [
        split.first + below(room, seed, "episode-start", generation, episode)
        for episode in range(episodes)
    ]


def market_codes(
    params: Params, inputs: torch.Tensor, first_days: list[int], horizon: int, context: int
) -> torch.Tensor:
    """The market's hidden part [P, N, T, H] for `horizon` days of each episode."""
    parts = []
    for first in first_days:
        STOP.check()
        days = inputs[first - context + 1 : first + horizon]
        parts.append(networks.window_codes(params, networks.day_codes(params, days), context))
    return torch.stack(parts, dim=1)


@torch.no_grad()
def play(
    exchange: Exchange,
    actors: Params,
    first_days: list[int],
    horizon: int,
    context: int,
    noise: torch.Tensor | None = None,
) -> Experience:
    """All agents play all episodes together; `noise` [T, L, N, A] goes to the last L agents."""
    agents, episodes = len(actors["out.b"]), len(first_days)
    market = market_codes(actors, exchange.market.inputs, first_days, horizon, context)
    day = torch.tensor(first_days, device=market.device)
    book = exchange.open_books(agents, episodes)
    seen = exchange.observe(book, day, 1.0)
    steps: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("day", "book", "action", "reward", "next_book")
    }
    for step in range(horizon):
        STOP.check()
        action = networks.act(actors, market[:, :, step], seen)
        if noise is not None and noise.numel():
            loud = (action[-noise.shape[1] :] + noise[step]).clamp(-1.0, 1.0)
            action = torch.cat([action[: -noise.shape[1]], loud])
        book, gain = exchange.step(book, day, action)
        after = exchange.observe(book, day + 1, 1.0 - (step + 1) / horizon)
        for name, part in (("day", day.int().expand(agents, -1)), ("book", seen),
                           ("action", action), ("reward", gain), ("next_book", after)):  # fmt: skip
            steps[name].append(part)
        day, seen = day + 1, after
    joined = {name: torch.stack(parts) for name, parts in steps.items()}
    returns = joined["reward"].sum(0).mean(-1)
    joined["reward"] = (joined["reward"] * REWARD_SCALE).float()
    done = torch.zeros((horizon, agents, episodes), dtype=torch.bool, device=day.device)
    done[-1] = True
    joined["done"] = done
    return Experience(returns, {name: part.flatten(0, 2) for name, part in joined.items()})
