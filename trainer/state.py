"""Everything a run is made of at a generation's boundary, and its digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer import networks
from trainer.ddpg import Learners
from trainer.environment import Exchange
from trainer.networks import Params, Shape
from trainer.randomness import SCHEME, stream
from trainer.replay import Replay
from trainer.settings import Settings

Files = dict[str, dict[str, torch.Tensor]]
"""Tensors by file name and name."""


@dataclass
class TrainState:
    """The population, the learners, the replay buffer and what has been seen so far."""

    settings: Settings
    data_hash: str
    actors: Params
    learners: Learners
    replay: Replay
    generation: int = 0
    champion: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a generation; what is in it follows from settings and data alone."""
    _mark: tuple[Params, dict[str, torch.Tensor]] | None = None

    def mark(self) -> None:
        """Remember this boundary, for `rollback`."""
        learners = {name: t.clone() for name, t in self.learners.tensors().items()}
        self._mark = (self.actors, learners)
        self.replay.mark()

    def rollback(self) -> None:
        """Return to the marked boundary after a generation that was broken off."""
        if self._mark is not None:
            self.actors, learners = self._mark
            self.learners.load(learners)
            self.replay.rollback()

    def files(self) -> Files:
        """A copy on the CPU of all tensors, in the files of a checkpoint: one per agent, so that
        an elite that did not change is the same file again.
        """
        digits = max(2, len(str(self.settings.population - 1)))
        result: Files = {
            f"agents/agent-{i:0{digits}d}.safetensors": {
                name: p[i] for name, p in self.actors.items()
            }
            for i in range(self.settings.population)
        }
        if self.settings.learners:
            result["learner.safetensors"] = self.learners.tensors()
        result["replay.safetensors"] = self.replay.tensors()
        return {
            name: {key: t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()}
            for name, tensors in result.items()
        }

    def load(self, files: Files, saved: Mapping[str, Any]) -> None:
        """Take over a checkpoint's tensors and its state.json."""
        device = self.actors["out.b"].device
        agents = [tensors for name, tensors in sorted(files.items()) if name.startswith("agents/")]
        self.actors = {
            name: torch.stack([agent[name] for agent in agents]).to(device) for name in self.actors
        }
        if self.settings.learners:
            self.learners.load(files["learner.safetensors"])
        self.replay.load(files["replay.safetensors"])
        self.generation = int(saved["generation"])
        self.champion = int(saved["champion"])
        self.history = list(saved["history"])

    def record(self) -> dict[str, Any]:
        """The part of state.json that follows from settings and data alone."""
        return {
            "generation": self.generation,
            "champion": self.champion,
            "data_hash": self.data_hash,
            "random": {"scheme": SCHEME, "seed": self.settings.seed, "counter": self.generation},
            "history": [dict(entry) for entry in self.history],
        }


def fresh(settings: Settings, exchange: Exchange, device: torch.device) -> TrainState:
    """A run at generation 0."""
    market = exchange.market
    sizes = {"inputs": market.inputs.shape[1], "context": settings.context,
             "day_width": settings.day_width, "hidden": settings.hidden}  # fmt: skip
    actor = Shape(**sizes, book=exchange.book_size, outputs=market.assets)
    critic = Shape(**sizes, book=exchange.book_size + market.assets, outputs=1)
    population = networks.initial(actor, settings.population, stream(settings.seed, "population"))
    return TrainState(
        settings=settings,
        data_hash=market.data_hash,
        actors={name: p.to(device) for name, p in population.items()},
        learners=Learners(actor, critic, settings, stream(settings.seed, "learners"), device),
        replay=Replay(settings.replay, exchange.book_size, market.assets, device),
    )


def digest(files: Files, record: Mapping[str, Any], identity: Mapping[str, Any]) -> str:
    """SHA-256 over all tensors, the random state, settings and histories of a run.

    Times, host, paths, the run's name and how long it was asked to train have no part in it: two
    runs that went the same way have the same digest.
    """
    total = hashlib.sha256()
    for file in sorted(files):
        for name, tensor in sorted(files[file].items()):
            total.update(f"{file}\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            total.update(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)
    document = {"record": dict(record), "settings": dict(identity)}
    total.update(json.dumps(document, sort_keys=True).encode())
    return total.hexdigest()
