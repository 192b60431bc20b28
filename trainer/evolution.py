"""Selection, crossover and mutation of stacked actors; the population never changes its size.

Elites stay in their own slots, untouched, so that their files in two checkpoints are the same
bytes. Every other slot gets a child: a parent chosen by tournament, by chance crossed with a second
one, by chance mutated. How two parents are crossed and a child is mutated is `variation`'s: plain
here (neuron by neuron, and noise on a share of the weights), or as in `proximal`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch

from trainer.networks import NEURONS, Params
from trainer.randomness import below, stream
from trainer.settings import Settings


@dataclass(frozen=True)
class Ranking:
    """Agents from the fittest to the least fit; a fitness that is no number comes last."""

    order: tuple[int, ...]

    @staticmethod
    def of(fitness: list[float]) -> Ranking:
        """Rank by fitness; equals by their slot, so that the order is always the same."""

        def worth(i: int) -> float:
            return fitness[i] if math.isfinite(fitness[i]) else -math.inf

        return Ranking(tuple(sorted(range(len(fitness)), key=lambda i: (-worth(i), i))))


@dataclass(frozen=True)
class Births:
    """Who is born where, of whom: slots, their parents, and whom chance crosses and mutates."""

    slots: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    crossed: torch.Tensor
    mutated: torch.Tensor

    @staticmethod
    def draw(ranking: Ranking, settings: Settings, generation: int) -> Births:
        """Draws depend on seed and generation alone; tensors are on the CPU."""
        seed, size = settings.seed, len(ranking.order)
        place = {agent: rank for rank, agent in enumerate(ranking.order)}
        slots = sorted(ranking.order[settings.elite_count :])

        def winner(slot: int, parent: int) -> int:
            names = ("tournament", generation, slot, parent)
            entrants = (below(size, seed, *names, i) for i in range(settings.tournament))
            return min(entrants, key=place.__getitem__)

        chance = torch.rand(2, len(slots), generator=stream(seed, "births", generation))
        return Births(
            torch.tensor(slots),
            torch.tensor([winner(slot, 0) for slot in slots]),
            torch.tensor([winner(slot, 1) for slot in slots]),
            chance[0] < settings.crossover,
            chance[1] < settings.mutation,
        )

    def parents(self, population: int) -> torch.Tensor:
        """For each slot of the next population the agent it descends from first."""
        result = torch.arange(population)
        result[self.slots] = self.first
        return result


Variation = Callable[[Params, Births, Settings, int], Params]
"""From the population and the births of a generation to the children, stacked."""


def evolve(
    actors: Params, births: Births, settings: Settings, generation: int, variation: Variation
) -> Params:
    """The next population."""
    children = variation(actors, births, settings, generation)
    where = births.slots.to(actors["out.b"].device)
    result = {}
    for name, params in actors.items():
        result[name] = params.clone()
        result[name][where] = children[name]
    return result


def drawn(
    actors: Params, count: int, settings: Settings, generation: int
) -> Iterator[torch.Tensor]:
    """The random numbers of `plain` for `count` children, one by one in the order of its needs.

    For each layer [count, 1, W] bool: the neurons that come from the second parent; then for each
    tensor [count, R, C]: normal noise on a share of the weights. They depend on seed and generation
    alone and are made on the CPU, so that a run goes on alike on another kind of GPU.
    """
    draw = stream(settings.seed, "evolution", generation)
    for width in {layer: actors[name].shape[-1] for name, layer in NEURONS.items()}.values():
        yield torch.rand(count, 1, width, generator=draw) < 0.5
    for params in actors.values():
        shape = (count, *params.shape[1:])
        hit = torch.rand(shape, generator=draw) < settings.mutation_share
        noise = torch.randn(shape, generator=draw)
        yield noise.mul_(hit.float() * settings.mutation_scale)


@torch.no_grad()
def plain(
    actors: Params, births: Births, settings: Settings, generation: int,
    numbers: Iterable[torch.Tensor] | None = None,
) -> Params:  # fmt: skip
    """Children of neurons taken by chance from either parent, and of noise.

    `numbers` are those of `drawn`, where somebody has drawn them already.
    """
    device, count = actors["out.b"].device, len(births.slots)
    draws = iter(numbers or drawn(actors, count, settings, generation))
    first, second = births.first.to(device), births.second.to(device)
    crossed, mutated = births.crossed.view(-1, 1, 1), births.mutated.view(-1, 1, 1)
    swaps = {layer: (next(draws) & crossed).to(device) for layer in dict.fromkeys(NEURONS.values())}
    mutated = mutated.float().to(device)
    result = {}
    for name, params in actors.items():
        child = torch.where(swaps[NEURONS[name]], params[second], params[first])
        # noise is sized by the layer's own root mean square
        size = child.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-2)
        result[name] = child + next(draws).to(device) * (size * mutated)
    return result


def inject(actors: Params, learners: Params, ranking: Ranking) -> Params:
    """The learners' actors take the places of the least fit (never an elite's)."""
    count = len(learners["out.b"])
    worst = ranking.order[len(ranking.order) - count :]
    where = torch.tensor(worst, dtype=torch.long, device=actors["out.b"].device)
    result = {name: params.clone() for name, params in actors.items()}
    for name, params in result.items():
        params[where] = learners[name].detach()
    return result
