"""Reads the guides: their blocks of commands, what stands above each, and the output they show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<kind>console|bash|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One fenced block; ``mark`` is the comment on the line above it, empty where there is none."""

    guide: Path
    line: int
    kind: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.guide.name}:{self.line}"


@dataclass(frozen=True)
class Command:
    """What a person types, and the lines that the guide shows after it."""

    where: str
    text: str
    shown: tuple[str, ...] = ()


def blocks(guide: Path) -> list[Block]:
    """Every block of commands, and of Python, of one guide."""
    text = guide.read_text()
    return [
        Block(
            guide,
            text.count("\n", 0, found.start("kind")) + 1,
            found["kind"],
            found["mark"] or "",
            found["text"],
        )
        for found in _FENCE.finditer(text)
    ]


def commands(block: Block) -> list[Command]:
    """The commands of a block of kind ``console``: the lines with a ``$``, and what follows."""
    found: list[Command] = []
    for line in block.text.splitlines():
        last = found[-1] if found else None
        if line.startswith("$ "):
            found.append(Command(block.name, line[2:]))
        elif last and not last.shown and last.text.endswith("\\"):
            found[-1] = Command(last.where, f"{last.text}\n{line}")
        elif last:
            found[-1] = Command(last.where, last.text, (*last.shown, line))
    return found


def missing(shown: tuple[str, ...], said: str) -> str | None:
    """The first shown line that was not said, in this order; None when all were.

    ``…`` stands for anything, a number for any number but that of a step, and spaces count once.
    """
    said_lines = iter(said.splitlines())
    for line in shown:
        if line.strip() in ("", "…"):
            continue
        parts = (re.escape(_plain(part)) for part in line.split("…"))
        pattern = re.compile(".*".join(parts).strip())
        if not any(pattern.search(_plain(candidate)) for candidate in said_lines):
            return line
    return None


def _plain(line: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"(?<!step-)(?<!step )\b\d+(\.\d+)?", "#", line))
