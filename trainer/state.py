"""Everything a run is made of at a generation's boundary, and its digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer import networks
from trainer.ddpg import MOMENTS, NETWORKS, Learners
from trainer.environment import BOOK_NUMBERS, Exchange
from trainer.errors import UsageFault
from trainer.networks import NEURONS, Params, Shape
from trainer.randomness import SCHEME, stream
from trainer.replay import Replay
from trainer.settings import Settings

Files = dict[str, dict[str, torch.Tensor]]
"""Tensors by file name and name."""
REPLAY = "replay.safetensors"


@dataclass(frozen=True)
class Best:
    """The actor that was worth most on validation so far: what a run is for."""

    actor: Params
    """One agent, stacked."""
    validation: float = -math.inf
    generation: int = 0


@dataclass
class TrainState:
    """The population, the learners, the replay buffer and what has been seen so far."""

    settings: Settings
    data_hash: str
    population: Params
    """The actors; empty where each of them is a learner."""
    learners: Learners
    replay: Replay
    best: Best
    generation: int = 0
    champion: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    """One entry a generation; what is in it follows from settings and data alone."""
    _mark: tuple[Params, dict[str, Params], int] | None = None

    @property
    def actors(self) -> Params:
        """The population's actors."""
        return self.population or self.learners.actor

    @property
    def chosen(self) -> Params:
        """The one actor that the run has come to: the best on validation, else the champion."""
        if self.best.generation:
            return self.best.actor
        return {name: p[self.champion : self.champion + 1] for name, p in self.actors.items()}

    def mark(self) -> None:
        """Remember this boundary, for `rollback`."""
        self._mark = (self.population, self.learners.share(), self.learners.steps)
        self.replay.mark()

    def rollback(self) -> None:
        """Return to the marked boundary after a generation that was broken off."""
        if self._mark is not None:
            self.population, nets, steps = self._mark
            self.learners.take(nets, steps)
            self.replay.rollback()

    def files(self) -> Files:
        """All tensors on the CPU, in the files of a checkpoint: one for each agent and learner, so
        that an elite that did not change is the same file again. Nothing writes to them later.
        """
        return self.snapshot()()

    def snapshot(self) -> Callable[[], Files]:
        """What gives this moment's `files` whenever it is called, in any thread.

        From a GPU they are copied only then, on a stream of their own beside the training.
        """
        nets, actors, best = self.learners.share(), self.actors, self.best.actor
        replay = self.replay.tensors()
        if not self.population:
            del nets["actor"]
        settings, count, device = self.settings, self.learners.count, actors["out.b"].device

        def copied() -> Files:
            own = {group: _here(params) for group, params in nets.items()}
            return {
                **_one_each("agents/agent", {"": _here(actors)}, settings.population),
                **_one_each("learners/learner", own, count),
                "best.safetensors": _here(best),
                REPLAY: _here(replay),
            }

        if device.type != "cuda":
            return copied
        done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record()

        def beside() -> Files:
            stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            with torch.cuda.stream(stream):
                stream.wait_event(done)
                return copied()  # each copy waits for its end

        return beside

    def load(self, files: Files, saved: Mapping[str, Any]) -> None:
        """Take over a checkpoint's tensors and its state.json; UsageFault where they do not fit."""
        self._check_fit(files)
        device = self.best.actor["out.b"].device
        # in the order of NEURONS, by which random numbers are drawn: a file has an order of its own
        drawn = _stacked(files, "agents/", device)
        agents = {name: drawn[name] for name in NEURONS}
        learners = _stacked(files, "learners/", device)
        nets = {
            group: {name: learners[f"{group}/{name}"] for name in NEURONS}
            for group in (*NETWORKS, *MOMENTS)
            if f"{group}/out.b" in learners
        }
        if self.population:
            self.population = agents
        else:
            nets["actor"] = agents
        if self.learners.count:
            self.learners.take(nets, int(saved["updates"]))
        self.replay.load(files[REPLAY])
        best = {name: files["best.safetensors"][name].to(device) for name in NEURONS}
        chosen = saved["best"] or {}
        self.best = Best(best, chosen.get("validation", -math.inf), chosen.get("generation", 0))
        self.generation = int(saved["generation"])
        self.champion = int(saved["champion"])
        self.history = list(saved["history"])

    def _check_fit(self, files: Files) -> None:
        """Refuse tensors of other names, types or sizes than these settings make."""
        own = self.files()
        strange = sorted(set(own) ^ set(files))
        for name in sorted(set(own) & set(files)):
            skip = 1 if name == REPLAY else 0  # as many rows as were filled
            mine, found = (
                {key: (t.dtype, tuple(t.shape[skip:])) for key, t in some[name].items()}
                for some in (own, files)
            )
            if mine != found:
                strange.append(name)
        if not strange and not self.replay.holds(files[REPLAY]):
            strange = [REPLAY]
        if strange:
            raise UsageFault(f"the checkpoint's {strange[0]} does not fit its settings")

    def record(self) -> dict[str, Any]:
        """The part of state.json that follows from settings and data alone."""
        best = {"validation": self.best.validation, "generation": self.best.generation}
        return {
            "generation": self.generation,
            "champion": self.champion,
            "best": best if self.best.generation else None,
            "updates": self.learners.steps,
            "data_hash": self.data_hash,
            "random": {"scheme": SCHEME, "seed": self.settings.seed, "counter": self.generation},
            "history": [dict(entry) for entry in self.history],
        }


def fresh(settings: Settings, exchange: Exchange, device: torch.device) -> TrainState:
    """A run at generation 0."""
    market = exchange.market
    actor, critic = shapes(settings, exchange)
    population: Params = {}
    if settings.scheme == "injected":
        drawn = networks.initial(actor, settings.population, stream(settings.seed, "population"))
        population = {name: p.to(device) for name, p in drawn.items()}
    learners = Learners(actor, critic, settings, stream(settings.seed, "learners"), device)
    first = {name: p[:1].clone() for name, p in (population or learners.actor).items()}
    return TrainState(
        settings=settings,
        data_hash=market.data_hash,
        population=population,
        learners=learners,
        replay=Replay(settings.replay, exchange.book_size, market.assets, device),
        best=Best(first),
    )


def shapes(settings: Settings, exchange: Exchange) -> tuple[Shape, Shape]:
    """Of actors and of critics."""
    sizes = {"inputs": exchange.market.view.width, "book": BOOK_NUMBERS, "hidden": settings.hidden}
    return Shape(**sizes, outputs=1), Shape(**sizes, outputs=3)


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


def _here(tensors: Params) -> Params:
    """On the CPU: each stacked tensor leaves a GPU as one copy."""
    return {name: t.detach().cpu().contiguous() for name, t in tensors.items()}


def _one_each(stem: str, nets: Mapping[str, Params], count: int) -> Files:
    digits = max(2, len(str(count - 1)))
    return {
        f"{stem}-{i:0{digits}d}.safetensors": {
            f"{group}/{name}" if group else name: p[i]
            for group, params in nets.items()
            for name, p in params.items()
        }
        for i in range(count)
    }


def _stacked(files: Files, folder: str, device: torch.device) -> Params:
    each = [tensors for name, tensors in sorted(files.items()) if name.startswith(folder)]
    names = each[0] if each else {}
    return {name: torch.stack([one[name] for one in each]).to(device) for name in names}
