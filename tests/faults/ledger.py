"""What a writer has told of its saves, and the judgement of a tree by it: byte for byte."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

ASIDES = ("latest", "latest_checkpointed_iteration.txt", "config_voice.json")
"""Trackers, which a restore writes anew, and a text that is of no save."""

Files = dict[str, tuple[int, str]]
"""Size and SHA-256 of files, by path under the root."""


@dataclass
class Save:
    """One save: its checkpoints, and when it began and ended on the monotonic clock."""

    units: list[Files]
    began: float
    done: float | None = None
    gap: float = 0.0

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(size for unit in self.units for size, _ in unit.values())


@dataclass(frozen=True)
class Finding:
    """``verdict`` is intact, nothing, torn or mixed; ``save`` the newest that is there."""

    verdict: str
    save: int = 0
    words: str = ""

    @property
    def good(self) -> bool:
        """Whether a trainer can go on from it, or from nothing."""
        return self.verdict in ("intact", "nothing")


def files_below(root: Path) -> Files:
    """Everything that a person sees below a folder; links, hidden staging and trackers not."""
    found: Files = {}
    for path in sorted(root.rglob("*")):
        parts = path.relative_to(root).parts
        if path.is_symlink() or not path.is_file() or path.name in ASIDES:
            continue
        if any(part.startswith(".syncd") for part in parts):
            continue
        data = path.read_bytes()
        found["/".join(parts)] = len(data), hashlib.sha256(data).hexdigest()
    return found


@dataclass
class Ledger:
    """All saves of a trial, by number."""

    saves: dict[int, Save] = field(default_factory=dict)

    @classmethod
    def read(cls, *logs: Path) -> Ledger:
        """From the logs of the writers; a last line that was cut short is left out."""
        ledger = cls()
        for log in logs:
            text = log.read_text() if log.exists() else ""
            for line in text.splitlines(keepends=True):
                if line.endswith("\n"):
                    ledger._add(json.loads(line))
        return ledger

    def _add(self, line: dict[str, object]) -> None:
        at = float(str(line["at"]))
        if "begin" in line:
            units: list[dict[str, list[object]]] = line["units"]  # type: ignore[assignment]
            files = [{p: (int(str(s)), str(d)) for p, (s, d) in u.items()} for u in units]
            self.saves[int(str(line["begin"]))] = Save(files, at)
        else:
            save = self.saves[int(str(line["done"]))]
            save.done, save.gap = at, float(str(line["gap"]))

    @property
    def finished(self) -> dict[int, float]:
        """When each save ended."""
        return {n: save.done for n, save in self.saves.items() if save.done is not None}

    def judge(self, found: Files) -> Finding:
        """Whether what was found is whole checkpoints and nothing else."""
        if not found:
            return Finding("nothing")
        left, newest = dict(found), 0
        for number in sorted(self.saves, reverse=True):
            for unit in self.saves[number].units:
                if all(found.get(path) == file for path, file in unit.items()):
                    newest = max(newest, number)
                    for path in unit:
                        left.pop(path, None)
        if not left:
            return Finding("intact", newest)
        return self._blame(left)

    def judge_plain(self, found: Files) -> Finding:
        """What a person meets who brings plain files home and goes on from the newest."""
        for number in sorted(self.saves, reverse=True):
            for unit in self.saves[number].units:
                torn = {p: found[p] for p in unit if p in found and not self._with(p, found[p])}
                if torn:
                    return self._blame(torn)
                same = [path for path, file in unit.items() if found.get(path) == file]
                own = [p for p in same if self._first_with(p, unit[p]) == number]
                if own and len(same) < len(unit):
                    return self._blame({p: found[p] for p in unit if p in found}, number)
                if own:
                    return Finding("intact", number)
        return self._blame(found) if found else Finding("nothing")

    def _first_with(self, path: str, file: tuple[int, str]) -> int:
        return min(self._with(path, file))

    def _with(self, path: str, file: tuple[int, str]) -> set[int]:
        return {
            number
            for number, save in self.saves.items()
            if any(unit.get(path) == file for unit in save.units)
        }

    def _blame(self, left: Files, number: int | None = None) -> Finding:
        """Torn: bytes of no save, or a file is missing. Mixed: whole files of several saves."""
        owners = {path: self._with(path, file) for path, file in left.items()}
        torn = [path for path, saves in owners.items() if not saves]
        if torn:
            return Finding("torn", 0, f"{torn[0]} has bytes of no save ({left[torn[0]][0]} bytes)")
        common = set.intersection(*owners.values())
        if common and (number is None or number in common):
            number = max(common)
            missing = [
                path
                for unit in self.saves[number].units
                if unit.keys() & left.keys()
                for path in unit.keys() - left.keys()
            ]
            return Finding("torn", 0, f"of save {number} there is no {', '.join(sorted(missing))}")
        which = ", ".join(f"{p} of {sorted(s)}" for p, s in sorted(owners.items()))
        return Finding("mixed", 0, which)
