"""One generation: play, remember, learn, evolve, inject; broken off, it leaves no trace."""

from __future__ import annotations

from typing import Any

import torch

from trainer import evaluation, rollout
from trainer.environment import Exchange
from trainer.evolution import Ranking, evolve, inject
from trainer.networks import stacked
from trainer.randomness import stream
from trainer.signals import STOP
from trainer.state import TrainState


def advance(state: TrainState, exchange: Exchange) -> dict[str, Any]:
    """Go to the next generation's boundary; returns its entry in the history.

    Raises Interrupted after a signal; the state is then what it was before.
    """
    state.mark()
    try:
        return _advance(state, exchange)
    except BaseException:
        state.rollback()
        raise


def _advance(state: TrainState, exchange: Exchange) -> dict[str, Any]:
    settings, generation = state.settings, state.generation
    population = settings.population
    learner_actor = {name: p.detach() for name, p in state.learners.actor.items()}
    first_days = rollout.starts(
        exchange.market.train, settings.horizon, settings.episodes, settings.seed, generation
    )
    device = exchange.market.inputs.device
    noise_shape = (settings.horizon, settings.learners, settings.episodes, exchange.market.assets)
    noise = torch.randn(noise_shape, generator=stream(settings.seed, "noise", generation))
    played = rollout.play(
        exchange,
        stacked(state.actors, learner_actor),
        first_days,
        settings.horizon,
        settings.context,
        (noise * settings.noise).to(device),
    )
    returns = [float(x) for x in played.returns.tolist()]
    state.replay.add(played.transitions)
    losses = _learn(state, exchange)
    STOP.check()

    fitness = returns[:population]
    ranking = Ranking.of(fitness)
    actors = evolve(state.actors, ranking, settings, generation)
    if settings.learners and (generation + 1) % settings.inject_every == 0:
        actors = inject(actors, state.learners.actor, ranking)
    entry: dict[str, Any] = {
        "generation": generation + 1,
        "starts": [exchange.market.dates[day] for day in first_days],
        "best": fitness[ranking.order[0]],
        "mean": sum(fitness) / population,
        "worst": fitness[ranking.order[-1]],
        "learners": returns[population:],
        "critic_loss": losses,
    }
    champion = ranking.order[0]
    if (generation + 1) % settings.validate_every == 0:
        alone = {name: p[champion : champion + 1] for name, p in actors.items()}
        validation = evaluation.agents_returns(
            exchange, exchange.market.validation, settings.horizon, settings.context, alone
        )
        entry["validation"] = validation[0]
    state.actors, state.champion, state.generation = actors, champion, generation + 1
    state.history.append(entry)
    return entry


def _learn(state: TrainState, exchange: Exchange) -> list[float]:
    """This generation's gradient updates; returns each learner's mean critic loss."""
    settings = state.settings
    if not (settings.learners and settings.updates):
        return [0.0] * settings.learners
    shape = (settings.updates, settings.accumulate, settings.learners, settings.batch)
    draw = stream(settings.seed, "batches", state.generation)
    inputs = exchange.market.inputs
    rows = torch.randint(state.replay.size, shape, generator=draw).to(inputs.device)
    total = torch.zeros(settings.learners, device=inputs.device)
    for update in rows:
        STOP.check()
        batches = [state.replay.sample(part) for part in update]
        total += state.learners.update(inputs, batches)
    return [float(x) for x in (total / settings.updates).tolist()]
