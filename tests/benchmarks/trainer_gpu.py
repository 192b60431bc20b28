"""The trainer on a GPU: speed at scale M, time outside kernels, and how exactly it resumes.

python -m tests.benchmarks.trainer gpu          on a machine with a GPU, some minutes
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer import checkpoint, market, state, synthetic
from trainer.environment import Exchange, Rules
from trainer.saver import Saver
from trainer.session import _make_exact
from trainer.settings import Settings
from trainer.state import TrainState
from trainer.training import advance

GENERATIONS = 5


def gpu(
    settings: Settings, whole_market: Callable[[torch.device], tuple[Settings, Exchange]]
) -> None:
    """Everything about the first GPU; says so where there is none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the command line does
    if not torch.cuda.is_available():
        print("torch sees no GPU here: nothing was measured")
        return
    device = torch.device("cuda", 0)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}")
    settings = replace(settings, threads=2)
    _make_exact(settings, device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.csv"
        synthetic.write_market(path, days=1600, tickers=24, seed=1)
        place = Exchange(market.load(path, settings, device), Rules.of(settings))
        print("scale M:")
        speed(settings, place, device)
        apart, same = resumed_apart(settings, place, device, Path(folder))
    print(f"resumed after 2 of 4 generations: largest difference of a parameter {apart:.3g}, "
          f"fitness {'the same' if same else 'not the same'} bit for bit")  # fmt: skip
    print("full scale:")
    speed(*whole_market(device), device)


def speed(settings: Settings, place: Exchange, device: torch.device) -> None:
    """Time of a generation and of a save, memory, and the share of time outside kernels."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    current = state.fresh(settings, place, device)
    first = _timed(device, lambda: advance(current, place))
    again = _timed(device, lambda: [advance(current, place) for _ in range(GENERATIONS)])
    steps = settings.population * settings.episodes * place.rules.length
    print(f"  one generation {again / GENERATIONS:.3f} s, with {steps:,} environment steps; the "
          f"first, which loads kernels and records them, {first:.2f} s")  # fmt: skip
    copy: list[Callable[[], object]] = []
    stopped = _timed(device, lambda: copy.append(current.snapshot()))
    took = _timed(device, copy[0])
    print(f"  a save stops training for {1000 * stopped:.1f} ms, and copies {1000 * took:.0f} ms "
          "beside it")  # fmt: skip
    if device.type == "cuda":
        print(f"  peak memory of the GPU {torch.cuda.max_memory_allocated() / 1e6:,.0f} MB")
    _kernels(current, place, device)


def resumed_apart(
    settings: Settings, place: Exchange, device: torch.device, folder: Path
) -> tuple[float, bool]:
    """Largest difference of a number between a run and one that was resumed; same histories?"""
    whole = state.fresh(settings, place, device)
    first = state.fresh(settings, place, device)
    for _ in range(4):
        advance(whole, place)
    for _ in range(2):
        advance(first, place)
    if not Saver(folder, "first", print).finish(first):
        raise OSError("the checkpoint could not be written")
    loaded = checkpoint.read(folder / "first/gen-000002")
    again = state.fresh(settings, place, device)
    again.load(loaded.files, loaded.state)
    for _ in range(2):
        advance(again, place)
    one, other = whole.files(), again.files()
    apart = max(
        float((one[file][name].double() - tensor.double()).abs().max())
        for file, tensors in other.items()
        for name, tensor in tensors.items()
    )
    return apart, whole.history == again.history


def _kernels(current: TrainState, place: Exchange, device: torch.device) -> None:
    """The share of a generation in which some kernel was at work, and the longest of them."""
    if device.type != "cuda":
        print("  kernels: there are none without a GPU")
        return
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        took = _timed(device, lambda: advance(current, place))
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events() or []
        if event.device_type == torch._C._autograd.DeviceType.CUDA
    )
    busy, end, by_name = 0.0, 0.0, dict[str, float]()
    for start, stop, name in spans:  # they overlap where there are several streams
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
        by_name[name] = by_name.get(name, 0.0) + stop - start
    share = busy / 1e6 / took
    print(f"  kernels are at work {share:.0%} of a generation, {1 - share:.0%} is outside of them "
          f"({len(spans):,} kernels in {took:.3f} s, with the profiler's own costs)")  # fmt: skip
    for name in sorted(by_name, key=lambda name: -by_name[name])[:5]:
        print(f"    {by_name[name] / 1e3:>9,.1f} ms  {name[:80]}")


def _timed(device: torch.device, work: Any) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
