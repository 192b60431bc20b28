"""What an agent sees of a day: nine numbers per series from its prices and volume.

The indicators are TA-Lib's. Every formula looks back only; it is computed over the days on which a
series has a close, so a gap neither blinds it nor is filled with made-up prices. A day without a
close, and one on which an indicator is not known yet, has no feature (NaN).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Single = NDArray[np.float32]

NAMES = ("return", "return_5", "range", "volume", "rsi", "macd", "macd_signal", "trix", "diff_20")
LIMIT = 5.0  # standard deviations at which a feature is cut off
_DAYS = 64  # that are scaled at a time, so that they stay in the processor's cache


def compute(values: Array, given: Array | None = None) -> Single:
    """Features [days, series, 9] from [days, series, 5] of open, high, low, close, volume.

    `given` [days, series, 5] are a file's own RSI, MACD, MACD signal, TRIX (percent) and distance
    from the 20-day mean, which are taken where there are some.
    """
    import talib

    result = np.full((*values.shape[:2], len(NAMES)), np.nan, dtype=np.float32)
    for series in range(values.shape[1]):
        here = np.flatnonzero(~np.isnan(values[:, series, 3]))
        if here.size:
            own = None if given is None else given[here, series]
            result[here, series] = _series(talib, values[here, series], own)
    return result


def standardise(features: Single, train_days: int) -> tuple[Single, Array, Array]:
    """Zero mean and unit deviation by the first `train_days` days alone, cut at 5 deviations.

    Returns the features with 0 where there is no value, the means and the deviations.
    """
    count = features.shape[-1]
    scaled = np.empty_like(features)
    mean, deviation = np.zeros(count), np.ones(count)
    for index in range(count):  # one at a time: all at once would need memory for all
        train = features[:train_days, :, index].astype(np.float64)
        train = train[~np.isnan(train)]
        if train.size:
            mean[index], spread = train.mean(), train.std()
            deviation[index] = spread if spread > 1e-12 else 1.0
    for begin in range(0, len(features), _DAYS):
        some = features[begin : begin + _DAYS] - mean.astype(np.float32)
        some /= deviation.astype(np.float32)
        np.nan_to_num(np.clip(some, -LIMIT, LIMIT, out=some), copy=False, nan=0.0)
        scaled[begin : begin + _DAYS] = some
    return scaled, mean, deviation


def filled(x: Array) -> Array:
    """Each gap takes the last value before it; NaN before the first."""
    rows = np.where(np.isnan(x), -1, np.arange(len(x)).reshape(-1, *[1] * (x.ndim - 1)))
    last = np.maximum.accumulate(rows, axis=0)
    found = np.take_along_axis(x, np.maximum(last, 0), axis=0)
    return np.where(last >= 0, found, np.nan)


def _series(talib: Any, values: Array, given: Array | None) -> Array:
    """Features [days, 9] of the days on which one series has a close."""
    high, low, close, volume = (np.ascontiguousarray(values[:, i]) for i in (1, 2, 3, 4))
    if given is None:
        macd, signal, _ = talib.MACD(close, 12, 26, 9)
        rsi, trix, apart = talib.RSI(close, 14), talib.TRIX(close, 15), close - talib.SMA(close, 20)
    else:
        rsi, macd, signal, trix, apart = given.T
    with np.errstate(invalid="ignore", divide="ignore"):
        log_close = np.log(close)
        features = np.stack(
            [
                _change(log_close, 1),
                _change(log_close, 5),
                (high - low) / close,
                _against_its_mean(talib, np.log1p(volume)),
                rsi / 100 - 0.5,
                macd / close,
                signal / close,
                trix / 100,
                apart / close,
            ],
            axis=-1,
        )
    features[~np.isfinite(features)] = np.nan
    return features


def _against_its_mean(talib: Any, log_volume: Array) -> Array:
    known = filled(log_volume)
    if np.isnan(known).all():
        return known
    mean: Array = talib.EMA(known, 20)
    return log_volume - mean


def _change(x: Array, days: int) -> Array:
    result = np.full_like(x, np.nan)
    result[days:] = x[days:] - x[:-days]
    return result
