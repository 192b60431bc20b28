"""Which files of a checkpoint are named by another one, or by their numbers, and are not there."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

_INDEX_LIMIT = 16 * 1024 * 1024
"""Bytes of an index of shards that are read."""

_CHUNK = 1024 * 1024

NAMES_OTHERS = (".index.json", ".metadata")
"""Ends of the names of files that may name others."""


def named_beside(path: Path) -> list[str]:
    """The files beside it that an index of shards, or torch's ``.metadata``, names."""
    try:
        if path.name.endswith(".index.json"):
            return sorted(_named_in_index(path))
        return sorted(_named_in_metadata(path)) if path.name == ".metadata" else []
    except OSError:
        return []


def _named_in_index(path: Path) -> set[str]:
    with path.open("rb") as file:
        text = file.read(_INDEX_LIMIT)
    try:
        return {shard for shard in json.loads(text)["weight_map"].values() if shard.strip("/.")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


_DISTCP = re.compile(rb"__\d{1,9}_\d{1,9}\.distcp")


def _named_in_metadata(path: Path) -> set[str]:
    names: set[bytes] = set()
    rest = b""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            names.update(_DISTCP.findall(rest + chunk))
            rest = chunk[-64:]
    return {name.decode() for name in names}


_SHARD = re.compile(r"(.*)-(\d{1,9})-of-(\d{1,9})(\.[^/]*)?")


def shard_missing(names: Iterable[str]) -> str | None:
    """Which of the files of one checkpoint called ``x-00001-of-00003.y`` is not there.

    >>> shard_missing(["m-00001-of-00002.bin"])
    'm-00002-of-00002.bin'
    """
    found: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in names:
        shard = _SHARD.fullmatch(name)
        if shard:
            found[shard[1], shard[3], shard[4] or ""].add(int(shard[2]))
    for (head, count, tail), numbers in found.items():
        first = 0 if 0 in numbers else 1
        if len(numbers) < int(count):
            number = next(n for n in range(first, int(count) + first) if n not in numbers)
            return f"{head}-{number:0{len(count)}}-of-{count}{tail}"
    return None
