"""The machine is lost at random moments: is what comes back ever torn or mixed?

``python -m tests.faults.torture --minutes 10 --seed 1``: each trial runs one of the writers and
the daemon over a slow link, kills both with SIGKILL, restores on an empty disk and looks at every
byte. It prints a line for each writer, and ends with 1 if anything was torn or mixed.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.processes import Machine
from tests.faults.writers import WRITERS

LINK = "2500K"
_SAVE = re.compile(rb"save (\d{8}) ")


@dataclass(frozen=True)
class Trial:
    """What one trial showed; ``verdict`` is intact, nothing, torn or mixed."""

    writer: str
    seed: int
    verdict: str
    finished: int
    restored: int


def saves_in(path: Path) -> set[int]:
    """Which saves a file has bytes of; ValueError if it is torn."""
    data = path.read_bytes()
    if path.suffix == ".json" or path.name in (".metadata", "_CHECKPOINT_METADATA"):
        return {int(json.loads(data).get("generation", 0))}
    if path.suffix in (".pt", ".pth", ".ckpt"):
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    raise ValueError("a record fails its checksum")
                data = b"".join(archive.read(name) for name in archive.namelist())
        except zipfile.BadZipFile as error:
            raise ValueError(str(error)) from error
    found = _SAVE.findall(data)
    if len(found) * 64 != len(data) and path.suffix != ".safetensors":
        raise ValueError("it has bytes of no save")
    if path.suffix == ".safetensors" and data.count(b"\0" * 64):
        raise ValueError("it has holes")
    return {int(number) for number in found}


def look(root: Path) -> tuple[str, int]:
    """Verdict on a restored tree, and the save that it is of."""
    saves: set[int] = set()
    for path in root.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        if path.name in ("latest", "latest_checkpointed_iteration.txt"):
            continue
        try:
            saves |= saves_in(path)
        except ValueError as error:
            return f"torn: {path.relative_to(root)}: {error}", 0
    if not saves:
        return "nothing", 0
    return ("intact", saves.pop()) if len(saves) == 1 else (f"mixed: {sorted(saves)}", 0)


def one_trial(writer: str, seed: int, settings: dict[str, str]) -> Trial:
    """Write, copy, lose the machine, restore."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="torture-") as name:
        home = Path(name)
        bucket = {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": str(home / "bucket"), **settings}
        one = Machine(home / "one", {**bucket, "SYNCD_BWLIMIT": LINK, "SYNCD_SETTLE": "0.5"})
        command = [sys.executable, "-m", "tests.faults.writers", writer, str(one.checkpoints)]
        with (
            (home / "saves").open("wb") as saves,
            subprocess.Popen([*command, str(seed)], stdout=saves) as process,
        ):
            try:
                one.start()
                for _ in range(rng.randint(0, 2)):  # the daemon alone dies now and then
                    time.sleep(rng.uniform(0.1, 2.5))
                    one.kill()
                    one.start()
                time.sleep(rng.uniform(0.1, 4.0))
            finally:
                process.send_signal(signal.SIGKILL)
                one.kill()
        finished = len((home / "saves").read_text().split())
        two = Machine(home / "two", bucket)
        restored = two.syncd("restore")
        if restored.returncode != 0:
            return Trial(writer, seed, f"torn: restore says {restored.stderr}", finished, 0)
        verdict, save = look(two.checkpoints)
        return Trial(writer, seed, verdict, finished, save)


def torture(minutes: float, seed: int, settings: dict[str, str]) -> list[Trial]:
    """Trials for so long, the writers in turns, each with a seed of its own."""
    until = time.monotonic() + minutes * 60
    trials: list[Trial] = []
    names = list(WRITERS)
    while time.monotonic() < until:
        number = len(trials)
        trial = one_trial(names[number % len(names)], seed * 100_000 + number, settings)
        trials.append(trial)
        if not trial.verdict.startswith(("intact", "nothing")):
            print(f"seed {trial.seed} {trial.writer}: {trial.verdict}", flush=True)
    return trials


def main() -> int:
    """Print a line for each writer and the sum."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    trials = torture(given.minutes, given.seed, {})
    print(f"{'writer':<15} trials  intact  nothing  torn  mixed  mean saves behind")
    for writer in [*WRITERS, ""]:
        mine = [trial for trial in trials if writer in ("", trial.writer)]
        kinds = Counter(trial.verdict.split(":")[0] for trial in mine)
        behind = [t.finished - t.restored for t in mine if t.verdict == "intact"]
        mean = sum(behind) / len(behind) if behind else 0.0
        print(
            f"{writer or 'all':<15} {len(mine):>6}  {kinds['intact']:>6}  {kinds['nothing']:>7}  "
            f"{kinds['torn']:>4}  {kinds['mixed']:>5}  {mean:.1f}"
        )
    return int(any(not t.verdict.startswith(("intact", "nothing")) for t in trials))


if __name__ == "__main__":
    sys.exit(main())
