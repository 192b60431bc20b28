"""``python -m syncd status`` and ``limit``: what the running daemon says, and keeps to."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from syncd import words
from syncd.config import Settings, parse_bytes
from syncd.control import Client

_OK, _NOT_HEALTHY, _NO_DAEMON = 0, 1, 4

_EVERY = 1.0
"""Seconds between two looks with ``--watch``."""

_MOST = 10
"""Checkpoints that are listed; the others are counted."""


def status(settings: Settings, as_json: bool, watch: bool = False) -> int:
    """Print the status; with ``watch`` again and again until Ctrl-C."""
    client = Client(settings.state_dir)
    if watch:
        return _watch(settings, client, as_json)
    state = client.ask("/status")
    if as_json:
        print(_as_json(state))  # noqa: T201 - the answer itself
    else:
        Console(highlight=False, soft_wrap=True).print(_shown(settings, state))
    return _code(state)


def limit(settings: Settings, rate: str | None) -> int:
    """Have the running daemon keep to another limit; without ``rate`` say which one it keeps to."""
    wanted = None if rate in (None, "off") else parse_bytes(rate or "")
    client = Client(settings.state_dir)
    state = client.ask("/status")
    if state is not None and rate is not None:
        state = client.ask("/limit", "POST", {"bytes_per_second": wanted})
    if state is None:
        Console(highlight=False, soft_wrap=True).print(_shown(settings, None))
        return _NO_DAEMON
    known = state["limit_bytes_per_second"]
    print(f"at most {words.rate(known)}" if known else "no limit")  # noqa: T201 - the answer itself
    return _OK


def _watch(settings: Settings, client: Client, as_json: bool) -> int:
    """One line of JSON each second, or one picture that changes in its place."""
    state: dict[str, Any] | None = None
    try:
        if as_json:
            while True:
                state = client.ask("/status")
                print(_as_json(state), flush=True)  # noqa: T201 - the answer itself
                time.sleep(_EVERY)
        with Live(console=Console(highlight=False), auto_refresh=False) as live:
            while True:
                state = client.ask("/status")
                live.update(_shown(settings, state), refresh=True)
                time.sleep(_EVERY)
    except (KeyboardInterrupt, BrokenPipeError):
        return _code(state)


def _as_json(state: dict[str, Any] | None) -> str:
    return json.dumps({"running": False} if state is None else {"running": True, **state})


def _code(state: dict[str, Any] | None) -> int:
    if state is None:
        return _NO_DAEMON
    return _OK if state["healthy"] else _NOT_HEALTHY


def _shown(settings: Settings, state: dict[str, Any] | None) -> RenderableType:
    if state is None:
        return Text(f"no daemon is running with {settings.state_dir}; start: python -m syncd")
    return Group(*_parts(state))


def _parts(state: dict[str, Any]) -> Iterator[RenderableType]:
    if state["healthy"]:
        yield Text("● healthy", "bold green")
    else:
        yield Text("▲ needs attention", "bold red")
    for reason in state["reasons"]:
        since = words.duration(time.time() - reason["since"])
        yield Text.assemble(("  problem  ", "red"), reason["message"], (f" ({since})", "dim"))
        if reason["hint"]:
            yield Text.assemble(("  remedy   ", "yellow"), reason["hint"])
    yield _facts(state)
    if way := state["under_way"]:
        yield _under_way(way)
    rest = state["backlog"][_MOST:]
    for item in state["backlog"][:_MOST]:
        if not way or item["path"] != way["checkpoint"]:
            waited = words.duration(item["waited_seconds"])
            size = words.size(item["size"])
            yield Text.assemble(("  waits    ", "cyan"), f"{item['path']}, {size}, for {waited}")
    if rest:
        yield Text(f"           and {len(rest)} more", "dim")
    for item in state["incomplete"][:_MOST]:
        yield Text.assemble(("  not complete  ", "dim"), f"{item['path']}: {item['reason']}")
    if len(state["incomplete"]) > _MOST:
        yield Text(f"           and {len(state['incomplete']) - _MOST} more", "dim")


def _facts(state: dict[str, Any]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    point = state["recovery_point"]
    age = words.duration(point["age_seconds"]) if point else ""
    table.add_row("store", Text(state["store"] or "none yet"))
    table.add_row(
        "recovery point",
        Text.assemble(
            (point["checkpoint"], "bold"),
            f", {age} old (commit {point['seq']}, {words.size(point['bytes'])})",
        )
        if point
        else Text("none yet: nothing is safe", "yellow"),
    )
    lag = words.duration(state["lag_seconds"])
    table.add_row("lag", f"something newer is complete since {lag}" if lag != "0 s" else "none")
    waiting = len(state["backlog"])
    table.add_row("backlog", f"{waiting} checkpoints, {words.size(state['backlog_bytes'])}")
    if mirror := state.get("mirror"):
        table.add_row("mirror", words.mirror(mirror))
    table.add_row("throughput", words.throughput(state))
    table.add_row("watching", Text(state["watching"] or "not yet"))
    return table


def _under_way(way: dict[str, Any]) -> Table:
    left = way["seconds_left"]
    table = Table.grid(padding=(0, 1))
    table.add_row(
        Text("  sends   ", "cyan"),
        Text(way["checkpoint"], "bold"),
        ProgressBar(total=max(1, way["total"]), completed=way["bytes"], width=30),
        f"{words.size(way['bytes'])} of {words.size(way['total'])}",
        "" if left is None else f"{words.duration(left)} left",
    )
    return table
