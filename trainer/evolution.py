"""Selection, crossover and mutation of stacked actors; the population never changes its size.

Elites stay in their own slots, untouched, so that their files in two checkpoints are the same
bytes. Every other slot gets a child: a parent chosen by tournament, by chance mixed neuron by
neuron with a second one, by chance mutated.
"""

from __future__ import annotations

import math
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


@torch.no_grad()
def evolve(actors: Params, ranking: Ranking, settings: Settings, generation: int) -> Params:
    """The next population; draws depend on seed and generation alone."""
    seed, size = settings.seed, len(ranking.order)
    place = {agent: rank for rank, agent in enumerate(ranking.order)}
    slots = sorted(ranking.order[settings.elite_count :])
    draw = stream(seed, "evolution", generation)

    def winner(slot: int, parent: int) -> int:
        names = ("tournament", generation, slot, parent)
        entrants = (below(size, seed, *names, i) for i in range(settings.tournament))
        return min(entrants, key=place.__getitem__)

    device = actors["out.b"].device
    first = torch.tensor([winner(slot, 0) for slot in slots], device=device)
    second = torch.tensor([winner(slot, 1) for slot in slots], device=device)
    crossed = torch.rand(len(slots), generator=draw) < settings.crossover
    mutated = torch.rand(len(slots), generator=draw) < settings.mutation
    widths = {layer: actors[name].shape[-1] for name, layer in NEURONS.items()}
    swaps = {
        layer: (torch.rand(len(slots), 1, width, generator=draw) < 0.5) & crossed.view(-1, 1, 1)
        for layer, width in widths.items()
    }
    where = torch.tensor(slots, device=device)
    result = {}
    for name, params in actors.items():
        swap = swaps[NEURONS[name]].to(device)
        child = torch.where(swap, params[second], params[first])
        child = child + _mutation(child, mutated, settings, draw)
        result[name] = params.clone()
        result[name][where] = child
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


def _mutation(
    child: torch.Tensor, mutated: torch.Tensor, settings: Settings, draw: torch.Generator
) -> torch.Tensor:
    """Normal noise on a share of the weights, sized by the layer's own root mean square."""
    hit = torch.rand(child.shape, generator=draw) < settings.mutation_share
    noise = torch.randn(child.shape, generator=draw)
    noise *= (hit & mutated.view(-1, 1, 1)).float() * settings.mutation_scale
    size = child.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp_min(1e-2)
    return noise.to(child.device) * size
