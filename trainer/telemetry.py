"""What a run leaves for people to look at: TensorBoard scalars and one JSON line a generation.

LOG_DIR/<run>/generations.jsonl is appended to and never rewritten: after a resume a generation may
stand there twice, and the last line of it counts. A log that cannot be written stops nothing: it
is told once and tried again with the next generation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

FLUSH_SECONDS = 5


class Telemetry:
    """The logs of one run."""

    def __init__(
        self, folder: Path, first: int, warn: Callable[[str], None], *, writes: bool = True,
        wandb: str = "off", config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self._wandb, self._config = wandb, dict(config or {})
        self._board: Any = None
        self._writes = writes  # of several workers, one does
        self._folder, self._warn = folder, warn
        self._purge_step = first
        self._writer: Any = None
        self._told: set[str] = set()

    def generation(self, entry: Mapping[str, Any], extra: Mapping[str, Any]) -> None:
        """Log one generation: its entry in the history, and times."""
        self._careful("generations.jsonl", lambda: self._append({**entry, **extra}))
        scalars = {f"fitness/{name}": entry[name] for name in ("best", "mean", "worst")}
        for index, value in enumerate(entry["learners"]):
            scalars[f"learner/{index}/return"] = value
            scalars[f"learner/{index}/critic_loss"] = entry["critic_loss"][index]
        if "validation" in entry:
            scalars["validation/champion"] = entry["validation"]
        scalars["time/generation_seconds"] = extra["seconds"]
        self.scalars(scalars, entry["generation"])

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers to TensorBoard."""
        self._careful("TensorBoard", lambda: self._scalars(values, step))
        if self._wandb != "off":
            self._careful("Weights & Biases", lambda: self._to_wandb(values, step))

    def close(self) -> None:
        """Flush what is left."""
        if self._writer is not None:
            self._careful("TensorBoard", self._writer.close)
        if self._board is not None:
            self._careful("Weights & Biases", self._board.finish)

    def _append(self, line: Mapping[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "generations.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self._folder), flush_secs=FLUSH_SECONDS, purge_step=self._purge_step
            )
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._purge_step = step + 1

    def _to_wandb(self, values: Mapping[str, float], step: int) -> None:
        if self._board is None:
            import wandb

            name = self._folder.name
            self._board = wandb.init(project="trainer", name=name, id=name, resume="allow",
                                     mode=self._wandb, dir=str(self._folder),
                                     config=self._config)  # fmt: skip
        self._board.log(dict(values), step=step)

    def _careful(self, what: str, action: Callable[[], None]) -> None:
        if not self._writes:
            return
        try:
            action()
            self._told.discard(what)
        except Exception as error:  # noqa: BLE001  (no log is worth a training run)
            if what == "TensorBoard":
                self._writer = None  # a writer whose thread has died is not closed: it would hang
            if what not in self._told:
                self._told.add(what)
                self._warn(f"{what} in {self._folder} cannot be written: {error}; training goes on")
