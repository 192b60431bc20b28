"""Evolution, replay and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.trainer.plain import act_of, seen_of, value_of
from tests.unit.trainer.worlds import CPU, SMALL, digest, exchange, fresh
from trainer import networks, proximal, rollout, view
from trainer.ddpg import NETWORKS, Learners, clip
from trainer.environment import Exchange
from trainer.evolution import Births, Ranking, drawn, evolve, inject, plain
from trainer.networks import Params, Shape
from trainer.randomness import below, stream
from trainer.replay import Replay
from trainer.rollout import Transitions
from trainer.signals import STOP, Interrupted
from trainer.state import shapes
from trainer.training import _memories, advance
from trainer.view import View, spans

ACTOR = Shape(inputs=4, book=5, hidden=7, outputs=1)


def test_the_population_keeps_its_size_and_the_elites_their_bytes() -> None:
    settings = replace(SMALL, population=10)
    actors = networks.initial(ACTOR, 10, stream(0, "test"))
    ranking = Ranking.of([3.0, 9.0, 1.0, float("nan"), 8.0, 0.0, 2.0, 4.0, 5.0, 6.0])
    assert ranking.order[:2] == (1, 4)
    assert ranking.order[-1] == 3, "a fitness that is no number comes last"
    for generation in range(3):
        births = Births.draw(ranking, settings, generation)
        after = evolve(actors, births, settings, generation, plain)
        for name, params in after.items():
            assert params.shape == actors[name].shape
            assert torch.equal(params[[1, 4]], actors[name][[1, 4]])
        assert not torch.equal(after["first.w"][3], actors["first.w"][3])


def test_learners_take_the_places_of_the_least_fit_only() -> None:
    actors = networks.initial(ACTOR, 4, stream(0, "test"))
    learners = networks.initial(ACTOR, 1, stream(1, "test"))
    after = inject(actors, learners, Ranking.of([4.0, 1.0, 2.0, 3.0]))
    assert torch.equal(after["out.w"][1], learners["out.w"][0])
    assert torch.equal(after["out.w"][[0, 2, 3]], actors["out.w"][[0, 2, 3]])


def test_draws_are_named_by_counters() -> None:
    assert below(1000, 1, "a", 2) == below(1000, 1, "a", 2)
    assert len({below(10**9, 1, "a", i) for i in range(50)}) == 50
    assert {below(3, 0, "b", i) for i in range(50)} == {0, 1, 2}


def rows(first: int, count: int) -> dict[str, torch.Tensor]:
    numbers = torch.arange(first, first + count)
    return {
        "day": numbers.int(), "reward": numbers.float(), "done": numbers % 2 == 0,
        "book": numbers.float().unsqueeze(1).expand(-1, 3), "action": torch.zeros(count, 2),
        "next_book": torch.zeros(count, 3),
    }  # fmt: skip


def test_the_replay_ring_keeps_the_newest_and_can_be_rolled_back() -> None:
    ring = Replay(5, 3, 2, torch.device("cpu"))
    ring.add(rows(0, 3))
    assert (ring.size, ring.position) == (3, 3)
    ring.add(rows(3, 4))
    assert (ring.size, ring.position) == (5, 2)
    assert sorted(ring.columns["day"].tolist()) == [2, 3, 4, 5, 6]
    ring.mark()
    ring.add(rows(7, 9))
    assert sorted(ring.columns["day"].tolist()) == [11, 12, 13, 14, 15]
    ring.rollback()
    assert sorted(ring.columns["day"].tolist()) == [2, 3, 4, 5, 6]
    other = Replay(5, 3, 2, torch.device("cpu"))
    other.load(ring.tensors())
    assert other.position == 2
    assert torch.equal(other.columns["book"], ring.columns["book"])


def test_a_transition_costs_a_few_bytes_and_holds_no_window() -> None:
    ring = Replay(1000, 18, 16, torch.device("cpu"))
    portfolio = 2 * 18 * 4
    used = sum(c.numel() * c.element_size() for c in ring.columns.values()) / 1000
    assert used - portfolio <= 150


def test_gradients_are_clipped_after_scaling_and_for_each_learner_alone() -> None:
    small, large = torch.full((1, 4), 0.1), torch.full((1, 4), 300.0)
    gradient = torch.cat([small, large]) * 8
    norms = clip([gradient], 1.0, scale=8.0)
    assert norms.tolist() == pytest.approx([0.2, 600.0])
    assert gradient[0].tolist() == pytest.approx([0.1] * 4)
    assert gradient[1].norm().item() == pytest.approx(1.0)


def learners(folder: Path, count: int, **changed: Any) -> tuple[Learners, Exchange]:
    """Learners on the small market, none of whose groups is all of them."""
    settings = replace(SMALL, learners=count, context=5, recent=2, actor_rate=0.01,
                       critic_rate=0.02, tau=0.1, group=2, **changed)  # fmt: skip
    place = exchange(folder, settings)
    actor, critic = shapes(settings, place)
    return Learners(actor, critic, settings, stream(5, "learners"), CPU), place


def batch_of(place: Exchange, count: int, size: int) -> Transitions:
    """Transitions that could have been played, some of them on days with holes."""
    draw, assets = stream(6, "batch"), place.market.assets
    weights = torch.softmax(torch.randn(2, count, size, assets + 1, generator=draw), dim=-1)
    rest = torch.rand(2, count, size, 2 * assets + 2, generator=draw)
    book, after = torch.cat([weights[..., :-1], rest], dim=-1)
    action = torch.softmax(torch.randn(count, size, assets + 1, generator=draw), dim=-1)
    return {
        "day": torch.randint(4, 140, (count, size), generator=draw).int(),
        "book": book, "next_book": after, "action": action[..., :-1],
        "reward": torch.randn(count, size, generator=draw),
        "done": torch.rand(count, size, generator=draw) < 0.3,
    }  # fmt: skip


def named(nets: dict[str, Params]) -> Params:
    return {f"{group}/{key}": p for group, params in nets.items() for key, p in params.items()}


def test_micro_batches_make_the_same_update_as_one_batch(tmp_path: Path) -> None:
    one, place = learners(tmp_path, 1, clip=0.5)
    two, _ = learners(tmp_path, 1, clip=0.5)
    batch = batch_of(place, 1, 8)
    one.update(place, [batch])
    two.update(place, [{k: v[:, :4] for k, v in batch.items()},
                       {k: v[:, 4:] for k, v in batch.items()}])  # fmt: skip
    others = named(two.nets)
    for name, tensor in named(one.nets).items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_updates_equal_a_plain_reference_learner_by_learner(tmp_path: Path, decay: float) -> None:
    count, size, clip_at = 3, 4, 0.05
    batched, place = learners(tmp_path, count, clip=clip_at, decay=decay)
    nets = [
        {group: {k: p[i].clone() for k, p in batched.nets[group].items()} for group in NETWORKS}
        for i in range(count)
    ]
    batch = batch_of(place, count, size)
    for _ in range(3):
        batched.update(place, [batch])
    for i, own in enumerate(nets):
        optimisers = {}
        for group, rate in (("actor", 0.01), ("critic", 0.02)):
            for p in own[group].values():
                p.requires_grad_()
            optimisers[group] = torch.optim.AdamW(own[group].values(), lr=rate, weight_decay=decay)
        for _ in range(3):
            plain_update(own, optimisers, place, {k: v[i] for k, v in batch.items()}, clip_at)
        for group in NETWORKS:
            for name, expected in own[group].items():
                torch.testing.assert_close(
                    batched.nets[group][name][i], expected.detach(), rtol=1e-5, atol=1e-5
                )


def plain_update(
    nets: dict[str, Params], optimisers: dict[str, torch.optim.AdamW], place: Exchange,
    batch: Transitions, clip_at: float,
) -> None:  # fmt: skip
    goals, values, worths = [], [], []
    for b, day in enumerate(batch["day"].tolist()):
        with torch.no_grad():
            book = batch["next_book"][b]
            action = act_of(nets["actor_target"], place, day + 1, book)
            later = value_of(nets["critic_target"], place, day + 1, book, action)
            goal = batch["reward"][b]
            goals.append(goal if batch["done"][b] else goal + SMALL.discount * later)
        values.append(value_of(nets["critic"], place, day, batch["book"][b], batch["action"][b]))
    optimisers["critic"].zero_grad()
    (torch.stack(values) - torch.stack(goals)).square().mean().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(nets["critic"].values(), clip_at)
    optimisers["critic"].step()
    for b, day in enumerate(batch["day"].tolist()):
        action = act_of(nets["actor"], place, day, batch["book"][b])
        worths.append(value_of(nets["critic"], place, day, batch["book"][b], action))
    optimisers["actor"].zero_grad()
    (-torch.stack(worths).mean()).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(nets["actor"].values(), clip_at)
    optimisers["actor"].step()
    with torch.no_grad():
        for group in ("actor", "critic"):
            for name, p in nets[group].items():
                nets[f"{group}_target"][name].lerp_(p, 0.1)


def test_what_was_shared_is_never_written_to(tmp_path: Path) -> None:
    some, place = learners(tmp_path, 2)
    shared = named(some.share())
    before = {name: p.clone() for name, p in shared.items()}
    some.update(place, [batch_of(place, 2, 4)])
    assert all(torch.equal(p, before[name]) for name, p in shared.items())
    assert not torch.equal(some.actor["first.w"], shared["actor/first.w"])


def test_actors_spread_all_they_have_over_listed_series_and_cash(tmp_path: Path) -> None:
    some, place = learners(tmp_path, 2)
    first, days = place.market.train.first, 90
    ahead = rollout.Days(place.market, [first], days)
    rows = ahead.part(some.actor, ahead.seen(range(days)), days)[:, 0]
    listed = place.market.listed[first : first + days]
    assert not bool(listed.all()), "one series is listed late"
    action = networks.act(some.actor, rows, torch.zeros(2, days, place.market.assets, 5), listed)
    assert bool((action >= 0).all())
    assert bool((action.sum(-1) < 1).all())
    assert bool((action.masked_select(~listed.expand_as(action)) == 0).all())


def test_the_spans_of_a_row_of_days_equal_those_of_single_days(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert spans(20, 4) == [1, 1, 1, 1, 2, 4, 8, 2]
    assert spans(3, 4) == [1, 1, 1]
    monkeypatch.setattr(view, "BLOCK", 7)
    market = exchange(tmp_path).market
    kept = market.view
    bare = View(kept.daily, kept.context, kept.recent, None)
    for day in (3, 4, 77):
        expected = torch.stack([seen_of(market, day, i) for i in range(len(market.tickers))])
        for some in (kept, bare):
            torch.testing.assert_close(some.row(day, 9)[0], expected)
            torch.testing.assert_close(some.at(torch.tensor([[9], [day]]))[1, 0], expected)


@pytest.mark.parametrize("scheme", ["injected", "everyone"])
def test_distilled_children_and_safe_mutations_move_the_scores_a_little(
    tmp_path: Path, scheme: str
) -> None:
    settings = replace(SMALL, variation="proximal", scheme=scheme, population=6, crossover=0.0,
                       mutation=1.0, mutation_scale=0.05, batch=32, elites=0.2)  # fmt: skip
    current, place = fresh(tmp_path, settings)
    births = Births.draw(Ranking.of([float(i) for i in range(6)]), settings, 0)
    played = rollout.play(place, current.actors, [10, 60])
    critics = {name: p[:1].expand(6, -1, -1) for name, p in current.learners.nets["critic"].items()}
    vary = proximal.Proximal(place, _memories([played], 6), critics)
    children = vary(current.actors, births, settings, 0)
    parents = {name: p[births.first] for name, p in current.actors.items()}
    seen, listed = place.market.view.row(10, 10), place.market.present[10:20]
    book = torch.zeros(5, 10, place.market.assets, 5)
    moved = [
        networks.scores(p, networks.market_part(p, seen, listed, place.market.places), book)
        for p in (children, parents)
    ]
    change = (moved[0] - moved[1]).square().mean(dim=(1, 2)).sqrt()
    assert bool((change > 0).all())
    assert bool((change < 1.0).all()), change


def test_a_distilled_child_does_what_the_better_parent_does(tmp_path: Path) -> None:
    settings = replace(SMALL, variation="proximal", population=4, crossover=1.0, mutation=0.0,
                       distil_updates=150, actor_rate=0.01, batch=64)  # fmt: skip
    current, place = fresh(tmp_path, settings)
    actors = {name: p.clone() for name, p in current.actors.items()}
    actors["out.b"][1] += 4.0  # an agent that holds shares, beside others that spread evenly
    births = Births(torch.tensor([0]), torch.tensor([0]), torch.tensor([1]), torch.tensor([True]),
                    torch.tensor([False]))  # fmt: skip
    played = rollout.play(place, actors, [10, 60])
    critics = {
        n: p[:1].expand(4, -1, -1).clone() for n, p in current.learners.nets["critic"].items()
    }
    critics["out.b"][..., 0] = 100.0  # it holds shares to be worth more than cash
    child = proximal.Proximal(place, _memories([played], len(actors["out.b"])), critics)(
        actors, births, settings, 0
    )
    three = {name: torch.cat([child[name], p[:2]]) for name, p in actors.items()}
    ahead = rollout.Days(place.market, [30], 10)
    rows = ahead.part(three, ahead.seen(range(10)), 10)[:, 0]
    book = torch.zeros(3, 10, place.market.assets, 5)
    weights = networks.act(three, rows, book, place.market.listed[30:40])
    apart = (weights[0] - weights[1:]).abs().mean(dim=(1, 2))
    assert apart[1] < apart[0] / 3, "it learnt from the second parent what the critic prefers"


@pytest.mark.parametrize("point", [0, 1, 5, 13, 16, 18])
def test_a_generation_broken_off_anywhere_leaves_no_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    current, place = fresh(tmp_path)
    for _ in range(2):
        advance(current, place)
    before = digest(current)
    calls = iter(range(point))

    def check() -> None:
        if next(calls, None) is None:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(STOP, "check", check)
        with pytest.raises(Interrupted):
            advance(current, place)
    assert digest(current) == before
    advance(current, place)
    other, place = fresh(tmp_path)
    for _ in range(3):
        advance(other, place)
    assert digest(current) == digest(other)


@pytest.mark.parametrize("variation", ["plain", "proximal"])
@pytest.mark.parametrize("scheme", ["injected", "everyone"])
def test_one_generation_is_like_another_and_everybody_plays_the_same_days(
    tmp_path: Path, scheme: str, variation: str
) -> None:
    settings = replace(SMALL, learners=2, scheme=scheme, variation=variation)
    current, place = fresh(tmp_path, settings)
    for number in range(4):
        if number == 2:
            current, old = fresh(tmp_path, settings)[0], current
            current.load(old.files(), old.record())
            assert digest(current) == digest(old)
        entry = advance(current, place)
        assert all(len(p) == SMALL.population for p in current.actors.values())
        days = rollout.starts(place.market.train, SMALL.horizon, SMALL.episodes, SMALL.seed,
                              entry["generation"] - 1)  # fmt: skip
        assert entry["starts"] == [place.market.dates[day] for day in days]
    assert "validation" in entry
    assert len(entry["critic_loss"]) == (2 if scheme == "injected" else 5)
    assert current.best.generation in (2, 4)


def test_a_childs_critic_and_moments_are_its_first_parents(tmp_path: Path) -> None:
    current, place = fresh(tmp_path, replace(SMALL, scheme="everyone", updates=1))
    advance(current, place)
    elite = current.champion
    moments = current.learners.nets["actor_mean"]["out.w"]
    assert moments.shape[0] == SMALL.population
    target = current.learners.nets["actor_target"]["out.w"]
    others = [i for i in range(SMALL.population) if i != elite]
    assert torch.equal(target[others], current.actors["out.w"][others])
    assert not torch.equal(target[elite], current.actors["out.w"][elite])


def test_it_runs_without_learners_and_without_elites_by_share(tmp_path: Path) -> None:
    current, place = fresh(tmp_path, replace(SMALL, learners=0, elites=0.0))
    advance(current, place)
    assert current.generation == 1
    assert not [name for name in current.files() if name.startswith("learners/")]


def test_numbers_that_were_drawn_ahead_make_the_same_children(tmp_path: Path) -> None:
    current, _ = fresh(tmp_path, replace(SMALL, crossover=0.5, mutation=0.5))
    settings, actors = current.settings, current.actors
    births = Births.draw(Ranking.of([0.1, 0.2, 0.0, 0.4, 0.3]), settings, 3)
    ahead = [*drawn(actors, len(births.slots), settings, 3)]
    one = plain(actors, births, settings, 3)
    other = plain(actors, births, settings, 3, ahead)
    assert all(torch.equal(one[name], other[name]) for name in actors)
