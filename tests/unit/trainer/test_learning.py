"""Evolution, replay and gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.trainer.worlds import SMALL, digest, fresh
from trainer import networks, rollout
from trainer.ddpg import Learners, clip
from trainer.evolution import Ranking, evolve, inject
from trainer.networks import Params, Shape
from trainer.randomness import below, stream
from trainer.replay import Replay
from trainer.signals import STOP, Interrupted
from trainer.training import advance

ACTOR = Shape(inputs=4, context=3, day_width=5, book=4, hidden=7, outputs=2)
CRITIC = Shape(inputs=4, context=3, day_width=5, book=6, hidden=7, outputs=1)


def test_the_population_keeps_its_size_and_the_elites_their_bytes() -> None:
    settings = replace(SMALL, population=10)
    actors = networks.initial(ACTOR, 10, stream(0, "test"))
    ranking = Ranking.of([3.0, 9.0, 1.0, float("nan"), 8.0, 0.0, 2.0, 4.0, 5.0, 6.0])
    assert ranking.order[:2] == (1, 4)
    assert ranking.order[-1] == 3, "a fitness that is no number comes last"
    for generation in range(3):
        after = evolve(actors, ranking, settings, generation)
        for name, params in after.items():
            assert params.shape == actors[name].shape
            assert torch.equal(params[[1, 4]], actors[name][[1, 4]])
        assert not torch.equal(after["day.w"][3], actors["day.w"][3])


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


def test_micro_batches_make_the_same_update_as_one_batch() -> None:
    one, two = (learners(count=1, clip=0.5) for _ in range(2))
    inputs, batch = market_and_batch(1, 8)
    one.update(inputs, [batch])
    two.update(inputs, [{k: v[:, :4] for k, v in batch.items()},
                        {k: v[:, 4:] for k, v in batch.items()}])  # fmt: skip
    for name, tensor in one.tensors().items():
        torch.testing.assert_close(tensor, two.tensors()[name], rtol=1e-4, atol=1e-6)


def learners(count: int, clip: float = 0.05) -> Learners:
    settings = replace(SMALL, learners=count, context=3, actor_rate=0.01, critic_rate=0.02,
                       clip=clip, tau=0.1)  # fmt: skip
    return Learners(ACTOR, CRITIC, settings, stream(5, "learners"), torch.device("cpu"))


def market_and_batch(count: int, size: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    draw = stream(6, "batch")
    batch = {
        "day": torch.randint(2, 18, (count, size), generator=draw).int(),
        "book": torch.rand(count, size, 4, generator=draw),
        "next_book": torch.rand(count, size, 4, generator=draw),
        "action": torch.rand(count, size, 2, generator=draw) * 2 - 1,
        "reward": torch.randn(count, size, generator=draw),
        "done": torch.rand(count, size, generator=draw) < 0.3,
    }
    return torch.randn(20, 4, generator=draw), batch


def plain_head(p: Params, window: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """One state of one agent, day after day, as the formula says."""
    codes = [torch.tanh(day @ p["day.w"] + p["day.b"][0]) for day in window]
    x = torch.cat(codes) @ p["window.w"] + book @ p["book.w"] + p["book.b"][0]
    for last in (False, True):
        x = (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + 1e-5)
        x = torch.relu(x)
        if not last:
            x = x @ p["hidden.w"] + p["hidden.b"][0]
    return x @ p["out.w"] + p["out.b"][0]


def test_updates_equal_a_plain_reference_learner_by_learner() -> None:
    count, size = 3, 5
    batched = learners(count)
    groups = ("actor", "critic", "actor_target", "critic_target")
    first = {k: t.clone() for k, t in batched.tensors().items()}
    inputs, batch = market_and_batch(count, size)
    for _ in range(3):
        batched.update(inputs, [batch])
    for i in range(count):
        nets = {g: {n: first[f"{g}/{n}"][i].clone() for n in ACTOR.sizes()} for g in groups}
        for g in ("actor", "critic"):
            for p in nets[g].values():
                p.requires_grad_()
        adams = {"actor": torch.optim.Adam(nets["actor"].values(), lr=0.01),
                 "critic": torch.optim.Adam(nets["critic"].values(), lr=0.02)}  # fmt: skip
        for _ in range(3):
            plain_update(nets, adams, inputs, {k: v[i] for k, v in batch.items()})
        for g in groups:
            for name, expected in nets[g].items():
                torch.testing.assert_close(
                    batched.tensors()[f"{g}/{name}"][i], expected.detach(), rtol=1e-5, atol=1e-5
                )


def plain_update(
    nets: dict[str, Params], adams: dict[str, torch.optim.Adam], inputs: torch.Tensor,
    batch: dict[str, torch.Tensor],
) -> None:  # fmt: skip
    goals, values, size = [], [], len(batch["day"])
    for b in range(size):
        day = int(batch["day"][b])
        now, later = inputs[day - 2 : day + 1], inputs[day - 1 : day + 2]
        with torch.no_grad():
            book = batch["next_book"][b]
            action = torch.tanh(plain_head(nets["actor_target"], later, book))
            future = plain_head(nets["critic_target"], later, torch.cat([book, action]))[0]
            goal = batch["reward"][b]
            goals.append(goal if batch["done"][b] else goal + SMALL.discount * future)
        known = torch.cat([batch["book"][b], batch["action"][b]])
        values.append(plain_head(nets["critic"], now, known)[0])
    adams["critic"].zero_grad()
    (torch.stack(values) - torch.stack(goals)).square().mean().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(nets["critic"].values(), 0.05)
    adams["critic"].step()
    worth = []
    for b in range(size):
        now, book = inputs[int(batch["day"][b]) - 2 : int(batch["day"][b]) + 1], batch["book"][b]
        action = torch.tanh(plain_head(nets["actor"], now, book))
        worth.append(plain_head(nets["critic"], now, torch.cat([book, action]))[0])
    adams["actor"].zero_grad()
    (-torch.stack(worth).mean()).backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(nets["actor"].values(), 0.05)
    adams["actor"].step()
    with torch.no_grad():
        for g in ("actor", "critic"):
            for name, p in nets[g].items():
                nets[f"{g}_target"][name].lerp_(p, 0.1)


def test_window_codes_of_a_row_of_days_equal_those_of_single_windows() -> None:
    params, days = networks.initial(ACTOR, 2, stream(0, "w")), torch.randn(9, 4)
    row = networks.window_codes(params, networks.day_codes(params, days), 3)
    single = torch.stack([days[i : i + 3] for i in range(7)]).expand(2, -1, -1, -1)
    torch.testing.assert_close(row, networks.sampled_codes(params, single), rtol=1e-5, atol=1e-6)


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


def test_one_generation_is_like_another_and_everybody_plays_the_same_days(tmp_path: Path) -> None:
    current, place = fresh(tmp_path, replace(SMALL, learners=2))
    for _ in range(4):
        entry = advance(current, place)
        assert all(len(p) == SMALL.population for p in current.actors.values())
        days = rollout.starts(place.market.train, SMALL.horizon, SMALL.episodes, SMALL.seed,
                              entry["generation"] - 1)  # fmt: skip
        assert entry["starts"] == [place.market.dates[day] for day in days]
    assert "validation" in entry
    assert len(entry["learners"]) == 2


def test_it_runs_without_learners_and_without_elites_by_share(tmp_path: Path) -> None:
    current, place = fresh(tmp_path, replace(SMALL, learners=0, elites=0.0))
    advance(current, place)
    assert current.generation == 1
    assert "learner.safetensors" not in current.files()
