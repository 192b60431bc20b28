"""Sizes, rates and times as a person reads them; the same on the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def size(count: float) -> str:
    """Bytes in units of 1000: ``1.2 GB``."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} B"


def rate(per_second: float) -> str:
    """Bytes per second."""
    return f"{size(per_second)}/s"


def throughput(state: Mapping[str, Any]) -> str:
    """What goes, and what may go at most."""
    most = state["limit_bytes_per_second"]
    limit = f" (at most {rate(most)})" if most else ""
    return f"{rate(state['throughput_bytes_per_second'])}{limit}"


def duration(seconds: float) -> str:
    """The two greatest units: ``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    for unit, length, lower, short in (
        ("d", 86400, "h", 3600),
        ("h", 3600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if whole >= length:
            rest = whole % length // short
            return f"{whole // length} {unit}" + (f" {rest} {lower}" if rest else "")
    return f"{whole} s"


def mirror(state: dict[str, Any]) -> str:
    """How the second store is, in a line."""
    if state["reasons"]:
        return f"{state['store'] or 'not reached yet'}: {state['reasons'][0]['message']}"
    point, count = state["recovery_point"], state["backlog_checkpoints"]
    has = f"{point['checkpoint']} (commit {point['seq']})" if point else "nothing yet"
    behind = f", {count} to come, {size(state['backlog_bytes'])}" if count else ""
    return f"{state['store'] or 'not reached yet'}: {has}{behind}"
