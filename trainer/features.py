"""What an agent sees of a day: nine numbers per series from its prices and volume.

Every formula looks back only. A day without a close has no features (NaN); averages carry over
it. Sources: RSI and its smoothing, Wilder (1978); MACD, Appel (1979); TRIX, Hutson (1983).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

NAMES = ("return", "return_5", "range", "volume", "rsi", "macd", "macd_signal", "trix", "diff_20")
LIMIT = 5.0  # standard deviations at which a feature is cut off


def compute(values: Array) -> NDArray[np.float64]:
    """Features [days, series, 9] from [days, series, 5] of open, high, low, close, volume."""
    high, low, close, volume = (values[:, :, i] for i in (1, 2, 3, 4))
    with np.errstate(invalid="ignore", divide="ignore"):
        known = filled(close)
        log_close = np.log(known)
        macd = ema(close, 12) - ema(close, 26)
        signal = ema(np.where(np.isnan(close), np.nan, macd), 9)
        triple = ema(ema(ema(close, 15), 15), 15)
        log_volume = np.log1p(volume)
        features = np.stack(
            [
                _change(log_close, 1),
                _change(log_close, 5),
                (high - low) / close,
                log_volume - ema(log_volume, 20),
                rsi(close, 14) / 100 - 0.5,
                macd / known,
                signal / known,
                _change(np.log(triple), 1),
                np.log(known / rolling_mean(known, 20)),
            ],
            axis=-1,
        )
    features[np.isnan(close)] = np.nan
    return features


def standardise(features: Array, train_days: int) -> tuple[NDArray[np.float32], Array, Array]:
    """Zero mean and unit deviation by the first `train_days` days alone, cut at 5 deviations.

    Returns the features with 0 where there is no value, the means and the deviations.
    """
    train = features[:train_days].reshape(-1, features.shape[-1])
    count = np.maximum((~np.isnan(train)).sum(axis=0), 1)
    mean = np.nansum(train, axis=0) / count
    deviation = np.sqrt(np.nansum((train - mean) ** 2, axis=0) / count)
    deviation = np.where(deviation > 1e-12, deviation, 1.0)
    scaled = np.clip((features - mean) / deviation, -LIMIT, LIMIT)
    return np.nan_to_num(scaled, nan=0.0).astype(np.float32), mean, deviation


def ema(x: Array, span: int) -> Array:
    """Exponential mean with weight 2/(span+1), begun at the first value, carried over gaps."""
    return _smooth(x, 2.0 / (span + 1))


def rsi(close: Array, days: int) -> Array:
    """Wilder's relative strength index, 0 to 100; 50 where nothing moved."""
    change = _change(filled(close), 1)
    change[np.isnan(close)] = np.nan
    rise = _smooth(np.where(np.isnan(change), np.nan, np.maximum(change, 0)), 1 / days)
    fall = _smooth(np.where(np.isnan(change), np.nan, np.maximum(-change, 0)), 1 / days)
    total = rise + fall
    return np.where(total > 0, 100 * rise / np.where(total > 0, total, 1.0), total * 0 + 50)


def rolling_mean(x: Array, days: int) -> Array:
    """Mean of the last `days` rows; NaN until there are as many."""
    result = np.full_like(x, np.nan)
    if len(x) >= days:
        windows = np.lib.stride_tricks.sliding_window_view(x, days, axis=0)
        result[days - 1 :] = windows.mean(axis=-1)
    return result


def _smooth(x: Array, weight: float) -> Array:
    result = np.empty_like(x)
    level = np.full(x.shape[1:], np.nan)
    for day, row in enumerate(x):
        here = ~np.isnan(row)
        begun = ~np.isnan(level)
        level = np.where(here, np.where(begun, level + weight * (row - level), row), level)
        result[day] = level
    return result


def filled(x: Array) -> Array:
    """Each gap takes the last value before it; NaN before the first."""
    rows = np.where(np.isnan(x), -1, np.arange(len(x))[:, None])
    last = np.maximum.accumulate(rows, axis=0)
    filled = np.take_along_axis(x, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, filled, np.nan)


def _change(x: Array, days: int) -> Array:
    result = np.full_like(x, np.nan)
    result[days:] = x[days:] - x[:-days]
    return result
