"""The life of a run: settings, data, fresh start or resume, generations, the end."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer import cache, checkpoint, crew, evaluation, market, reading, settings, state, synthetic
from trainer.checkpoint import Loaded
from trainer.crew import Crew
from trainer.display import Display, percent
from trainer.environment import Exchange, Rules
from trainer.errors import BadData, UsageFault
from trainer.saver import Saver
from trainer.settings import DEMO, DEMO_STEP, Settings
from trainer.signals import STOP, Interrupted
from trainer.state import TrainState
from trainer.telemetry import Telemetry
from trainer.training import advance

DEMO_DATA = Path("data/demo.csv")

Watch = Callable[[TrainState], None]


@dataclass(frozen=True)
class Request:
    """What the command line and the environment asked for; `given` has only what was said."""

    given: Mapping[str, str]
    resume: bool
    demo: bool
    checkpoint_dir: Path
    log_dir: Path


def run(request: Request, display: Display, watch: Watch | None = None) -> int:
    """Train; returns the exit code. Raises UsageFault for what a person must change.

    `watch` is called with the state after each generation; what it raises ends the run.
    """
    settings.check(request.given, fresh=not request.resume, demo=request.demo)
    together = crew.join()
    if not together.first:
        display = Display.silent()
    try:
        begun = _again(request) if crew.restarted() else request
        return _run(begun, display, together, watch)
    finally:
        together.leave()


def _again(request: Request) -> Request:
    """What torchrun starts again goes on with the run it had begun."""
    given = dict(request.given)
    if name := given.get("run") or crew.name():
        given["run"] = name
    return replace(request, given=given, resume=True)


def _run(request: Request, display: Display, together: Crew, watch: Watch | None) -> int:
    loaded = together.same(lambda: _find(request, display)) if request.resume else None
    if loaded is None:
        chosen = together.same(lambda: _fresh(request))
    else:
        chosen = _continued(request, loaded)
        if loaded.state["generation"] >= chosen.generations and not request.demo:
            display.say(f"run {chosen.run} is finished: generation {loaded.state['generation']} "
                        f"of {chosen.generations}, {loaded.path}")  # fmt: skip
            return 0
    if request.demo:
        chosen = _demo(request, chosen, loaded)
    device = together.device = _device(chosen, together)
    share = max(1, (os.cpu_count() or 1) // crew.local_size())
    chosen = replace(chosen, threads=chosen.threads or min(4, share))
    _make_exact(chosen, device)
    exchange = together.in_turn(lambda: _exchange(chosen, loaded, device))
    if together.size > 1:
        display.say(f"{together.size} workers")
    _print_settings(request, chosen, exchange, device, display)
    run_dir = request.checkpoint_dir / chosen.run
    with _lock(run_dir) if together.first else contextlib.nullcontext():
        if together.first:
            checkpoint.sweep(run_dir)
        current = state.fresh(chosen, exchange, device)
        if loaded is not None:
            current.load(loaded.files, loaded.state)
            display.say(f"resumed run {chosen.run} at generation {current.generation} "
                        f"from {loaded.path}")  # fmt: skip
        return _train(request, current, exchange, loaded, display, together, watch)


def _train(
    request: Request,
    current: TrainState,
    exchange: Exchange,
    loaded: Loaded | None,
    display: Display,
    together: Crew,
    watch: Watch | None,
) -> int:
    chosen = current.settings
    saver = Saver(request.checkpoint_dir, chosen.run, display.warn, writes=together.first)
    if loaded is not None:
        saver.last = checkpoint.Saved(loaded.path, loaded.state["state_digest"])
        saver.last_generation = current.generation
    logs = Telemetry(request.log_dir / chosen.run, current.generation + 1, display.warn,
                     writes=together.first, wandb=chosen.wandb,
                     config=chosen.as_dict())  # fmt: skip
    overdue = False
    try:
        with display.training(chosen.generations):
            while current.generation < chosen.generations:
                began = time.monotonic()
                with together.generation():
                    entry = advance(current, exchange, together)
                seconds = time.monotonic() - began
                display.generation(entry, seconds)
                now = datetime.datetime.now(datetime.timezone.utc).isoformat()
                logs.generation(entry, {"seconds": round(seconds, 4), "at": now})
                if overdue or current.generation % chosen.checkpoint_every == 0:
                    overdue = not saver.start(current)
                if watch is not None:
                    watch(current)
        results = _results(exchange, current) if together.first else {}
    except Interrupted:
        return _stopped(current, saver, logs, display)
    except BaseException:
        saver.wait()
        logs.close()
        raise
    if not saver.finish(current):
        display.warn("the last checkpoint could not be saved: see above; free some disk space and "
                     "start again with --resume")  # fmt: skip
        return 1
    flat = {f"baseline/{split}/{name}": value
            for split, column in results.items() for name, value in column.items()}  # fmt: skip
    logs.scalars(flat, current.generation)
    logs.close()
    if not together.first:
        return 0
    _summary(current, saver, results, display)
    return 0


def _stopped(current: TrainState, saver: Saver, logs: Telemetry, display: Display) -> int:
    display.say(f"asked to stop: saving generation {current.generation}")
    saved = saver.finish(current)
    logs.close()
    if saved and saver.last is not None:
        display.say(f"saved {saver.last.path}; continue with --resume --run {current.settings.run}")
    return STOP.exit_code


def _find(request: Request, display: Display) -> Loaded | None:
    name = request.given.get("run") or None
    loaded, refused = checkpoint.newest(request.checkpoint_dir, name)
    for line in refused:
        display.warn(f"checkpoint refused: {line}")
    if loaded is None:
        where = request.checkpoint_dir / name if name else request.checkpoint_dir
        display.say(f"nothing to resume in {where}: starting fresh")
    return loaded


def _fresh(request: Request) -> Settings:
    """The settings of a new run."""
    asked = settings.build({**DEMO, **request.given} if request.demo else request.given)
    where = request.checkpoint_dir / asked.run
    if asked.run and checkpoint.has_any(where):
        hint = ("none of its checkpoints is whole: choose another --run" if request.resume
                else "continue it with --resume, or choose another --run")  # fmt: skip
        raise UsageFault(f"--run: {where} exists already; {hint}")
    return replace(asked, run=asked.run or crew.name() or _new_name())


def _continued(request: Request, loaded: Loaded) -> Settings:
    """The run's own settings, with what may change and was said; refuses what may not."""
    saved = settings.from_saved(loaded.state["settings"])
    given = {name: text for name, text in request.given.items() if name != "run"}
    chosen = settings.build(given, base=saved)
    faults = settings.differences(chosen, saved)
    if faults:
        raise UsageFault(*(f"cannot resume {loaded.path}: {fault}" for fault in faults))
    return replace(chosen, run=loaded.path.parent.name)


def _demo(request: Request, chosen: Settings, loaded: Loaded | None) -> Settings:
    """Demo data where none is named; a finished demo goes on for another dozen generations."""
    if loaded is not None and "generations" not in request.given:
        done = int(loaded.state["generation"])
        if done >= chosen.generations:
            chosen = replace(chosen, generations=done + DEMO_STEP)
    if "data" not in request.given:
        chosen = replace(chosen, data=chosen.data or str(DEMO_DATA))
        if Path(chosen.data) == DEMO_DATA and not DEMO_DATA.exists():
            synthetic.write_market(DEMO_DATA, days=750, tickers=6, seed=7)
    return chosen


def _device(chosen: Settings, together: Crew) -> torch.device:
    here = torch.cuda.is_available()
    if chosen.device == "cuda" and not here:
        raise UsageFault("--device: cuda was asked for and torch sees no GPU")
    if chosen.device == "cpu" or not here:
        return torch.device("cpu")
    device = torch.device("cuda", together.local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def _make_exact(chosen: Settings, device: torch.device) -> None:
    """The same numbers each time: fixed threads, deterministic kernels."""
    torch.set_num_threads(chosen.threads)
    # set_deterministic_debug_mode does what use_deterministic_algorithms does, without importing
    # the compiler, which would cost each start a second
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "warn")
    torch.backends.cudnn.benchmark = False
    # nothing here reads what it has not written, so memory need not be filled (torch 2.2 and newer)
    if filling := getattr(torch.utils, "deterministic", None):
        filling.fill_uninitialized_memory = False


def _exchange(chosen: Settings, loaded: Loaded | None, device: torch.device) -> Exchange:
    if not chosen.data:
        raise UsageFault(
            "--data: no market data file was given (python -m trainer make-data FILE writes one, "
            "--demo makes its own)"
        )
    path = Path(chosen.data)
    if not path.is_file():
        raise BadData(path, "there is no such file" if not path.exists() else "is not a file")
    if loaded is not None:
        content, then = cache.content_hash(path), loaded.state["data_hash"]
        if content != then:
            raise UsageFault(
                f"cannot resume {loaded.path}: the data file {path} has SHA-256 {content}, but "
                f"the run was started with {then} ({loaded.state['settings']['data']})"
            )
    reading.warm(path)
    return Exchange(market.load(path, chosen, device), Rules.of(chosen))


@contextlib.contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    """One trainer per run: an advisory lock on the directory itself, gone with the process."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run_dir, os.O_RDONLY)
    except OSError as error:
        raise UsageFault(f"CHECKPOINT_DIR: {run_dir} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageFault(f"--run: another trainer is at work on {run_dir}") from None
    except OSError:
        pass  # a file system without locks: then there is no help
    try:
        yield
    finally:
        os.close(descriptor)


def _results(exchange: Exchange, current: TrainState) -> dict[str, dict[str, float]]:
    """Log returns of the best actor and of the baselines on validation and hold-out."""
    chosen = current.settings
    columns = {}
    for split in (exchange.market.validation, exchange.market.holdout):
        mine = evaluation.agents_returns(exchange, split, current.chosen, chosen.group)
        others = evaluation.baseline_returns(exchange, split, chosen.seed)
        columns[split.name] = {"best": mine[0], **others}
    return columns


def _print_settings(
    request: Request, chosen: Settings, exchange: Exchange, device: torch.device, display: Display
) -> None:
    world = exchange.market
    display.say(f"run {chosen.run} on {device}, torch {torch.__version__}, "
                f"checkpoints in {request.checkpoint_dir}, logs in {request.log_dir}")  # fmt: skip
    days = f"{len(world.dates)} days {world.dates[0]} to {world.dates[-1]}"
    series = f"{len(world.tickers)} series, {world.assets} tradable"
    display.say(f"data {chosen.data}: {days}, {series}")
    shown = " ".join(f"{name}={value}" for name, value in chosen.as_dict().items() if value != "")
    display.say(f"settings: {shown}")


def _summary(
    current: TrainState, saver: Saver, results: dict[str, dict[str, Any]], display: Display
) -> None:
    display.results(results)
    last = current.history[-1]
    display.say(f"run {current.settings.run} finished at generation {current.generation}: "
                f"best fitness {percent(last['best'])}, mean {percent(last['mean'])}")  # fmt: skip
    if saver.last is not None:
        display.say(f"checkpoint {saver.last.path}")
        display.say(f"state_digest {saver.last.state_digest}")


def _new_name() -> str:
    now = datetime.datetime.now(datetime.timezone.utc)
    return f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
