"""What each of several machines has of one save: how it is told, and when it makes a whole.

Each machine puts a part record once its files are in the store. The save is whole when there is
one of every machine and nothing can be of another save. Nothing in the files says which save they
are of, so time does, by the store's clock alone: each record says when the newest of its files
was last written, at the latest, and when the machine last looked and found all as it was sent, at
the earliest. Every machine must have looked after every machine had written (:func:`missing`): who
takes part in a save twice has touched its files by then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from syncd.clock import Clock
from syncd.errors import Corrupt, Permanent
from syncd.records import CommitRecord, FileEntry, Layout, parse_record
from syncd.shards import shard_missing
from syncd.stores.base import ObjectStore

MARGIN = 2.0
"""Seconds from the last write of any machine to the look of each: all begin a save together."""

MARK_SLACK = 5.0
"""Seconds by which the coordinator's mark may seem older than what it speaks for."""

_SEQ = 1
FRESH = 6 * 3600.0
"""Seconds for which a part counts: retention removes what has lain for a day without a commit."""


@dataclass(frozen=True)
class Part:
    """One machine's part of a checkpoint. Times are the store's, in seconds since the epoch.

    ``claim`` is the number by which the machine holds its rank. ``written`` is an upper bound of
    the last write of a file, ``looked`` a lower bound of the last look that found no change.
    ``marked``: the writer puts its mark here once all machines have written.
    """

    rank: int
    world: int
    claim: int
    written: float
    looked: float
    marked: bool
    record: CommitRecord

    def to_json(self) -> bytes:
        """As it is stored."""
        document = {name: getattr(self, name) for name in _FIELDS}
        return json.dumps({**document, "record": json.loads(self.record.to_json())}).encode()


_FIELDS = {"rank": int, "world": int, "claim": int, "written": float, "looked": float,
           "marked": bool}  # fmt: skip


def parse_part(data: bytes, prefix: str) -> Part:
    """A part from its JSON; Corrupt for what cannot be trusted."""
    try:
        document: dict[str, Any] = json.loads(data)
        values = {name: kind(document[name]) for name, kind in _FIELDS.items()}
        record = parse_record(json.dumps(document["record"]).encode(), _SEQ, prefix)
        return Part(record=record, **values)
    except (ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"it is no part of a checkpoint ({error!r})") from None


def new_part(
    rank: int, world: int, claim: int, times: tuple[float, float], marked: bool,
    record: CommitRecord,
) -> Part:  # fmt: skip
    """A part of this machine; ``times`` are those of the last write and of the look."""
    return Part(rank, world, claim, *times, marked, replace(record, seq=_SEQ, behind=0))


def folder_of(layout: Layout, checkpoint: str) -> str:
    """Prefix of the parts of one checkpoint."""
    return f"{all_parts(layout)}{checkpoint}/"


def all_parts(layout: Layout) -> str:
    """Prefix of all parts."""
    return f"{layout.prefix}/.syncd/parts/"


def all_ranks(layout: Layout) -> str:
    """Prefix of the claims by which machines hold their ranks."""
    return f"{layout.prefix}/.syncd/ranks/"


def key_of(layout: Layout, part: Part, token: str) -> str:
    """Key of one part record; each has a ``token`` of its own."""
    folder = folder_of(layout, part.record.checkpoint)
    return f"{folder}{part.rank}-of-{part.world}.{token}.json"


def rank_in(key: str, folder: str, world: int) -> int | None:
    """The rank in the key of a part of ``folder``; None for any other key."""
    match = re.fullmatch(r"(\d+)-of-(\d+)\.[0-9a-z.]+\.json", key.removeprefix(folder))
    return int(match[1]) if match and int(match[2]) == world else None


def newest(parts: Iterable[Part], claims: Mapping[int, int]) -> dict[int, Part]:
    """The part of each rank that was looked at last, by who holds the rank now."""
    found: dict[int, Part] = {}
    for part in parts:
        holds = part.claim == claims.get(part.rank, part.claim)
        if holds and (part.rank not in found or found[part.rank].looked < part.looked):
            found[part.rank] = part
    return found


def due(parts: Mapping[int, Part]) -> float:
    """When each machine has to have looked, at the earliest, by the store's clock."""
    return max(part.written for part in parts.values()) + MARGIN


def missing(parts: Mapping[int, Part], world: int) -> str:
    """In words, what is missing to a whole; "" for nothing."""
    absent = [str(rank) for rank in range(world) if rank not in parts]
    if absent:
        return f"the part of machine {', '.join(absent)} is not there yet"
    when = due(parts)
    early = [str(part.rank) for part in parts.values() if part.looked < when]
    if early:
        return f"machine {', '.join(sorted(early))} has to look again whether its part still stands"
    written = [part.written for part in parts.values()]
    marks = [part.written for part in parts.values() if part.marked]
    if marks and max(marks) < max(written) - MARK_SLACK:
        return "a part is younger than the mark that speaks for all: it is being saved again"
    looked = [part.looked for part in parts.values()]
    if max(looked) - min(looked) > FRESH:
        return "a part was looked at too long ago"
    names = {entry.path for part in parts.values() for entry in part.record.files}
    shard = shard_missing(names)
    return f"{shard} is not there yet" if shard else ""


def whole(parts: Mapping[int, Part]) -> CommitRecord:
    """One record of all parts, without a number; Permanent where two machines contradict."""
    files: list[FileEntry] = []
    counts: list[int] = []
    seen: dict[str, tuple[str, int]] = {}
    for rank, part in sorted(parts.items()):
        own = [entry for entry in part.record.files if entry.path not in seen]
        for entry in part.record.files:
            sha256, other = seen.setdefault(entry.path, (entry.sha256, rank))
            if sha256 != entry.sha256:
                raise Permanent(
                    f"machines {other} and {rank} have different files of the name {entry.path}",
                    hint="give them names of their own, or add the name to SYNCD_EXCLUDE",
                )
        files += own
        counts.append(len(own))
    links = {link.path: link for part in parts.values() for link in part.record.links}
    first = parts[min(parts)].record
    return replace(
        first,
        files=tuple(files),
        links=tuple(link for path, link in sorted(links.items()) if path not in seen),
        ranks=tuple(counts),
    )


def files_of(record: CommitRecord, rank: int) -> tuple[FileEntry, ...]:
    """The files that one machine sent; all of them where it is not known who sent what."""
    if rank >= len(record.ranks):
        return record.files
    start = sum(record.ranks[:rank])
    return record.files[start : start + record.ranks[rank]]


def of_rank(record: CommitRecord, rank: int) -> CommitRecord:
    """The record with the files of one machine and of the first one only."""
    if rank >= len(record.ranks):
        return record
    own = files_of(record, 0) + (files_of(record, rank) if rank else ())
    return replace(record, files=own, ranks=())


class StoreClock:
    """What time it is for the store, within bounds, by this machine's monotonic clock."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._low = self._high = self._wall = 0.0
        self.set_at: float | None = None

    def set_by(self, store: ObjectStore, key: str) -> None:
        """Have the store date an object. It may tell whole seconds only."""
        before = self._clock.monotonic()
        store.put(key, b"what time is it?\n")
        modified = store.head(key).modified
        after = self.set_at = self._clock.monotonic()
        self._low, self._high = modified - after, modified + 1.0 - before
        self._wall = self._clock.now() - after

    def earliest(self) -> float:
        """The store's time is this at least."""
        return self._clock.monotonic() + self._low

    def latest_of(self, changed_ns: int) -> float:
        """When something happened that this machine's kernel dates so, at the latest.

        If its clock has been set since, it is as if it had happened just now.
        """
        now = self._clock.monotonic()
        stepped = abs(self._clock.now() - now - self._wall) > 1.0
        age = 0.0 if stepped else max(0.0, self._clock.now() - changed_ns / 1e9)
        self._wall = self._clock.now() - now
        return now + self._high - age
