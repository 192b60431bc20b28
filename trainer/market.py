"""The market as tensors: features, prices, and who is listed, split by date.

A data file is parsed once. Its numbers lie as a memory-mappable array named by the SHA-256 of the
file's content, in `.trainer-cache` beside it, or in the user's cache directory where that folder
cannot be written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer import features
from trainer.csv_reader import Table, read_csv
from trainer.errors import BadData, UsageFault
from trainer.settings import Settings
from trainer.view import View

CACHE_FORMAT = "v1"


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


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content; BadData when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as handle:
            for block in iter(lambda: handle.read(1 << 20), b""):
                digest.update(block)
    except OSError as error:
        raise BadData(path, f"cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def load(path: Path, settings: Settings, device: torch.device) -> Market:
    """The market of a file: from the cache when its content is known, else parsed and cached."""
    if path.suffix.lower() in (".parquet", ".pq"):
        raise BadData(path, "Parquet is not read yet: give a long-form CSV file")
    content = file_hash(path)
    table = _from_cache(path, content)
    if table is None:
        table = read_csv(path)
        _to_cache(path, content, table)
    return build(path, table, content, settings, device)


def build(
    path: Path, table: Table, content: str, settings: Settings, device: torch.device
) -> Market:
    """Features, splits and tensors; BadData when there are too few days for the settings."""
    days = len(table.dates)
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
    chosen = _tradable(path, table, settings)
    raw = features.compute(table.values)
    scaled, _, _ = features.standardise(raw, train_days)
    present = ~np.isnan(table.values[:, :, 3])
    inputs = np.concatenate([scaled, present[:, :, None].astype(np.float32)], axis=2)
    close = table.values[:, chosen, 3]
    listed = present[:, chosen]
    ended = np.cumsum(listed[::-1], axis=0)[::-1] == 0
    begun = np.cumsum(listed, axis=0) > 0
    known = np.nan_to_num(features.filled(close), nan=0.0)
    return Market(
        view=View.of(torch.tensor(inputs, device=device), settings.context, settings.recent),
        present=torch.tensor(present, device=device),
        places=torch.tensor(chosen, device=device),
        opens=torch.tensor(table.values[:, chosen, 0], device=device),
        known=torch.tensor(known, device=device),
        listed=torch.tensor(listed, device=device),
        delisted=torch.tensor(ended & begun, device=device),
        dates=tuple(table.dates),
        tickers=tuple(table.tickers),
        tradable=tuple(table.tickers[i] for i in chosen),
        data_hash=content,
        train=train,
        validation=validation,
        holdout=holdout,
    )


def _tradable(path: Path, table: Table, settings: Settings) -> list[int]:
    names = settings.tradable_names or tuple(table.tickers)
    unknown = [name for name in names if name not in table.tickers]
    if unknown:
        raise UsageFault(f"--tradable: {path} has no series named {', '.join(unknown)}")
    if len(set(names)) < len(names):
        raise UsageFault("--tradable names a series twice")
    return [table.tickers.index(name) for name in names]


def _cache_folders(path: Path) -> list[Path]:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return [path.resolve().parent / ".trainer-cache", home / "trainer-data"]


def _from_cache(path: Path, content: str) -> Table | None:
    for folder in _cache_folders(path):
        entry = folder / f"{content}-{CACHE_FORMAT}"
        try:
            names = json.loads((entry / "names.json").read_text(encoding="utf-8"))
            values = np.load(entry / "values.npy", mmap_mode="r", allow_pickle=False)
            if values.shape == (len(names["dates"]), len(names["tickers"]), 5):
                return Table(names["dates"], names["tickers"], values)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # absent or unreadable: the file itself is the truth
    return None


def _to_cache(path: Path, content: str, table: Table) -> None:
    """Write aside and rename; a cache that cannot be written is only slower next time."""
    for folder in _cache_folders(path):
        aside: str | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            aside = tempfile.mkdtemp(prefix=".tmp-", dir=folder)
            np.save(Path(aside) / "values.npy", table.values, allow_pickle=False)
            names = {"dates": table.dates, "tickers": table.tickers}
            (Path(aside) / "names.json").write_text(json.dumps(names), encoding="utf-8")
            entry = folder / f"{content}-{CACHE_FORMAT}"
            with contextlib.suppress(OSError):
                shutil.rmtree(entry)
            Path(aside).rename(entry)
        except OSError:
            if aside is not None:
                shutil.rmtree(aside, ignore_errors=True)
            continue
        return
