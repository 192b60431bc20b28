"""Lines over time, drawn as SVG: no script, no style, no asset from elsewhere."""

from __future__ import annotations

import html
import time
from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 600, 130
_LEFT, _TOP, _BOTTOM = 4, 22, 22
_POINTS = 300
"""Points that are drawn at most: of those that fall together, the highest."""


def line(
    title: str, points: Sequence[tuple[float, float]], words: Callable[[float], str], now: float
) -> str:
    """One figure: ``points`` are (seconds since the epoch, value), oldest first."""
    latest = words(points[-1][1]) if points else "no samples yet"
    label = html.escape(f"{title}: {latest}")
    top = max((value for _, value in points), default=0.0)
    body = _curve(points, top, now) if len(points) > 1 else ""
    since = points[0][0] if points else now
    marks = (
        f'<text x="{_LEFT}" y="16">{html.escape(words(top))}</text>'
        f'<text x="{_LEFT}" y="{HEIGHT - 5}">{_clock(since)}</text>'
        f'<text x="{WIDTH - _LEFT}" y="{HEIGHT - 5}" text-anchor="end">{_clock(now)} UTC</text>'
    )
    base = HEIGHT - _BOTTOM
    return (
        f"<figure><figcaption>{html.escape(title)} <b>{html.escape(latest)}</b></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _LEFT}" y1="{_TOP}" y2="{_TOP}"/>'
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _LEFT}" y1="{base}" y2="{base}"/>'
        f"{body}{marks}</svg></figure>"
    )


def _curve(points: Sequence[tuple[float, float]], top: float, now: float) -> str:
    first, base = points[0][0], HEIGHT - _BOTTOM
    across = (WIDTH - 2 * _LEFT) / max(1.0, now - first)
    up = (base - _TOP) / (top or 1.0)
    places = [
        (_LEFT + (at - first) * across, base - value * up) for at, value in _thinned(points, now)
    ]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    area = f"{places[0][0]:.1f},{base} {path} {places[-1][0]:.1f},{base}"
    return f'<polygon class="area" points="{area}"/><polyline class="curve" points="{path}"/>'


def _thinned(points: Sequence[tuple[float, float]], now: float) -> list[tuple[float, float]]:
    first = points[0][0]
    wide = max(1.0, now - first) / _POINTS
    found: dict[int, tuple[float, float]] = {}
    for at, value in points:
        slot = int((at - first) / wide)
        if slot not in found or value >= found[slot][1]:
            found[slot] = (at, value)
    return [found[slot] for slot in sorted(found)]


def _clock(at: float) -> str:
    return time.strftime("%H:%M", time.gmtime(at))
