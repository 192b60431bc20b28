"""One generation: play, remember, learn, evolve, validate; broken off, it leaves no trace."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from trainer import evaluation, networks, rollout
from trainer.crew import ALONE, Crew
from trainer.environment import Exchange
from trainer.evolution import Births, Ranking, Variation, drawn, evolve, inject, plain
from trainer.networks import Params
from trainer.proximal import Proximal
from trainer.randomness import stream
from trainer.rollout import Experience
from trainer.signals import STOP
from trainer.state import Best, TrainState

Numbers = Iterable[torch.Tensor]
_BESIDE = ThreadPoolExecutor(1, thread_name_prefix="numbers")


def advance(state: TrainState, exchange: Exchange, crew: Crew = ALONE) -> dict[str, Any]:
    """Go to the next generation's boundary; returns its entry in the history.

    Raises Interrupted after a signal; the state is then what it was before.
    """
    state.mark()
    try:
        return _advance(state, exchange, crew)
    except BaseException:
        state.rollback()
        raise


def _advance(state: TrainState, exchange: Exchange, crew: Crew) -> dict[str, Any]:
    settings, generation = state.settings, state.generation
    numbers = _numbers(state)
    first_days = rollout.starts(
        exchange.market.train, exchange.rules.length, settings.episodes, settings.seed, generation
    )
    played = _play(state, exchange, first_days, crew)
    state.replay.add(_joined([one.transitions for one in played]))
    returns = torch.cat([one.returns for one in played]).mean(-1).tolist()
    fitness, tried = returns[: settings.population], returns[settings.population :]
    losses = _learn(state, exchange, crew)
    STOP.check()

    ranking = Ranking.of(fitness)
    champion = ranking.order[0]
    candidates = _candidates(state, ranking)
    best, validation = _validated(state, exchange, candidates, crew)
    population, nets = _next(state, exchange, ranking, played, numbers, crew)
    entry: dict[str, Any] = {
        "generation": generation + 1,
        "starts": [exchange.market.dates[day] for day in first_days],
        "best": fitness[champion],
        "mean": sum(fitness) / len(fitness),
        "worst": fitness[ranking.order[-1]],
        "learners": tried,
        "critic_loss": losses,
    }
    if validation is not None:
        entry["validation"] = validation
    if nets is not None:
        state.learners.take(nets, state.learners.steps)
    state.population, state.best, state.champion = population, best, champion
    state.generation = generation + 1
    state.history.append(entry)
    return entry


def _numbers(state: TrainState) -> Callable[[], Numbers | None]:
    """What evolution draws: while a GPU plays and learns, the CPU has nothing else to do."""
    settings, actors = state.settings, state.actors
    if settings.variation != "plain" or not actors["out.b"].is_cuda:
        return lambda: None
    count = settings.population - settings.elite_count
    return _BESIDE.submit(lambda: [*drawn(actors, count, settings, state.generation)]).result


def _play(
    state: TrainState, exchange: Exchange, first_days: list[int], crew: Crew
) -> list[Experience]:
    """The population in groups, without noise; then learners beside it, with noise."""
    settings = state.settings
    each = rollout.groups(settings.population, settings.group)
    noise = torch.empty(0)
    if beside := bool(state.population and state.learners.count):
        shape = (exchange.rules.length, state.learners.count, settings.episodes,
                 exchange.market.assets + 1)  # fmt: skip
        noise = torch.randn(shape, generator=stream(settings.seed, "noise", state.generation))
        noise = (noise * settings.noise).to(exchange.market.known.device)

    def work(index: int) -> Params:
        if index < len(each):
            actors = rollout.of_group(state.actors, each[index])
            one = rollout.play(exchange, actors, first_days)
        else:
            one = rollout.play(exchange, state.learners.actor, first_days, noise)
        return {"returns": one.returns, **one.transitions}

    parts = crew.gather(len(each) + beside, work)
    return [Experience(part.pop("returns"), part) for part in parts]


def _learn(state: TrainState, exchange: Exchange, crew: Crew) -> list[float]:
    """This generation's gradient updates; returns each learner's mean critic loss."""
    settings, count = state.settings, state.learners.count
    if not (count and settings.updates):
        return [0.0] * count
    shape = (settings.updates, settings.accumulate, count, settings.batch)
    draw = stream(settings.seed, "batches", state.generation)
    device = exchange.market.known.device
    rows = torch.randint(state.replay.size, shape, generator=draw).to(device)
    total = torch.zeros(count, device=device)
    for update in rows:
        STOP.check()
        batches = [state.replay.sample(part) for part in update]
        total += state.learners.update(exchange, batches, crew)
    total = state.learners.come_together(total, crew)
    return [float(x) for x in (total / settings.updates).tolist()]


def _next(
    state: TrainState, exchange: Exchange, ranking: Ranking, played: list[Experience],
    numbers: Callable[[], Numbers | None], crew: Crew,
) -> tuple[Params, dict[str, Params] | None]:  # fmt: skip
    """The next population, and the learners' tensors where they are bound to it."""
    settings, generation = state.settings, state.generation
    births = Births.draw(ranking, settings, generation)
    everyone = not state.population
    actors, nets = state.actors, state.learners.nets
    variation: Variation = partial(plain, numbers=numbers())
    if settings.variation == "proximal" and state.learners.count:
        critics = nets["critic"]
        if not everyone:
            critics = {n: p[:1].expand(settings.population, -1, -1) for n, p in critics.items()}
        variation = Proximal(exchange, _memories(played, settings.population), critics, crew)
    after = evolve(actors, births, settings, generation, variation)
    after = crew.spread(0, after)  # machines of two kinds may round otherwise
    if not everyone:
        due = state.learners.count and (generation + 1) % settings.inject_every == 0
        return (inject(after, state.learners.actor, ranking) if due else after), None
    device = actors["out.b"].device
    parents, slots = births.parents(settings.population).to(device), births.slots.to(device)
    nets["actor"] = after
    for group, params in nets.items():
        if group != "actor":
            for name in params:  # one by one: all at once would be the whole state a third time
                params[name] = params[name][parents]
    for name, p in nets["actor_target"].items():
        p[slots] = after[name][slots]
    return {}, nets


def _candidates(state: TrainState, ranking: Ranking) -> Params:
    """Who may be the best: the elites as they played, and the learners as they are now."""
    elites = torch.tensor(ranking.order[: state.settings.elite_count])
    elites = elites.to(state.actors["out.b"].device)
    chosen = {name: p[elites] for name, p in state.actors.items()}
    if state.population and state.learners.count:
        chosen = networks.stacked(chosen, state.learners.actor)
    return chosen


def _validated(
    state: TrainState, exchange: Exchange, candidates: Params, crew: Crew
) -> tuple[Best, float | None]:
    """The best so far, and what the best candidate is worth if it was time to look."""
    settings, generation = state.settings, state.generation + 1
    if generation % settings.validate_every:
        return state.best, None
    split = exchange.market.validation
    worth = evaluation.agents_returns(exchange, split, candidates, settings.group, crew)
    chosen = Ranking.of(worth).order[0]
    if worth[chosen] <= state.best.validation:
        return state.best, worth[chosen]
    actor = {name: p[chosen : chosen + 1].clone() for name, p in candidates.items()}
    return Best(actor, worth[chosen], generation), worth[chosen]


def _joined(parts: list[rollout.Transitions]) -> rollout.Transitions:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _memories(played: list[Experience], population: int) -> rollout.Transitions:
    """Day [P, M] and book [P, M, K] of what each agent has just played."""
    result: dict[str, list[torch.Tensor]] = {"day": [], "book": []}
    for one in played:
        agents, episodes = one.returns.shape
        for name, parts in result.items():
            column = one.transitions[name]
            steps = column.view(-1, agents, episodes, *column.shape[1:])
            parts.append(steps.transpose(0, 1).flatten(1, 2))
    return {name: torch.cat(parts)[:population] for name, parts in result.items()}
