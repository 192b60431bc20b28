"""The live table of a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from trainer.display import Display

ENTRY = {"best": 0.01, "mean": 0.0, "learners": [-0.01], "validation": 0.02}


def test_a_terminal_shows_a_live_table_with_the_time_left() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=True, width=100))
    with display.training(20):
        for number in range(1, 11):
            display.generation({**ENTRY, "generation": number}, 6.0)
        display.warn("the disk is full")
    shown = out.getvalue()
    for words in ("generation", "10/20", "+1.01%", "+2.02%", "6.00 s", "left 1:00"):
        assert words in shown
    assert "WARNING: the disk is full" in shown
    last = shown[shown.rindex("validation") :]
    assert "10/20" in last
    assert "1/20" not in last.replace("11/20", ""), "the newest generations stay"


def test_without_a_terminal_each_generation_is_a_line_and_a_closed_output_stops_nothing() -> None:
    out = io.StringIO()
    display = Display(Console(file=out, soft_wrap=True))
    with display.training(20):
        display.generation({**ENTRY, "generation": 1}, 6.0)
    assert out.getvalue().count("\n") == 1
    assert "left 1:54" in out.getvalue()
    out.close()
    display.say("into the void")
    display.generation({**ENTRY, "generation": 2}, 6.0)
