"""The market as tensors: features, prices, and who is listed, split by date."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer import cache, features
from trainer.cache import Prepared
from trainer.errors import BadData, UsageFault
from trainer.reading import read
from trainer.settings import Settings
from trainer.view import View


@dataclass(frozen=True)
class Split:
    """Days [first, last] whose closes an agent may act on; fills reach at most `last` + 1."""

    name: str
    first: int
    last: int

    @property
    def steps(self) -> int:
        """How many decisions fit."""
        return self.last - self.first + 1


@dataclass(frozen=True)
class Market:
    """One data file on one device. D days, S series, A tradable series, I inputs of a day."""

    view: View
    """What agents see: standardised features and a mask of each series; 0 where there is none."""
    present: torch.Tensor
    """[D, S] bool: there is a close that day, of every series."""
    places: torch.Tensor
    """[A]: where the tradable series stand among all."""
    opens: torch.Tensor
    """[D, A] float64, NaN where nothing traded at the open."""
    known: torch.Tensor
    """[D, A] float64: the last known close at each day; 0 before the first."""
    listed: torch.Tensor
    """[D, A] bool: there is a close that day."""
    delisted: torch.Tensor
    """[D, A] bool: the series has ended before that day."""
    dates: tuple[str, ...]
    tickers: tuple[str, ...]
    tradable: tuple[str, ...]
    data_hash: str
    train: Split
    validation: Split
    holdout: Split

    @property
    def assets(self) -> int:
        """Number of tradable series."""
        return len(self.tradable)


def load(path: Path, settings: Settings, device: torch.device) -> Market:
    """The market of a file: from the cache when its content is known, else parsed and cached."""
    content, numbers = cache.prepared(path, read)
    return build(path, numbers, content, settings, device)


def build(
    path: Path, numbers: Prepared, content: str, settings: Settings, device: torch.device
) -> Market:
    """Features, splits and tensors; BadData when there are too few days for the settings."""
    days = len(numbers.dates)
    train_days = int(days * settings.train_share)
    validation_days = int(days * settings.validation_share)
    first = settings.context - 1
    train = Split("train", first, train_days - 2)
    validation = Split("validation", train_days - 1, train_days + validation_days - 2)
    holdout = Split("hold-out", train_days + validation_days - 1, days - 2)
    length = settings.horizon + settings.settlement
    if train.steps < length or validation.steps < 2 or holdout.steps < 2:
        raise BadData(
            path,
            f"{days} days are too few: training has {train_days} of them and needs "
            f"{settings.context + length} (context {settings.context} + an episode's "
            f"{length}), validation and hold-out need 2 each",
        )
    chosen = _tradable(path, numbers, settings)
    inputs = torch.from_numpy(cache.inputs(numbers, train_days)).to(device)
    close, opens = numbers.closes[:, chosen], numbers.opens[:, chosen]
    listed = ~np.isnan(close)
    ended = np.cumsum(listed[::-1], axis=0)[::-1] == 0
    begun = np.cumsum(listed, axis=0) > 0
    known = np.nan_to_num(features.filled(close), nan=0.0)
    return Market(
        view=View.of(inputs, settings.context, settings.recent),
        present=torch.from_numpy(~np.isnan(numbers.closes)).to(device),
        places=torch.tensor(chosen, device=device),
        opens=torch.tensor(opens, device=device),
        known=torch.tensor(known, device=device),
        listed=torch.tensor(listed, device=device),
        delisted=torch.tensor(ended & begun, device=device),
        dates=tuple(numbers.dates),
        tickers=tuple(numbers.tickers),
        tradable=tuple(numbers.tickers[i] for i in chosen),
        data_hash=content,
        train=train,
        validation=validation,
        holdout=holdout,
    )


def _tradable(path: Path, numbers: Prepared, settings: Settings) -> list[int]:
    names = settings.tradable_names or tuple(numbers.tickers)
    unknown = [name for name in names if name not in numbers.tickers]
    if unknown:
        raise UsageFault(f"--tradable: {path} has no series named {', '.join(unknown)}")
    if len(set(names)) < len(names):
        raise UsageFault("--tradable names a series twice")
    chosen = [numbers.tickers.index(name) for name in names]
    for price in (numbers.opens, numbers.closes):
        wrong = np.argwhere(price[:, chosen] <= 0)
        if len(wrong):
            day, which = wrong[0]
            raise UsageFault(
                f"--tradable: {names[which]} has a price of {price[day, chosen[which]]:g} on "
                f"{numbers.dates[day]}, and what is traded must cost something: name those series "
                "that can be traded"
            )
    return chosen
