"""The status page: drawn here, whole, with nothing to be fetched from elsewhere.

Its one script asks for the page again and puts the new content in the place of the old. Script
and style are named by digest in the Content-Security-Policy: nothing else runs, whatever a file
may be called.
"""

from __future__ import annotations

import base64
import hashlib
import html
import time
from collections.abc import Iterable, Sequence
from typing import Any

from syncd import plots, words
from syncd.programs import Program

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2128;--soft:#59636e;--paper:#fff;--card:#f6f8fa;
--edge:#d1d9e0;--good:#1a7f37;--bad:#cf222e;--line:#0969da}
@media(prefers-color-scheme:dark){:root{--ink:#e6edf3;--soft:#9198a1;--paper:#0d1117;
--card:#151b23;--edge:#3d444d;--good:#3fb950;--bad:#f85149;--line:#4493f8}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:0 auto;
max-width:64rem;padding:1rem}
header{display:flex;flex-wrap:wrap;gap:.2rem 1rem;align-items:baseline}
h1{font-size:1.4rem;margin:0}h2{font-size:1rem;margin:1.6rem 0 .5rem}
.state{font-weight:600}.good{color:var(--good)}.bad{color:var(--bad)}.soft{color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(13rem,1fr));gap:.7rem;
margin:1rem 0}
.card,figure,.fault{background:var(--card);border:1px solid var(--edge);border-radius:.5rem;
padding:.6rem .8rem;margin:0;min-width:0}
.card b{display:block;font-size:1.25rem;overflow-wrap:anywhere}
.fault{border-left:.3rem solid var(--bad);margin:.5rem 0;overflow-wrap:anywhere}
.over{border-left-color:var(--edge)}
progress{width:100%;height:.8rem;margin-bottom:1rem;accent-color:var(--line)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(17rem,1fr));gap:.7rem}
svg{display:block;width:100%;height:auto}svg text{font-size:11px;fill:var(--soft)}
.grid{stroke:var(--edge)}.curve{fill:none;stroke:var(--line);stroke-width:2}
.area{fill:var(--line);opacity:.15}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:.25rem .8rem .25rem 0;border-bottom:1px solid var(--edge);
vertical-align:top}
th{color:var(--soft);font-weight:500}td.name{overflow-wrap:anywhere;min-width:10rem}
td.when{white-space:nowrap}
@media(max-width:36rem){svg text{font-size:18px}tr{display:flex;flex-wrap:wrap;gap:0 1rem;
padding:.35rem 0;border-bottom:1px solid var(--edge)}tr:has(th){display:none}td{border:0;padding:0}
td.name{flex:1 0 100%}td[data-is]::before{content:attr(data-is) " ";color:var(--soft)}}
"""

_SCRIPT = """
setInterval(async () => {
  if (document.hidden) return;
  const stale = document.getElementById("stale");
  try {
    const answer = await fetch("/", {cache: "no-store"});
    if (!answer.ok) throw new Error(answer.status);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    document.querySelector("main").replaceWith(fresh.querySelector("main"));
    document.title = fresh.title;
    stale.hidden = true;
  } catch { stale.hidden = false; }
}, 3000);
"""


def _digest(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


POLICY = (
    f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""The page's Content-Security-Policy."""


def render(
    state: dict[str, Any], history: dict[str, Any], programs: Sequence[Program], now: float = 0.0
) -> bytes:
    """The whole page, from ``Health.snapshot`` and ``Health.history``."""
    now = now or time.time()
    red = not state["healthy"]
    title = "syncd: needs attention" if red else "syncd: healthy"
    parts = [
        _header(state),
        *(_fault(reason["message"], reason["hint"], f"for {words.duration(now - reason['since'])}")
          for reason in state["reasons"]),
        _cards(state),
        _under_way(state["under_way"]),
        '<div class="plots">',
        plots.line("lag", [(s["at"], s["lag"]) for s in history["samples"]], words.duration, now),
        plots.line("throughput", [(s["at"], s["throughput"]) for s in history["samples"]],
                   words.rate, now),
        "</div>",
        _checkpoints(state, history["checkpoints"], now),
        _incomplete(state["incomplete"]),
        _programs(programs),
        _past(history["faults"], now),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style>"
        f"<main>{''.join(parts)}</main>"
        '<p id="stale" class="bad" hidden>The daemon does not answer: this is old.</p>'
        f"<script>{_SCRIPT}</script></html>"
    ).encode(errors="replace")


def _text(value: object) -> str:
    return html.escape(str(value))


def _ago(at: float, now: float) -> str:
    return f"{words.duration(now - at)} ago"


def _when(at: float | None, now: float) -> str:
    if at is None:
        return '<span class="soft">-</span>'
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
    return f'<time title="{moment}">{_ago(at, now)}</time>'


def _header(state: dict[str, Any]) -> str:
    kind, word = ("good", "healthy") if state["healthy"] else ("bad", "needs attention")
    mark = "●" if state["healthy"] else "▲"
    return (
        f'<header><h1>syncd</h1><span class="state {kind}">{mark} {word}</span>'
        f'<span class="soft">{_text(state["store"] or "no store yet")}, up '
        f"{words.duration(state['uptime_seconds'])}</span></header>"
    )


def _fault(message: str, hint: str, when: str, over: bool = False) -> str:
    remedy = f"<br>{_text(hint)}" if hint else ""
    return (
        f'<div class="fault{" over" if over else ""}"><b>{_text(message)}</b>{remedy}'
        f'<br><span class="soft">{when}</span></div>'
    )


def _cards(state: dict[str, Any]) -> str:
    point = state["recovery_point"]
    count = len(state["backlog"])
    cards = [
        (
            "recovery point",
            f"{words.duration(point['age_seconds'])} old" if point else "none yet",
            f"{point['checkpoint']}, commit {point['seq']}, {words.size(point['bytes'])}"
            if point
            else "nothing is safe",
        ),
        (
            "lag",
            words.duration(state["lag_seconds"]) if state["lag_seconds"] else "none",
            "that something newer has been complete",
        ),
        ("backlog", f"{count} checkpoint{'' if count == 1 else 's'}",
         words.size(state["backlog_bytes"])),
        (
            "throughput",
            words.throughput(state),
            f"{words.size(state['sent_bytes'])} sent, {state['commits']} commits, "
            f"watching by {state['watching'] or 'nothing yet'}",
        ),
    ]  # fmt: skip
    if mirror := state.get("mirror"):
        good = "ok" if mirror["healthy"] else "needs attention"
        cards.append(("mirror", good, words.mirror(mirror)))
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><span class="soft">{name}</span><b>{_text(value)}</b>'
            f"{_text(more)}</div>"
            for name, value, more in cards
        )
        + "</div>"
    )


def _under_way(way: dict[str, Any] | None) -> str:
    if way is None:
        return ""
    left = way["seconds_left"]
    return (
        f"<h2>under way</h2><div>{_text(way['checkpoint'])} "
        f'<span class="soft">{words.size(way["bytes"])} of {words.size(way["total"])}'
        f"{'' if left is None else f', {words.duration(left)} left'}</span>"
        f'<progress max="{max(1, way["total"])}" value="{way["bytes"]}"></progress></div>'
    )


def _table(head: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="wide"><table><tr>{cells}</tr>{"".join(rows)}</table></div>'


def _checkpoints(state: dict[str, Any], passages: list[dict[str, Any]], now: float) -> str:
    waiting = [
        f'<tr><td class="name">{_text(item["path"])}</td><td class="when">'
        f'{words.size(item["size"])}</td><td class="when">waits for '
        f"{words.duration(item['waited_seconds'])}</td><td></td><td></td></tr>"
        for item in state["backlog"][:20]
    ]
    rows = [
        f'<tr><td class="name">{_text(p["checkpoint"])} <span class="soft">#{p["seq"]}</span></td>'
        f'<td class="when">{words.size(p["size"])}</td>'
        f'<td class="when" data-is="written">{_when(p["written"], now)}</td>'
        f'<td class="when" data-is="committed">{_when(p["committed"], now)}</td>'
        + (
            f'<td class="bad">{_text(p["broken"])}</td></tr>'
            if p["broken"]
            else f'<td class="when" data-is="verified">{_when(p["verified"], now)}</td></tr>'
        )
        for p in reversed(passages)
    ]
    if not waiting and not rows:
        return '<h2>checkpoints</h2><p class="soft">none yet</p>'
    head = ("checkpoint", "size", "written", "committed", "verified")
    return f"<h2>checkpoints</h2>{_table(head, waiting + rows)}"


def _incomplete(items: list[dict[str, Any]]) -> str:
    if not items:
        return ""
    rows = (
        f'<tr><td class="name">{_text(item["path"])}</td><td>{_text(item["reason"])}</td></tr>'
        for item in items[:20]
    )
    return f"<h2>not complete</h2>{_table(('checkpoint', 'because'), rows)}"


def _programs(programs: Sequence[Program]) -> str:
    if not programs:
        return ""
    rows = (
        f'<tr><td class="name">{_text(p.name)}</td>'
        f'<td class="{"good" if p.state == "RUNNING" else "soft"}">{_text(p.state)}</td>'
        f"<td>{_text(p.words)}</td></tr>"
        for p in programs
    )
    return f"<h2>programs</h2>{_table(('program', 'state', ''), rows)}"


def _past(faults: list[dict[str, Any]], now: float) -> str:
    over = [fault for fault in reversed(faults) if fault["until"] is not None]
    if not over:
        return ""
    shown = "".join(
        _fault(
            fault["message"],
            "",
            f"{_when(fault['since'], now)}, for {words.duration(fault['until'] - fault['since'])}",
            over=True,
        )
        for fault in over[:20]
    )
    return f"<h2>faults that are over</h2>{shown}"
