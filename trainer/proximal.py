"""Crossover and mutation that do not destroy what was learnt (Bodnar, Day and Lio, "Proximal
Distilled Evolutionary Reinforcement Learning", 2020).

Mixing the weights of two deep nets gives a child that can do neither's work. A distilled child
starts as its first parent and learns by imitation, on days that both parents have just played,
whichever parent's action a critic holds to be better. Proximal mutation divides noise by how much
each weight moves the scores (Lehman et al., "Safe mutations", 2018), and then makes its whole size
such that the scores move by about `mutation_scale`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainer import networks
from trainer.crew import ALONE, Crew
from trainer.ddpg import adam
from trainer.environment import Exchange
from trainer.evolution import Births
from trainer.networks import Params
from trainer.randomness import stream
from trainer.rollout import Transitions, groups
from trainer.settings import Settings
from trainer.signals import STOP

PROBES = 8  # random directions in which the scores' sensitivity is felt


@dataclass(frozen=True)
class Proximal:
    """The variation of one generation."""

    exchange: Exchange
    memories: Transitions
    """What each agent has just played: day [P, M], book [P, M, K]."""
    critics: Params
    """[P]: each agent's critic, or one and the same for all."""
    crew: Crew = ALONE

    def __call__(
        self, actors: Params, births: Births, settings: Settings, generation: int
    ) -> Params:
        """The children, group by group."""
        each = groups(len(births.slots), settings.group)
        parts = self.crew.gather(
            len(each), lambda i: self._group(actors, births, each[i], settings, generation)
        )
        return {name: torch.cat([part[name] for part in parts]) for name in actors}

    def _group(
        self, actors: Params, births: Births, group: range, settings: Settings, generation: int
    ) -> Params:
        device = actors["out.b"].device
        first, second = (p[group.start : group.stop].to(device)
                         for p in (births.first, births.second))  # fmt: skip
        crossed, mutated = (c[group.start : group.stop].to(device).view(-1, 1, 1)
                            for c in (births.crossed, births.mutated))  # fmt: skip
        draw = stream(settings.seed, "proximal", generation, group.start)
        parent = {name: p[first] for name, p in actors.items()}
        other = {name: p[second] for name, p in actors.items()}
        child = parent
        if bool(crossed.any()):
            taught = self._distilled(parent, other, first, second, settings, draw)
            child = {name: torch.where(crossed, taught[name], p) for name, p in parent.items()}
        moved = self._mutated(child, first, settings, draw)
        return {name: torch.where(mutated, moved[name], p) for name, p in child.items()}

    def _distilled(
        self, parent: Params, other: Params, first: torch.Tensor, second: torch.Tensor,
        settings: Settings, draw: torch.Generator,
    ) -> Params:  # fmt: skip
        child = {name: p.clone() for name, p in parent.items()}
        mean = {name: torch.zeros_like(p) for name, p in child.items()}
        square = {name: torch.zeros_like(p) for name, p in child.items()}
        critic = {name: p[first] for name, p in self.critics.items()}
        for number in range(settings.distil_updates):
            STOP.check()
            half = max(1, settings.batch // 2)
            played = [self._sample(agents, half, draw) for agents in (first, second)]
            day, book = (torch.cat([p[name] for p in played], dim=1) for name in ("day", "book"))
            with torch.no_grad():
                own, others = (self._act(params, day, book) for params in (parent, other))
                worth = self._worth(critic, day, book, own) - self._worth(critic, day, book, others)
                goal = torch.where((worth >= 0).unsqueeze(-1), own, others)
            leaves = {name: p.detach().requires_grad_() for name, p in child.items()}
            apart: torch.Tensor = self._act(leaves, day, book) - goal
            loss = apart.square().sum(-1).mean(1)
            loss.sum().backward()  # type: ignore[no-untyped-call]
            gradients = {name: p.grad for name, p in leaves.items() if p.grad is not None}
            adam(child, gradients, mean, square, settings.actor_rate, number + 1)
        return child

    def _mutated(
        self, child: Params, first: torch.Tensor, settings: Settings, draw: torch.Generator
    ) -> Params:
        leaves = {name: p.detach().requires_grad_() for name, p in child.items()}
        played = self._sample(first, settings.batch, draw)
        total = self._scores(leaves, played["day"], played["book"]).mean(1)
        felt = {name: torch.zeros_like(p) for name, p in child.items()}
        for _ in range(PROBES):
            STOP.check()
            signs = torch.randint(0, 2, total.shape, generator=draw).mul_(2).sub_(1)
            probe = (total * signs.to(total)).sum()
            slopes = torch.autograd.grad(probe, list(leaves.values()), retain_graph=True)
            for name, slope in zip(leaves, slopes, strict=True):
                felt[name] += slope.square() / PROBES
        change, moves = {}, torch.zeros(len(first), 1, 1, device=total.device)
        for name, p in child.items():
            slope = felt[name].sqrt()
            least = slope.mean(dim=(1, 2), keepdim=True).clamp_min(1e-8)
            change[name] = torch.randn(p.shape, generator=draw).to(p.device) / (slope + least)
            moves += (slope * change[name]).square().sum(dim=(1, 2), keepdim=True)
        size = settings.mutation_scale / moves.sqrt().clamp_min(1e-8)
        return {name: p + size * change[name] for name, p in child.items()}

    def _sample(self, agents: torch.Tensor, count: int, draw: torch.Generator) -> Transitions:
        """`count` of each agent's own transitions."""
        rows = torch.randint(self.memories["day"].shape[1], (len(agents), count), generator=draw)
        rows = rows.to(agents.device)
        return {name: self.memories[name][agents.unsqueeze(1), rows] for name in ("day", "book")}

    def _part(self, params: Params, day: torch.Tensor) -> torch.Tensor:
        market = self.exchange.market
        seen, present = market.view.at(day.long()), market.present[day.long()]
        return networks.market_part(params, seen, present, market.places)

    def _scores(self, params: Params, day: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
        return networks.scores(params, self._part(params, day), self.exchange.beside(book))

    def _act(self, params: Params, day: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
        listed = self.exchange.market.listed[day.long()]
        return networks.act(params, self._part(params, day), self.exchange.beside(book), listed)

    def _worth(
        self, critic: Params, day: torch.Tensor, book: torch.Tensor, action: torch.Tensor
    ) -> torch.Tensor:
        part = self._part(critic, day)
        return networks.value(critic, part, self.exchange.beside(book), action)
