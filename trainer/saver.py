"""Saving beside training: a moment is kept, a thread copies and writes it; one save at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from trainer import checkpoint
from trainer.checkpoint import Saved, Snapshot
from trainer.state import TrainState


class Saver:
    """Writes checkpoints of one run; a save that fails is told and training goes on."""

    def __init__(
        self, root: Path, run: str, warn: Callable[[str], None], *, writes: bool = True
    ) -> None:
        self._writes = writes  # of several workers, one does
        self._root, self._run, self._warn = root, run, warn
        self._thread: threading.Thread | None = None
        self.last: Saved | None = None
        self.last_generation = -1

    @property
    def busy(self) -> bool:
        """Whether a save is in flight."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, state: TrainState) -> bool:
        """Keep this state and begin to write it; False while another save is in flight."""
        if not self._writes:
            self.last_generation = state.generation
            return True
        if self.busy:
            return False
        snapshot = partial(
            Snapshot,
            run=self._run,
            generation=state.generation,
            record=state.record(),
            settings=state.settings.as_dict(),
            identity=state.settings.identity(),
        )
        copy, keep = state.snapshot(), state.settings.keep_last
        work = partial(self._save, state.generation, lambda: snapshot(files=copy()), keep)
        self._thread = threading.Thread(target=work, name="saver")
        self._thread.start()
        return True

    def wait(self) -> None:
        """Until no save is in flight."""
        if self._thread is not None:
            self._thread.join()

    def finish(self, state: TrainState) -> bool:
        """Save this state if it is not saved yet, and wait; False when it could not be saved."""
        self.wait()
        if self.last_generation != state.generation:
            self.start(state)
            self.wait()
        return self.last_generation == state.generation

    def _save(self, generation: int, snapshot: Callable[[], Snapshot], keep_last: int) -> None:
        name = checkpoint.name_of(generation)
        try:
            self.last = checkpoint.write(self._root, snapshot())
            self.last_generation = generation
        except Exception as error:  # noqa: BLE001  (a full disk comes in many shapes)
            self._warn(f"checkpoint {name} could NOT be saved: {error}; training goes on")
            return
        try:
            checkpoint.prune(self._root / self._run, keep_last)
        except OSError as error:
            self._warn(f"old checkpoints could not be removed: {error}")
