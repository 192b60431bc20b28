"""Everybody's experience in a bounded ring of tensors.

A transition is a day index and a few numbers; the window that the agent saw is read from the
market again when it is needed, so a transition costs bytes where a stored window costs megabytes.
"""

from __future__ import annotations

import torch


class Replay:
    """A ring of transitions; what a generation overwrote can be brought back by `rollback`."""

    def __init__(self, capacity: int, book: int, assets: int, device: torch.device) -> None:
        self.capacity = capacity
        self.size = 0
        self.position = 0
        self.columns = {
            "day": torch.zeros(capacity, dtype=torch.int32, device=device),
            "book": torch.zeros(capacity, book, device=device),
            "action": torch.zeros(capacity, assets, device=device),
            "reward": torch.zeros(capacity, device=device),
            "next_book": torch.zeros(capacity, book, device=device),
            "done": torch.zeros(capacity, dtype=torch.bool, device=device),
        }
        self._undo: tuple[int, int, torch.Tensor, dict[str, torch.Tensor]] | None = None

    def add(self, transitions: dict[str, torch.Tensor]) -> None:
        """Append M transitions; of more than the ring holds, the last stay."""
        count = min(len(transitions["day"]), self.capacity)
        where = torch.arange(count, device=self.columns["day"].device) + self.position
        where %= self.capacity
        self._undo = (self.size, self.position, where,
                      {name: column[where] for name, column in self.columns.items()})  # fmt: skip
        for name, column in self.columns.items():
            column[where] = transitions[name][-count:]
        self.position = (self.position + count) % self.capacity
        self.size = min(self.size + count, self.capacity)

    def mark(self) -> None:
        """What is here now is what a rollback returns to."""
        self._undo = None

    def rollback(self) -> None:
        """Undo the addition since the mark (a generation makes one)."""
        if self._undo is not None:
            self.size, self.position, where, old = self._undo
            for name, column in self.columns.items():
                column[where] = old[name]
            self._undo = None

    def sample(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        """The transitions of row numbers of any shape."""
        return {name: column[rows] for name, column in self.columns.items()}

    def tensors(self) -> dict[str, torch.Tensor]:
        """A copy of the filled rows, and the place of the next one."""
        filled = {name: column[: self.size].clone() for name, column in self.columns.items()}
        return {**filled, "position": torch.tensor(self.position)}

    def holds(self, tensors: dict[str, torch.Tensor]) -> bool:
        """Whether this ring can take over what another's `tensors` gave."""
        rows = {len(tensors[name]) for name in self.columns}
        return (
            max(rows) <= self.capacity
            and len(rows) == 1
            and (0 <= int(tensors["position"]) < self.capacity)
        )

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` gave."""
        self.size, self.position = len(tensors["day"]), int(tensors["position"])
        for name, column in self.columns.items():
            column[: self.size] = tensors[name]
        self._undo = None
