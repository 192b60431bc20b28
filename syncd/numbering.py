"""Numbers that no other writer can take, for stores without put-if-absent.

Each writer draws a slot and keeps to the numbers that end in it: 00001 of 00017, 00002 of 00017
and so on. No two writers have one slot: each leaves a mark and then looks who else has.
"""

from __future__ import annotations

import random

from syncd.records import Layout
from syncd.stores.base import ObjectStore

STEP = 100_000
"""Numbers of one writer are so far apart; all that are lower come from put-if-absent."""


def draw_slot(store: ObjectStore, layout: Layout, writer: str, rng: random.Random) -> int:
    """A slot that is this writer's alone, for ever: of two that mark one, none keeps it."""
    while True:
        taken = {slot for slot, _ in _marks(store, layout)}
        slot = rng.randrange(1, STEP)
        if slot in taken:
            continue
        store.put(f"{layout.writers}{slot:05d}-{writer}", writer.encode())
        if all(who == writer for number, who in _marks(store, layout) if number == slot):
            return slot


def _marks(store: ObjectStore, layout: Layout) -> list[tuple[int, str]]:
    names = [info.key.removeprefix(layout.writers) for info in store.list(layout.writers)]
    marks = [name.partition("-") for name in names]
    return [(int(slot), writer) for slot, _, writer in marks if slot.isdigit()]


def next_in_slot(slot: int, head: int) -> int:
    """The lowest number above ``head`` that ends in ``slot``, in a step of its own."""
    return (head // STEP + 1) * STEP + slot
