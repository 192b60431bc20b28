"""Hyper-parameter search with Optuna: each trial is a run of its own, with checkpoints of its own.

The study is created once, before the workers; they open it by its name. A trial's worth is the best
return on validation; the hold-out is never looked at. A trial that is stopped or lost is queued
again with the same settings and goes on from its newest checkpoint: at once after a signal, after
its heartbeat has been silent for a while when the machine was lost.
"""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from trainer import checkpoint
from trainer.display import Display, percent
from trainer.errors import UsageFault
from trainer.session import Request, run
from trainer.settings import DEMO, build, settings_fields
from trainer.signals import STOP, Interrupted
from trainer.state import TrainState

DEFAULT_SPACE = (
    "actor_rate=1e-4:1e-2:log", "critic_rate=1e-4:1e-2:log", "discount=0.2:0.95",
    "noise=0.2:2", "mutation_scale=0.02:0.5:log", "decay=0:0.3", "hidden=32,64,128",
)  # fmt: skip
HEARTBEAT, GRACE, RETRIES = 10, 40, 20  # seconds, seconds, times
OVER = (TrialState.COMPLETE, TrialState.PRUNED)

Draw = Callable[[optuna.Trial], Any]


@dataclass(frozen=True)
class Plan:
    """What a sweep was asked to do."""

    study: str
    storage: str
    trials: int
    space: tuple[str, ...]
    pruning: bool
    seed: int


def parse_space(lines: Sequence[str]) -> dict[str, Draw]:
    """How each named setting is drawn: NAME=LOW:HIGH, NAME=LOW:HIGH:log or NAME=A,B,C.

    Raises UsageFault naming every line that cannot be used.
    """
    kinds = {f.name: type(f.default) for f in settings_fields() if f.metadata["identity"]}
    space: dict[str, Draw] = {}
    faults = []
    for line in lines:
        name, _, words = line.partition("=")
        name = name.strip().replace("-", "_")
        if name not in kinds:
            faults.append(
                f"--search {line}: there is no setting named {name} that a trial may vary"
            )
            continue
        try:
            space[name] = _draw(name, words, kinds[name])
        except ValueError as error:
            faults.append(f"--search {line}: {error}")
    if faults:
        raise UsageFault(*faults)
    return space


def create(plan: Plan) -> None:
    """Create the study, or find it as it was left; UsageFault where the storage cannot be used."""
    try:
        optuna.create_study(study_name=plan.study, storage=storage(plan.storage),
                            direction="maximize", load_if_exists=True)  # fmt: skip
    except Exception as error:  # noqa: BLE001  (each database has errors of its own)
        raise UsageFault(f"--storage {plan.storage.split('@')[-1]}: {error}") from None


def work(plan: Plan, request: Request, display: Display) -> int:
    """Take trials until there are enough; returns the exit code."""
    space = parse_space(plan.space)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2)
    study = optuna.load_study(
        study_name=plan.study, storage=storage(plan.storage),
        sampler=optuna.samplers.TPESampler(seed=None if plan.seed < 0 else plan.seed),
        pruner=pruner if plan.pruning else optuna.pruners.NopPruner(),
    )  # fmt: skip
    while not STOP.asked:
        optuna.storages.fail_stale_trials(study)
        counted = study.get_trials(deepcopy=False)
        over = sum(trial.state in OVER for trial in counted)
        running = sum(trial.state == TrialState.RUNNING for trial in counted)
        if over >= plan.trials:
            return 0
        if over + running >= plan.trials:
            time.sleep(1)  # another worker has it, or had: then its heartbeat ends
            continue
        with contextlib.suppress(Interrupted):
            study.optimize(lambda trial: _trial(trial, plan, space, request, display), n_trials=1)
    return STOP.exit_code


def start_workers(count: int, arguments: Sequence[str]) -> int:
    """Run this very sweep in `count` processes that only work; returns the worst exit code."""
    command = [sys.executable, "-m", "trainer", *arguments, "--worker"]
    children = [subprocess.Popen(command) for _ in range(count)]
    while any(child.poll() is None for child in children):
        if STOP.asked:
            for child in children:
                child.send_signal(STOP.signal_number)
            break
        time.sleep(0.2)
    return max(abs(child.wait()) for child in children)


def summary(plan: Plan, display: Display) -> None:
    """Say what is known by now."""
    study = optuna.load_study(study_name=plan.study, storage=storage(plan.storage))
    trials = study.get_trials(deepcopy=False)
    counts = {state.name.lower(): sum(t.state == state for t in trials) for state in TrialState}
    told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    display.say(f"study {plan.study}: {told or 'no trials'}")
    done = [t for t in trials if t.state == TrialState.COMPLETE and t.value is not None]
    for trial in sorted(done, key=lambda t: -(t.value or -math.inf))[:5]:
        chosen = "  ".join(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
                           for name, value in trial.params.items())  # fmt: skip
        display.say(f"  {percent(trial.value or 0.0)} on validation  run {_run_name(plan, trial)}"
                    f"  {chosen}")  # fmt: skip


def _trial(
    trial: optuna.Trial, plan: Plan, space: Mapping[str, Draw], request: Request, display: Display
) -> float:
    drawn = {name: str(draw(trial)) for name, draw in space.items()}
    frozen = trial.storage.get_trial(trial._trial_id)
    name, told = _run_name(plan, frozen), max(frozen.intermediate_values, default=-1)
    given = {**(DEMO if request.demo else {}), **request.given, **drawn, "run": name}
    try:
        build(given)
    except UsageFault as fault:
        display.say(f"trial {trial.number}: {fault}: these settings do not go together")
        raise optuna.TrialPruned from None
    display.say(f"trial {trial.number}, run {name}: "
                + " ".join(f"{key}={value}" for key, value in drawn.items()))  # fmt: skip

    def watch(state: TrainState) -> None:
        if "validation" in state.history[-1] and state.generation > told:
            trial.report(state.best.validation, state.generation)
            if plan.pruning and trial.should_prune():
                display.say(f"trial {trial.number}: pruned at generation {state.generation}")
                raise optuna.TrialPruned

    asked = Request(given, True, request.demo, request.checkpoint_dir, request.log_dir)
    code = run(asked, Display.silent(), watch)
    if code >= 128:  # tell the study at once: nobody needs to wait for the heartbeat to fall silent
        _retry()(trial.study, trial.storage.get_trial(trial._trial_id))
        raise Interrupted
    if code:
        raise UsageFault(f"run {name} could not be saved")
    loaded, _ = checkpoint.newest(request.checkpoint_dir, name)
    best = loaded.state["best"] if loaded else None
    if best is None:
        raise UsageFault("--validate-every: no validation took place, so no trial has a worth")
    display.say(f"trial {trial.number}: {percent(best['validation'])} on validation")
    return float(best["validation"])


def _retry() -> RetryHeartbeatStaleTrialCallback:
    return RetryHeartbeatStaleTrialCallback(max_retry=RETRIES, inherit_intermediate_values=True)


def _run_name(plan: Plan, trial: FrozenTrial) -> str:
    """All retries of a trial are one run: the first one's."""
    first = RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return f"{plan.study}-{trial.number if first is None else first:04d}"


def storage(url: str) -> RDBStorage:
    """Where a study lives: heartbeats, and a lost trial queued again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return RDBStorage(
        url, heartbeat_interval=HEARTBEAT, grace_period=GRACE,
        heartbeat_stale_trial_callback=_retry(),
        engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else None,
    )  # fmt: skip


def _draw(name: str, words: str, kind: type) -> Draw:
    if ":" not in words:
        choices = [word.strip() for word in words.split(",") if word.strip()]
        if not choices:
            raise ValueError("give LOW:HIGH, LOW:HIGH:log or A,B,C")
        if kind is not str:
            choices = [kind(word) for word in choices]
        return lambda trial: trial.suggest_categorical(name, choices)
    low, high, *rest = words.split(":")
    if kind is str or rest not in ([], ["log"]):
        raise ValueError("give LOW:HIGH, LOW:HIGH:log or A,B,C")
    if float(low) >= float(high) or (rest and float(low) <= 0):
        raise ValueError("LOW must be below HIGH, and above zero on a log scale")
    if kind is int:
        return lambda trial: trial.suggest_int(name, int(low), int(high), log=bool(rest))
    return lambda trial: trial.suggest_float(name, float(low), float(high), log=bool(rest))
