"""The exchange: hand-computed episodes, and a plain Python exchange beside the batched one."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.unit.trainer.plain import PlainBook, PlainExchange
from tests.unit.trainer.worlds import SMALL, exchange, priced, world
from trainer import features, rollout
from trainer.environment import Book, Exchange, Rules
from trainer.state import fresh

Days = list[list[tuple[float, float] | None]]


def one_step(place: Exchange, book: Book, day: int, *action: float) -> tuple[Book, float]:
    step = torch.tensor(action).view(1, 1, -1)
    after, gain = place.step(book, torch.tensor([day]), step)
    return after, float(gain)


def test_orders_are_filled_at_the_next_open_and_valued_at_its_close() -> None:
    place = Exchange(world([[(10, 10)], [(20, 40)], [(50, 50)]]), Rules())
    book, gain = one_step(place, place.open_books(1, 1), 0, 0.5)
    # 0.05 shares were ordered at the close of 10; at the open of 20 they cost all the cash
    assert book.shares.item() == pytest.approx(0.05)
    assert book.cash.item() == pytest.approx(0.0)
    assert gain == pytest.approx(math.log(2.0))  # 0.05 x 40


def test_a_price_of_tomorrow_changes_no_order_of_today() -> None:
    calm = Exchange(world([[(10, 10)], [(10, 10)], [(10, 10)]]), Rules())
    wild = Exchange(world([[(10, 10)], [(10, 99)], [(1, 1)]]), Rules())
    first, _ = one_step(calm, calm.open_books(1, 1), 0, 0.5)
    second, _ = one_step(wild, wild.open_books(1, 1), 0, 0.5)
    assert torch.equal(first.shares, second.shares)


def test_each_trade_pays_its_costs_in_basis_points() -> None:
    place = Exchange(world([[(10, 10)], [(10, 10)], [(10, 10)]]), Rules(100))
    book, gain = one_step(place, place.open_books(1, 1), 0, 0.5)
    assert book.cash.item() == pytest.approx(1 - 0.5 - 0.005)
    assert gain == pytest.approx(math.log(0.995))
    book, gain = one_step(place, book, 1, 0.0)
    assert book.cash.item() == pytest.approx(0.495 + 0.5 - 0.005)
    assert gain == pytest.approx(math.log(0.99 / 0.995))


def test_purchases_end_where_the_cash_ends() -> None:
    place = Exchange(world([[(10, 10)], [(10, 10)], [(10, 10)]]), Rules(100))
    book, _ = one_step(place, place.open_books(1, 1), 0, 1.0)
    assert book.cash.item() == pytest.approx(0.0, abs=1e-12)
    assert book.shares.item() == pytest.approx(0.1 / 1.01)


def test_target_weights_together_keep_to_the_exposure_cap() -> None:
    place = Exchange(world([[(10, 10)] * 3] * 3), Rules(0, 0.6))
    wanted = place.targets(torch.tensor([[0.9, 0.9, -1.0], [0.1, 0.2, 0.1]]))
    assert wanted[0].tolist() == pytest.approx([0.3, 0.3, 0.0])
    assert wanted[1].tolist() == pytest.approx([0.1, 0.2, 0.1])


def test_a_delisted_series_is_sold_at_its_last_known_price() -> None:
    rows: Days = [[(10, 10), (1, 1)], [(10, 12), (1, 1)], [None, (1, 1)], [None, (1, 1)]]
    place = Exchange(world(rows), Rules(100))
    book, _ = one_step(place, place.open_books(1, 1), 0, 0.5, 0.0)
    cash = book.cash.item()
    book, _ = one_step(place, book, 1, 0.5, 0.0)
    assert book.shares[0, 0].tolist() == [0.0, 0.0]
    assert book.cash.item() == pytest.approx(cash + 0.05 * 12 * 0.99)


def test_a_series_that_pauses_is_kept_and_cannot_be_traded() -> None:
    rows: Days = [[(10, 10)], [(10, 10)], [None], [(20, 20)], [(20, 20)]]
    place = Exchange(world(rows), Rules())
    book, _ = one_step(place, place.open_books(1, 1), 0, 0.5)
    book, gain = one_step(place, book, 1, 0.0)
    assert book.shares.item() == pytest.approx(0.05)
    assert gain == 0.0
    book, gain = one_step(place, book, 2, 0.0)
    assert book.shares.item() == pytest.approx(0.05)
    assert gain == pytest.approx(math.log(1.5))


def test_the_portfolio_is_part_of_the_observation() -> None:
    place = Exchange(world([[(10, 10)], [(10, 30)], [(30, 30)]]), Rules())
    book, _ = one_step(place, place.open_books(1, 1), 0, 0.5)
    seen = place.observe(book, torch.tensor([1]), 0.25)
    # weight, gain of 30 over the 10 paid, one day of an episode of one, cash share, time left
    assert seen.flatten().tolist() == pytest.approx([0.75, math.log(3), 1.0, 0.25, 0.25])
    beside = place.beside(seen)
    assert beside.shape == (1, 1, 1, 5)
    assert torch.equal(beside.flatten(), seen.flatten())


def test_the_largest_wishes_are_the_positions_that_may_be_held() -> None:
    place = Exchange(world([[(10, 10)] * 4] * 3), Rules(max_positions=2))
    wanted = place.targets(torch.tensor([[0.1, 0.3, 0.2, 0.3], [0.2, 0.2, 0.2, 0.9]]))
    assert wanted[0].tolist() == pytest.approx([0.0, 0.3, 0.0, 0.3])
    assert wanted[1].tolist() == pytest.approx([0.2 / 1.1, 0.0, 0.0, 0.9 / 1.1])


def test_a_position_is_sold_at_the_open_after_its_sale_target_was_reached() -> None:
    place = Exchange(
        world([[(10, 10)], [(10, 10)], [(10, 13)], [(14, 11)]]), Rules(sale_target=0.2)
    )
    book, _ = one_step(place, place.open_books(1, 1), 0, 1.0)
    assert (book.shares.item(), book.entry.item(), book.age.item()) == (0.1, 10.0, 1.0)
    book, _ = one_step(place, book, 1, 1.0)
    assert book.shares.item() == pytest.approx(0.1), "the close of 13 was not known before"
    book, gain = one_step(place, book, 2, 1.0)
    assert book.shares.item() == 0.0
    assert book.cash.item() == pytest.approx(1.4), "sold at the open of 14, not at the close of 13"
    assert gain == pytest.approx(math.log(1.4 / 1.3))


def test_a_position_is_sold_after_its_longest_time() -> None:
    place = Exchange(world([[(10, 10)]] * 6), Rules(max_holding=2))
    book, held = place.open_books(1, 1), []
    for day in range(5):
        book, _ = one_step(place, book, day, 0.5)
        held.append(book.age.item())
    assert held == [1.0, 2.0, 0.0, 1.0, 2.0]


def test_in_settlement_nothing_is_bought_and_at_its_end_all_is_sold() -> None:
    place = Exchange(world([[(10, 10)]] * 8), Rules(horizon=2, settlement=3))
    book, held = place.open_books(1, 1), []
    for day, wish in enumerate([0.4, 0.6, 0.9, 0.3, 0.3]):
        action = torch.tensor([wish]).view(1, 1, -1)
        book, _ = place.step(book, torch.tensor([day]), action, day)
        held.append(round(book.shares.item(), 6))
    assert held == [0.04, 0.06, 0.06, 0.03, 0.0]
    assert book.cash.item() == pytest.approx(1.0)


def test_the_entry_price_is_the_mean_of_what_was_paid() -> None:
    place = Exchange(world([[(10, 10)], [(10, 10)], [(20, 20)], [(20, 20)]]), Rules())
    book, _ = one_step(place, place.open_books(1, 1), 0, 0.5)
    book, _ = one_step(place, book, 1, 1.0)
    assert book.entry.item() == pytest.approx(1.0 / book.shares.item())


@pytest.mark.parametrize(
    "rules",
    [
        Rules(25, 0.8, horizon=20),
        Rules(5, 1.0, horizon=12, settlement=8, max_positions=2),
        Rules(0, 0.9, horizon=20, sale_target=0.01, max_holding=4),
    ],
)
def test_the_batch_equals_a_plain_exchange_bit_for_bit(tmp_path: Path, rules: Rules) -> None:
    market = exchange(tmp_path).market
    place, plain, draw = Exchange(market, rules), PlainExchange(market, rules), random.Random(4)
    agents, starts = 3, [5, 60, 90]
    book, day = place.open_books(agents, len(starts)), torch.tensor(starts)
    books = {(p, n): PlainBook(1.0, [0.0] * market.assets) for p in range(agents) for n in range(3)}
    for number in range(rules.length):
        actions = [[[draw.uniform(-1, 1) for _ in range(market.assets)] for _ in starts]
                   for _ in range(agents)]  # fmt: skip
        book, gains = place.step(book, day, torch.tensor(actions, dtype=torch.float64), number)
        for (p, n), before in books.items():
            after, gain = plain.step(before, starts[n] + number, actions[p][n], number)
            books[p, n] = after
            assert book.cash[p, n].item() == after.cash
            assert book.shares[p, n].tolist() == after.shares
            assert book.entry[p, n].tolist() == after.entry
            assert book.age[p, n].tolist() == after.age
            # the logarithm is the C library's there and torch's own here: the last bit may differ
            assert gains[p, n].item() == pytest.approx(gain, rel=1e-13, abs=1e-15)
        day = day + 1
    if rules.settlement:
        assert all(sum(b.shares[i] for i in range(4)) == 0 for b in books.values()), "all sold"


def test_missing_values_never_reach_an_agent(tmp_path: Path) -> None:
    place = exchange(tmp_path)
    assert not bool(place.market.listed.all()), "the market has holes"
    assert bool(torch.isfinite(place.market.view.daily).all())
    current = fresh(SMALL, place, torch.device("cpu"))
    played = rollout.play(place, current.actors, [10, 90])
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
    together = rollout.play(place, current.actors, [10, 50]).returns
    few = {name: p[:2] for name, p in current.actors.items()}
    alone = rollout.play(place, few, [10, 50]).returns
    torch.testing.assert_close(together[:2], alone, rtol=1e-5, atol=1e-7)
