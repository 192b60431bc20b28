"""Every setting of a run in one place: defaults, limits, help, option and environment names.

A field's metadata is the only source: the command line, the TRAINER_* variables, the validation,
the print-out at the start and the copy in each checkpoint are all made from it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from trainer.errors import UsageFault

DEMO: Mapping[str, str] = {
    "generations": "12", "population": "6", "context": "10", "horizon": "40", "episodes": "4",
    "hidden": "48", "updates": "60", "batch": "64", "replay": "20000",
    "threads": "1",
}  # fmt: skip
DEMO_STEP = 12  # generations that another --demo --resume adds to a finished run


def _setting(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    identity: bool = True,
) -> Any:
    """Describe a setting; `identity` ones must not change when a run is resumed."""
    meta = {"help": text, "low": low, "high": high, "choices": choices, "identity": identity}
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Settings:
    """What a run was asked to do."""

    data: str = _setting(
        "",
        "Market data file, CSV or Parquet: date,ticker,open,high,low,close,volume, or wide.",
        identity=False,
    )
    run: str = _setting("", "Name of the run; a fresh one gets a name of its own.", identity=False)
    generations: int = _setting(
        100, "Generation at which the run is finished.", low=1, identity=False
    )
    checkpoint_every: int = _setting(5, "Generations between checkpoints.", low=1, identity=False)
    keep_last: int = _setting(
        0, "Local checkpoints to keep, at least 2; 0 keeps all.", low=0, identity=False
    )
    device: str = _setting(
        "auto", "Where tensors live.", choices=("auto", "cpu", "cuda"), identity=False
    )
    threads: int = _setting(
        0,
        "CPU threads of torch; 0 takes the checkpoint's number, or at most four.",
        low=0,
        high=1024,
        identity=False,
    )
    wandb: str = _setting(
        "off",
        "Weights & Biases beside the logs, where it is installed; offline needs no network.",
        choices=("off", "offline", "online"),
        identity=False,
    )
    seed: int = _setting(0, "Seed of all randomness.", low=0, high=2**62)
    tradable: str = _setting(
        "", "Series that may be traded, by name, comma separated; empty means all."
    )
    train_share: float = _setting(
        0.7, "Share of the days used for training, from the first.", low=0.05, high=0.95
    )
    validation_share: float = _setting(
        0.15,
        "Share of the days after them used for validation; the rest is held out.",
        low=0.02,
        high=0.9,
    )
    context: int = _setting(20, "Days that an agent sees at once.", low=1, high=5000)
    recent: int = _setting(
        4, "Newest days that are seen one by one; older ones as means of spans that double.", low=1
    )
    horizon: int = _setting(60, "Trading days of an episode.", low=1, high=5000)
    settlement: int = _setting(
        0, "Days after them in which positions are only closed, the last ones by force.", low=0
    )
    max_positions: int = _setting(0, "Series that may be held at once; 0: no limit.", low=0)
    sale_target: float = _setting(
        0.0, "Gain at which a position is sold, such as 0.1 for 10 %; 0: never.", low=0
    )
    max_holding: int = _setting(0, "Days after which a position is sold; 0: never.", low=0)
    episodes: int = _setting(4, "Episodes of a generation, the same for every agent.", low=1)
    costs_bps: float = _setting(
        10.0, "Costs of a trade in basis points of its value.", low=0, high=1000
    )
    exposure: float = _setting(1.0, "Cap on the sum of the target weights.", low=0.01, high=1)
    population: int = _setting(16, "Actors in the population.", low=2, high=10000)
    group: int = _setting(4, "Agents that play as one batch, on whichever worker.", low=1)
    elites: float = _setting(
        0.2, "Share of the population that survives unchanged.", low=0, high=0.9
    )
    tournament: int = _setting(3, "Agents drawn for each tournament.", low=1)
    crossover: float = _setting(0.5, "Chance that a child mixes two parents.", low=0, high=1)
    mutation: float = _setting(0.9, "Chance that a child is mutated.", low=0, high=1)
    mutation_share: float = _setting(
        0.1, "Share of a mutated child's weights that change.", low=0, high=1
    )
    mutation_scale: float = _setting(
        0.1, "Size of a mutation against the size of the layer's weights.", low=0
    )
    scheme: str = _setting(
        "injected",
        "injected: learners beside the population, whose actors enter it; everyone: each agent of "
        "the population is a learner.",
        choices=("injected", "everyone"),
    )
    variation: str = _setting(
        "plain",
        "plain: weights are crossed and mutated as they are; proximal: distilled and safely "
        "mutated (PDERL).",
        choices=("plain", "proximal"),
    )
    distil_updates: int = _setting(12, "Imitation updates of a distilled child.", low=0)
    learners: int = _setting(
        1, "DDPG learners on the shared replay buffer, with the injected scheme.", low=0, high=1000
    )
    inject_every: int = _setting(1, "Generations between injections of the learners.", low=1)
    updates: int = _setting(100, "Gradient updates in a generation.", low=0)
    batch: int = _setting(64, "Transitions in a micro-batch, per learner.", low=1)
    accumulate: int = _setting(1, "Micro-batches whose gradients make one update.", low=1)
    replay: int = _setting(100_000, "Transitions the replay buffer holds.", low=1)
    discount: float = _setting(0.5, "Discount of the next day's value.", low=0, high=1)
    tau: float = _setting(0.02, "Step of the target networks towards the networks.", low=0, high=1)
    actor_rate: float = _setting(1e-3, "Learning rate of the actors.", low=0)
    critic_rate: float = _setting(1e-3, "Learning rate of the critics.", low=0)
    clip: float = _setting(1.0, "Largest norm of a learner's gradient.", low=1e-9)
    decay: float = _setting(0.0, "Weight decay, apart from the gradient.", low=0)
    noise: float = _setting(
        1.0, "Exploration noise on the scores of learners beside the population.", low=0
    )
    hidden: int = _setting(64, "Width of the hidden layers.", low=1)
    validate_every: int = _setting(5, "Generations between validations of the champion.", low=1)

    @property
    def elite_count(self) -> int:
        """Elites of a generation: at least one, and never everybody."""
        return min(max(1, round(self.elites * self.population)), self.population - 1)

    @property
    def learner_count(self) -> int:
        """How many actors follow gradients."""
        return self.population if self.scheme == "everyone" else self.learners

    @property
    def tradable_names(self) -> tuple[str, ...]:
        """The named tradable series; empty means all."""
        return tuple(n.strip() for n in self.tradable.split(",") if n.strip())

    def identity(self) -> dict[str, Any]:
        """The settings that make the course of training: equal in a run from start to end."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.metadata["identity"]}

    def as_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def settings_fields() -> tuple[Field[Any], ...]:
    """The fields, in the order of declaration."""
    return fields(Settings)


def build(given: Mapping[str, str], *, base: Settings | None = None) -> Settings:
    """Settings from texts over `base`; raises UsageFault naming every fault at once."""
    faults: list[str] = []
    settings = replace(base or Settings(), **_parsed(given, faults))
    faults += _consistency(settings)
    if faults:
        raise UsageFault(*faults)
    return settings


def check(given: Mapping[str, str], *, fresh: bool, demo: bool) -> None:
    """Find faults in what was said without loading anything; how settings go together can only be
    told when none come from a checkpoint.
    """
    if fresh:
        build({**DEMO, **given} if demo else given)
        return
    faults: list[str] = []
    _parsed(given, faults)
    faults += _plain_name(given.get("run", ""))
    if faults:
        raise UsageFault(*faults)


def from_file(path: Path) -> dict[str, str]:
    """The settings of a TOML file as texts; raises UsageFault naming every fault at once."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageFault(f"--config: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageFault(f"--config: {path} is not TOML: {error}") from None
    known = {f.name for f in fields(Settings)}
    names = {name: name.replace("-", "_") for name in found}
    faults = [f"--config: {path}: there is no setting named {name}"
              for name, plain in names.items() if plain not in known]  # fmt: skip
    kinds = (str, int, float, list)
    faults += [f"--config: {path}: {name} must be a text, a number or a list of texts"
               for name, value in found.items()
               if not isinstance(value, kinds) or isinstance(value, bool)]  # fmt: skip
    if faults:
        raise UsageFault(*faults)
    return {
        names[name]: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in found.items()
    }


def from_saved(saved: Mapping[str, Any]) -> Settings:
    """Settings as a checkpoint's state.json holds them; unknown names are a newer trainer's."""
    known = {f.name for f in fields(Settings)}
    unknown = sorted(set(saved) - known)
    if unknown:
        raise UsageFault(f"the checkpoint has settings this trainer does not know: {unknown}")
    return Settings(**saved)


def differences(asked: Settings, saved: Settings) -> list[str]:
    """One line for each setting that may not change on resume and does."""
    then = saved.identity()
    return [
        f"--{name.replace('_', '-')} is {value!r}, but the run was started with {then[name]!r}"
        for name, value in asked.identity().items()
        if value != then[name]
    ]


def _parsed(given: Mapping[str, str], faults: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(Settings):
        if item.name in given:
            try:
                values[item.name] = _parse(item, given[item.name])
            except ValueError as error:
                faults.append(f"--{item.name.replace('_', '-')}: {error}")
    return values


def _parse(item: Field[Any], text: str) -> Any:
    kind: Any = type(item.default)
    low, high, choices = (item.metadata[k] for k in ("low", "high", "choices"))
    if kind is str:
        if choices and text not in choices:
            raise ValueError(f"{text!r} is not one of {', '.join(choices)}")
        return text
    try:
        value = kind(text)
    except ValueError:
        word = "a whole number" if kind is int else "a number"
        raise ValueError(f"{text!r} is not {word}") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not a finite number")
    if low is not None and value < low:
        raise ValueError(f"{text} is below the least value, {low:g}")
    if high is not None and value > high:
        raise ValueError(f"{text} is above the greatest value, {high:g}")
    return value


def _consistency(settings: Settings) -> list[str]:
    faults = []
    if settings.train_share + settings.validation_share >= 1:
        faults.append(
            f"--train-share {settings.train_share:g} and --validation-share "
            f"{settings.validation_share:g} leave no days to hold out"
        )
    if settings.keep_last == 1:
        faults.append("--keep-last: at least 2 are kept, or 0 for all")
    room = settings.population - settings.elite_count
    if settings.scheme == "injected" and settings.learners > room:
        faults.append(
            f"--learners {settings.learners}: they are injected in the places of agents that are "
            f"no elites, and there are {room} of those"
        )
    return faults + _plain_name(settings.run)


def _plain_name(name: str) -> list[str]:
    if name and (name != Path(name).name or name.startswith((".", "tmp")) or "\\" in name):
        return [f"--run: {name!r} must be a plain name, not beginning with '.' or 'tmp'"]
    return []
