"""A made market with a signal that can be learnt: each series has a slow drift that persists.

The drift follows d[t+1] = 0.97 d[t] + noise and moves prices by up to half a percent a day, under
daily noise of one percent: past returns tell something of the next days, as momentum would.
"""

from __future__ import annotations

import csv
import datetime
from pathlib import Path

import numpy as np

from trainer.table import COLUMNS

MISSING_CHANCE = 0.005
FIRST_DAY = datetime.date(2015, 1, 2)


def write_market(path: Path, *, days: int, tickers: int, seed: int) -> None:
    """Write a long-form file of business days; the same arguments give the same bytes.

    With four series or more, one is listed late and one is delisted early.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    drift = np.zeros((days, tickers))
    for day in range(1, days):
        drift[day] = 0.97 * drift[day - 1] + 0.0012 * random.standard_normal(tickers)
    moves = np.clip(drift, -0.01, 0.01) + 0.01 * random.standard_normal((days, tickers))
    close = 100 * np.exp(np.cumsum(moves, axis=0))
    opens = np.vstack([np.full((1, tickers), 100.0), close[:-1]])
    opens = opens * np.exp(0.002 * random.standard_normal((days, tickers)))
    spread = np.abs(0.004 * random.standard_normal((2, days, tickers)))
    high = np.maximum(opens, close) * np.exp(spread[0])
    low = np.minimum(opens, close) * np.exp(-spread[1])
    volume = np.exp(11 + 20 * np.abs(moves) + 0.3 * random.standard_normal((days, tickers)))
    listed = random.random((days, tickers)) >= MISSING_CHANCE
    if tickers >= 4:
        listed[: days // 10, tickers - 1] = False
        listed[days * 6 // 10 :, tickers - 2] = False
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(COLUMNS)
        for day, date in enumerate(_business_days(days)):
            for series in np.flatnonzero(listed[day]):
                prices = (a[day, series] for a in (opens, high, low, close))
                cells = [_price(p) for p in prices]
                name = f"S{series:03d}"
                writer.writerow([date, name, *cells, int(volume[day, series])])
    temporary.replace(path)


def _price(value: float) -> str:
    return f"{value:.6f}"


def _business_days(count: int) -> list[str]:
    result: list[str] = []
    day = FIRST_DAY
    while len(result) < count:
        if day.weekday() < 5:
            result.append(day.isoformat())
        day += datetime.timedelta(days=1)
    return result
