"""The exchange: hand-computed episodes, and a plain Python exchange beside the batched one."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.trainer.worlds import SMALL, exchange, priced, world
from trainer import features, rollout
from trainer.environment import Book, Exchange
from trainer.market import Market
from trainer.state import fresh

Days = list[list[tuple[float, float] | None]]


def one_step(place: Exchange, book: Book, day: int, *action: float) -> tuple[Book, float]:
    step = torch.tensor(action).view(1, 1, -1)
    after, gain = place.step(book, torch.tensor([day]), step)
    return after, float(gain)


def test_orders_are_filled_at_the_next_open_and_valued_at_its_close() -> None:
    place = Exchange(world([[(10, 10)], [(20, 40)], [(50, 50)]]), 0, 1.0)
    book, gain = one_step(place, place.open_books(1, 1), 0, 0.5)
    # 0.05 shares were ordered at the close of 10; at the open of 20 they cost all the cash
    assert book.shares.item() == pytest.approx(0.05)
    assert book.cash.item() == pytest.approx(0.0)
    assert gain == pytest.approx(math.log(2.0))  # 0.05 x 40


def test_a_price_of_tomorrow_changes_no_order_of_today() -> None:
    calm = Exchange(world([[(10, 10)], [(10, 10)], [(10, 10)]]), 0, 1.0)
    wild = Exchange(world([[(10, 10)], [(10, 99)], [(1, 1)]]), 0, 1.0)
    first, _ = one_step(calm, calm.open_books(1, 1), 0, 0.5)
    second, _ = one_step(wild, wild.open_books(1, 1), 0, 0.5)
    assert torch.equal(first.shares, second.shares)


def test_each_trade_pays_its_costs_in_basis_points() -> None:
    place = Exchange(world([[(10, 10)], [(10, 10)], [(10, 10)]]), 100, 1.0)
    book, gain = one_step(place, place.open_books(1, 1), 0, 0.5)
    assert book.cash.item() == pytest.approx(1 - 0.5 - 0.005)
    assert gain == pytest.approx(math.log(0.995))
    book, gain = one_step(place, book, 1, 0.0)
    assert book.cash.item() == pytest.approx(0.495 + 0.5 - 0.005)
    assert gain == pytest.approx(math.log(0.99 / 0.995))


def test_purchases_end_where_the_cash_ends() -> None:
    place = Exchange(world([[(10, 10)], [(10, 10)], [(10, 10)]]), 100, 1.0)
    book, _ = one_step(place, place.open_books(1, 1), 0, 1.0)
    assert book.cash.item() == pytest.approx(0.0, abs=1e-12)
    assert book.shares.item() == pytest.approx(0.1 / 1.01)


def test_target_weights_together_keep_to_the_exposure_cap() -> None:
    place = Exchange(world([[(10, 10)] * 3] * 3), 0, 0.6)
    wanted = place.targets(torch.tensor([[0.9, 0.9, -1.0], [0.1, 0.2, 0.1]]))
    assert wanted[0].tolist() == pytest.approx([0.3, 0.3, 0.0])
    assert wanted[1].tolist() == pytest.approx([0.1, 0.2, 0.1])


def test_a_delisted_series_is_sold_at_its_last_known_price() -> None:
    rows: Days = [[(10, 10), (1, 1)], [(10, 12), (1, 1)], [None, (1, 1)], [None, (1, 1)]]
    place = Exchange(world(rows), 100, 1.0)
    book, _ = one_step(place, place.open_books(1, 1), 0, 0.5, 0.0)
    cash = book.cash.item()
    book, _ = one_step(place, book, 1, 0.5, 0.0)
    assert book.shares[0, 0].tolist() == [0.0, 0.0]
    assert book.cash.item() == pytest.approx(cash + 0.05 * 12 * 0.99)


def test_a_series_that_pauses_is_kept_and_cannot_be_traded() -> None:
    rows: Days = [[(10, 10)], [(10, 10)], [None], [(20, 20)], [(20, 20)]]
    place = Exchange(world(rows), 0, 1.0)
    book, _ = one_step(place, place.open_books(1, 1), 0, 0.5)
    book, gain = one_step(place, book, 1, 0.0)
    assert book.shares.item() == pytest.approx(0.05)
    assert gain == 0.0
    book, gain = one_step(place, book, 2, 0.0)
    assert book.shares.item() == pytest.approx(0.05)
    assert gain == pytest.approx(math.log(1.5))


def test_the_portfolio_is_part_of_the_observation() -> None:
    place = Exchange(world([[(10, 10)], [(10, 30)], [(30, 30)]]), 0, 1.0)
    book, _ = one_step(place, place.open_books(1, 1), 0, 0.5)
    seen = place.observe(book, torch.tensor([1]), 0.25)
    assert seen.flatten().tolist() == pytest.approx([0.75, 0.25, 0.25])


def plain_step(
    market: Market, day: int, cash: float, shares: list[float], action: list[float], cost: float
) -> tuple[float, list[float], float]:
    """The same exchange for one agent, one asset after the other."""
    known, nxt = market.known.tolist(), day + 1
    opens, listed = market.opens.tolist(), market.listed.tolist()
    gone = market.delisted.tolist()
    before = cash + sum(s * p for s, p in zip(shares, known[day], strict=True))
    wish = [min(max(a, 0.0), 1.0) for a in action]
    scale = 0.8 / max(sum(wish), 0.8)
    buys, after = [0.0] * len(shares), list(shares)
    for i, weight in enumerate(wish):
        target = weight * scale * before / known[day][i] if listed[day][i] else shares[i]
        if gone[nxt][i]:
            cash += shares[i] * known[nxt][i] * (1 - cost)
            after[i] = 0.0
        elif not math.isnan(opens[nxt][i]):
            if target < shares[i]:
                cash += (shares[i] - target) * opens[nxt][i] * (1 - cost)
                after[i] = target
            else:
                buys[i] = target - shares[i]
    need = sum(b * o for b, o in zip(buys, opens[nxt], strict=True) if b) * (1 + cost)
    part = min(1.0, cash / need) if need > 0 else 1.0
    after = [s + b * part for s, b in zip(after, buys, strict=True)]
    cash -= need * part
    equity = cash + sum(s * p for s, p in zip(after, known[nxt], strict=True))
    return cash, after, math.log(equity / before)


def test_the_batch_equals_a_plain_exchange_agent_by_agent(tmp_path: Path) -> None:
    market = exchange(tmp_path).market
    place, draw = Exchange(market, 25, 0.8), random.Random(4)
    agents, starts, steps = 3, [5, 60, 90], 20
    book, day = place.open_books(agents, len(starts)), torch.tensor(starts)
    plain = {(p, n): (1.0, [0.0] * market.assets) for p in range(agents) for n in range(3)}
    for step in range(steps):
        actions = [[[draw.uniform(-1, 1) for _ in range(market.assets)] for _ in starts]
                   for _ in range(agents)]  # fmt: skip
        book, gains = place.step(book, day, torch.tensor(actions, dtype=torch.float64))
        for (p, n), (before, held) in plain.items():
            cash, shares, gain = plain_step(
                market, starts[n] + step, before, held, actions[p][n], 0.0025
            )
            plain[p, n] = (cash, shares)
            assert gains[p, n].item() == pytest.approx(gain, abs=1e-12)
            assert book.shares[p, n].tolist() == pytest.approx(shares, abs=1e-12)
        day = day + 1


def test_missing_values_never_reach_an_agent(tmp_path: Path) -> None:
    place = exchange(tmp_path)
    assert not bool(place.market.listed.all()), "the market has holes"
    assert bool(torch.isfinite(place.market.inputs).all())
    current = fresh(SMALL, place, torch.device("cpu"))
    played = rollout.play(place, current.actors, [10, 90], 10, SMALL.context)
    assert all(bool(torch.isfinite(part.float()).all()) for part in played.transitions.values())
    assert bool(torch.isfinite(played.returns).all())


def test_features_look_back_only_and_statistics_come_from_training_days(tmp_path: Path) -> None:
    table = priced([[(10 + day % 7, 11 + day % 5)] for day in range(60)])
    whole = features.compute(table.values)
    cut = features.compute(table.values[:40])
    torch.testing.assert_close(torch.tensor(whole[:40]), torch.tensor(cut), equal_nan=True)
    _, mean, deviation = features.standardise(whole, 30)
    again = features.standardise(whole[:30], 30)
    assert mean.tolist() == again[1].tolist()
    assert deviation.tolist() == again[2].tolist()


def test_every_agent_sees_the_same_starts_whatever_the_population(tmp_path: Path) -> None:
    market = exchange(tmp_path).market
    first = rollout.starts(market.train, 10, 4, seed=1, generation=7)
    assert first == rollout.starts(market.train, 10, 6, seed=1, generation=7)[:4]
    assert first != rollout.starts(market.train, 10, 4, seed=1, generation=8)
    assert all(market.train.first <= day <= market.train.last - 9 for day in first)


def test_an_agents_fitness_does_not_depend_on_who_plays_beside_it(tmp_path: Path) -> None:
    place = exchange(tmp_path)
    current = fresh(replace(SMALL, population=6), place, torch.device("cpu"))
    together = rollout.play(place, current.actors, [10, 50], 10, SMALL.context).returns
    few = {name: p[:2] for name, p in current.actors.items()}
    alone = rollout.play(place, few, [10, 50], 10, SMALL.context).returns
    torch.testing.assert_close(together[:2], alone, rtol=1e-5, atol=1e-7)
