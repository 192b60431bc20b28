"""A run as one HTML page: fitness, equity beside the baselines, drawdown, trades.

Plots are SVG inside the page; nothing is loaded from anywhere, so that it can be mailed or kept.
"""

from __future__ import annotations

import base64
import datetime
import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from trainer.assess import Course, Subject
from trainer.display import percent
from trainer.evaluation import BASELINES
from trainer.settings import Settings

COLOURS = {"best": "#1f5fa8", "do-nothing": "#9a9a9a", "buy-and-hold": "#3a8f4c",
           "equal-weight": "#c98a1b", "random": "#b0413e"}  # fmt: skip
TRADES_SHOWN = 200
PERCENTS = {"return", "return_a_year", "volatility_a_year", "largest_drawdown", "mean_exposure",
            "costs", "sales_with_gain"}  # fmt: skip


def page(state: dict[str, Any], subject: Subject | None, why_not: str = "") -> str:
    """The report of a checkpoint's state.json and, where there is its data, of what it is worth."""
    history = state["history"]
    splits = []
    if subject is not None:
        for name, split in subject.splits().items():
            if name != "train":
                splits.append(_split(name, subject.courses(split)))
    shown = {**Settings().as_dict(), **state["settings"]}
    template = Environment(loader=PackageLoader("trainer"), autoescape=True).get_template(
        "report.html"
    )
    return template.render(
        state=state, splits=splits, why_not=why_not, settings=shown, baselines=BASELINES,
        fitness=_picture(_fitness(history)) if history else "",
        losses=_picture(_losses(history)) if any(e["critic_loss"] for e in history) else "",
        made=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        last=history[-1] if history else None, percent=percent,
        same_data=subject is None or subject.same_data,
    )  # fmt: skip


def write(path: Path, text: str) -> None:
    """Whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def _split(name: str, courses: list[Course]) -> dict[str, Any]:
    tables = {one.name: one.statistics() for one in courses}
    rows = [(key.replace("_", " "), [_shown(key, table[key]) for table in tables.values()])
            for key in tables["best"]]  # fmt: skip
    trades = courses[0].trades
    return {
        "name": name, "first": courses[0].dates[0], "last": courses[0].dates[-1],
        "names": list(tables), "rows": rows, "equity": _picture(_equity(courses)),
        "trading": _picture(_trading(courses[0])), "trades": trades[-TRADES_SHOWN:],
        "trades_in_all": len(trades),
    }  # fmt: skip


def _shown(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name in PERCENTS:
        return f"{100 * value:.2f} %"
    return f"{value:,.0f}" if name in ("days", "trades") else f"{value:,.2f}"


def _fitness(history: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = _figure(1, 3.2)
    at = [entry["generation"] for entry in history]
    axes.fill_between(at, *([_percent(e[name]) for e in history] for name in ("worst", "best")),
                      color="#1f5fa8", alpha=0.12, linewidth=0)  # fmt: skip
    axes.plot(at, [_percent(e["best"]) for e in history], color="#1f5fa8", label="best")
    axes.plot(at, [_percent(e["mean"]) for e in history], color="#1f5fa8", alpha=0.5, label="mean")
    if any(e["learners"] for e in history):
        learner = [_percent(max(e["learners"], default=math.nan)) for e in history]
        axes.plot(at, learner, color="#c98a1b", linewidth=1, label="best learner, with noise")
    axes.set(ylabel="mean return of an episode, %", xlabel="generation")
    checked = [e for e in history if "validation" in e]
    if checked:
        other = axes.twinx()
        worth = [_percent(e["validation"]) for e in checked]
        other.plot([e["generation"] for e in checked], worth, color="#3a8f4c", marker="o",
                   markersize=3, label="validation (right)")  # fmt: skip
        other.set_ylabel("return on validation, %")
        _legend(other, right=True)
    _legend(axes)
    return figure


def _losses(history: list[dict[str, Any]]) -> Figure:
    figure, (axes,) = _figure(1, 2.0)
    at = [e["generation"] for e in history]
    for index in range(max(len(e["critic_loss"]) for e in history)):
        axes.plot(at, [e["critic_loss"][index] if index < len(e["critic_loss"]) else math.nan
                       for e in history], linewidth=1)  # fmt: skip
    axes.set(ylabel="critic loss", xlabel="generation")
    return figure


def _equity(courses: list[Course]) -> Figure:
    figure, (axes, below) = _figure(2, 4.6)
    for one in reversed(courses):
        wide = 2.0 if one.name == "best" else 1.0
        at = range(len(one.dates))
        axes.plot(at, one.equity, color=COLOURS[one.name], linewidth=wide, label=one.name)
        drop = [100 * x for x in one.drawdown]
        below.plot(at, drop, color=COLOURS[one.name], linewidth=wide)
    axes.set_ylabel("equity, 1 at the start")
    _legend(axes)
    below.set_ylabel("drawdown, %")
    _date_ticks(below, courses[0].dates)
    axes.set_xticklabels([])
    return figure


def _trading(one: Course) -> Figure:
    figure, (axes, below) = _figure(2, 3.4)
    place = {date: at for at, date in enumerate(one.dates)}
    bought, sold = [0.0] * len(place), [0.0] * len(place)
    equity = one.equity
    for trade in one.trades:
        at = place[trade.date]
        into = bought if trade.side == "buy" else sold
        into[at] += 100 * trade.value / equity[at]
    axes.vlines(range(len(place)), 0, bought, color="#3a8f4c", label="bought")
    axes.vlines(range(len(place)), 0, [-x for x in sold], color="#b0413e", label="sold")
    axes.set_ylabel("% of equity")
    _legend(axes)
    axes.set_xticklabels([])
    below.fill_between(range(len(place)), 0, [100 * x for x in one.exposure], color="#1f5fa8",
                       alpha=0.3, linewidth=0)  # fmt: skip
    below.set_ylabel("invested, %")
    below.set_ylim(0, 105)
    _date_ticks(below, one.dates)
    return figure


def _figure(rows: int, height: float) -> tuple[Figure, list[Any]]:
    figure = Figure(figsize=(9, height), layout="constrained")
    heights = [2.0, 1.0][:rows]
    axes = figure.subplots(rows, 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
        one.margins(x=0.01)
    return figure, list(axes)


def _legend(axes: Any, *, right: bool = False) -> None:
    """Above the plot, where no line runs through it."""
    side, at = ("right", 1) if right else ("left", 0)
    axes.legend(loc=f"lower {side}", bbox_to_anchor=(at, 1), ncols=5, frameon=False)


def _date_ticks(axes: Any, dates: list[str]) -> None:
    at = sorted({round(i * (len(dates) - 1) / 6) for i in range(7)})
    axes.set_xticks(at, [dates[i] for i in at])


def _picture(figure: Figure) -> str:
    """A figure as the address of an image that stands in the page itself."""
    out = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "report", "font.size": 9}):
        FigureCanvasSVG(figure)
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(out.getvalue()).decode()


def _percent(log_return: float) -> float:
    return 100 * math.expm1(log_return) if math.isfinite(log_return) else math.nan
