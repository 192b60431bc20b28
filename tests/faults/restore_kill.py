"""A restore is killed at random points: is the target ever anything but the old or the new?

``python -m tests.faults.restore_kill --kills 1000 --seed 1``: each trial restores into a copy of
one scenario's disk and dies by SIGKILL, before a random line of syncd's own code (``--by line``)
or after a random time of its life (``--by time``). Then it looks at every byte, restores again,
and looks for rubbish. ``--by each`` kills before each line in which the place is taken, once, in
every scenario. It ends with 1 if anything was found, and names the seed.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from syncd.place import REPLACED, STAGING
from tests.workbench import Machine

_PLACE = ("syncd/place.py",)
_ALL = (*_PLACE, *(f"syncd/{n}.py" for n in ("restore", "comeback", "unproven", "journal")))

Tree = dict[str, str]
"""What lies below a folder: relative path to content, links as ``-> target``."""


@dataclass(frozen=True)
class Scenario:
    """One disk, one bucket, one command, and the only two states that may be seen."""

    name: str
    home: Path
    environ: dict[str, str]
    arguments: tuple[str, ...]
    old: Tree
    new: Tree
    kept: Tree | None
    """What has to lie in ``.syncd-replaced`` at the end."""

    exchange: bool = True
    """Without: as on a file system that cannot exchange two names."""


def look(root: Path) -> Tree:
    """The tree as a person sees it: no hidden folders of syncd's, no empty ones."""
    found: Tree = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if any(part.startswith((STAGING, REPLACED)) for part in name.split("/")):
            continue
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes().hex()
    return found


def scenarios(home: Path, rng: random.Random) -> list[Scenario]:
    """A folder, a file, files of one step; nothing, an older one, a tracker there; kept or not."""
    made = []
    newest, force = {"RESUME_FROM": "newest"}, ("--force",)
    for name, path, environ, arguments, exchange in (
        ("fresh folder", "run/gen-000010", {}, (), True),
        ("folder, forced", "run/gen-000010", {}, force, True),
        ("folder, kept", "run/gen-000010", newest, (), True),
        ("file, forced", "last.bin", {}, force, True),
        ("file, kept", "last.bin", newest, (), True),
        ("tracker", "ds/global_step20", newest, (), True),
        ("folder, forced, slow", "run/gen-000010", {}, force, False),
        ("folder, kept, slow", "run/gen-000010", newest, (), False),
        ("file, kept, slow", "last.bin", newest, (), False),
        ("fresh, beside", "ppo/rl_model_10_steps.zip", {}, (), True),
        ("beside, kept", "ppo/rl_model_10_steps.zip", newest, (), True),
        ("beside, forced", "ppo/rl_model_10_steps.zip", {}, force, True),
        ("unproven", "plain/gen-000010", {}, (), True),
    ):
        place = home / name.replace(" ", "-").replace(",", "")
        made.append(_scenario(name, place, path, dict(environ), arguments, exchange, rng))
    return made


def _files(path: str, rng: random.Random) -> dict[str, bytes]:
    if path == "last.bin":
        return {path: rng.randbytes(300_000)}
    if path.startswith("ppo/"):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as model:
            model.writestr("policy", rng.randbytes(20_000))
        buffer = pickle.dumps(rng.randbytes(20_000))
        return {path: archive.getvalue(), "ppo/rl_model_replay_buffer_10_steps.pkl": buffer}
    inner = {f"agents/a-{n}.bin": rng.randbytes(rng.randint(0, 50_000)) for n in range(5)}
    return {f"{path}/{name}": data for name, data in {**inner, "state.json": b"{}"}.items()}


def _scenario(
    name: str,
    home: Path,
    path: str,
    environ: dict[str, str],
    arguments: tuple[str, ...],
    exchange: bool,
    rng: random.Random,
) -> Scenario:
    disk = home / "disk/checkpoints"
    disk.mkdir(parents=True)
    bucket = home / "bucket"
    if name == "unproven":
        for file, data in _files(path, rng).items():
            (bucket / "eigen2/checkpoints" / file).parent.mkdir(parents=True, exist_ok=True)
            (bucket / "eigen2/checkpoints" / file).write_bytes(data)
        new = {f.removeprefix("eigen2/checkpoints/"): d for f, d in look(bucket).items()}
        return Scenario(name, home, environ, arguments, {}, new, None)
    machine = Machine(home / "first", bucket).start()
    for file, data in _files(path, rng).items():
        machine.write(file, data)
    if path.startswith("ds/"):
        machine.write("ds/latest", "global_step20")  # after what it names, or it completes nothing
    if path.startswith("run/"):
        (machine.root / path / "best").symlink_to("agents/a-0.bin")
    machine.commit_all()
    machine.journal.close()
    new = look(machine.root)
    if not name.startswith("fresh"):
        before = path.replace("20", "10")  # a tracker's older neighbour stays where it is
        for file, data in _files(before, rng).items():
            (disk / file).parent.mkdir(parents=True, exist_ok=True)
            (disk / file).write_bytes(data)
            os.utime(disk / file, (1_600_000_000, 1_600_000_000))
        if path.startswith("ds/"):
            (disk / "ds/latest").write_text("global_step10")
    old = look(disk)
    beside = {k: v for k, v in old.items() if path.startswith("ds/") and k != "ds/latest"}
    kept = old if environ and not beside else None
    return Scenario(name, home, environ, arguments, old, {**beside, **new}, kept, exchange)


# -- one life of the command


def _life(
    disk: Path,
    scenario: Scenario,
    stepped: tuple[str, ...],
    die_at: int | None,
    count_to: Path | None,
) -> None:
    """``python -m syncd restore`` in this process, which kills itself before one of its lines."""
    import syncd.place
    from syncd.cli import main

    os.chdir(disk)
    os.environ.update(_environ(scenario))
    log = os.open(disk / "words", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if not scenario.exchange:
        syncd.place._exchange = lambda *_: False
    lines = itertools.count(1)

    def trace(frame: FrameType, event: str, _arg: Any) -> Callable[..., Any] | None:
        if not frame.f_code.co_filename.endswith(stepped):
            return None
        if event == "line" and next(lines) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.argv = ["syncd", "restore", *scenario.arguments]
    if stepped:
        threading.settrace(trace)
        sys.settrace(trace)
    try:
        main()
    finally:
        sys.settrace(None)
        if count_to:
            count_to.write_text(str(next(lines)))


def _environ(scenario: Scenario) -> dict[str, str]:
    return {
        "CLOUD_PROVIDER": "local",
        "CLOUD_BUCKET": str(scenario.home / "bucket"),
        "SYNCD_HTTP": "off",
        "RESUME_FROM": "local",
        **scenario.environ,
    }


def _run(
    context: Any,
    disk: Path,
    scenario: Scenario,
    stepped: tuple[str, ...] = (),
    die_at: int | None = None,
    count_to: Path | None = None,
) -> tuple[int, str]:
    words = disk / "words"
    process = context.Process(target=_life, args=(disk, scenario, stepped, die_at, count_to))
    process.start()
    process.join(120)
    return process.exitcode, words.read_text() if words.exists() else ""


def _run_for(disk: Path, scenario: Scenario, seconds: float | None) -> tuple[int, str]:
    """The command as a person types it, killed after so long."""
    with subprocess.Popen(
        [sys.executable, "-m", "syncd", "restore", *scenario.arguments],
        cwd=disk,
        env={**os.environ, **_environ(scenario), "PYTHONPATH": str(Path.cwd())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            words, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            words, _ = process.communicate()
    return process.returncode, words


def judge(disk: Path, scenario: Scenario) -> str:
    """What is wrong with the target right after the kill; "" for nothing."""
    found = look(disk / "checkpoints")
    if found in (scenario.old, scenario.new):
        return ""
    latest = scenario.old.get("ds/latest")
    if latest and found == {**scenario.new, "ds/latest": latest}:
        return ""  # whole, and not named yet
    if not scenario.exchange and not found:
        return ""  # between the two renames: the next restore must mend it
    if scenario.name.startswith("beside") and "ppo/rl_model_10_steps.zip" not in found:
        return ""  # what names the others is not there while they are not
    return f"between old and new: {sorted(found)}"


def judge_end(disk: Path, scenario: Scenario, code: int, words: str) -> str:
    """What is wrong after the restore that follows."""
    root = disk / "checkpoints"
    if code != 0:
        return f"the next restore ends with {code}: {words}"
    if look(root) != scenario.new:
        return f"the next restore leaves {sorted(look(root))}: {words}"
    rubbish = [str(path) for path in root.rglob("*") if path.name.startswith(STAGING)]
    if rubbish:
        return f"rubbish: {rubbish}"
    kept = [path for path in root.rglob("*") if path.parent.name == REPLACED]
    if scenario.kept is None:
        return f"kept in spite of --force: {kept}" if kept else ""
    if len(kept) != 1:
        return f"{len(kept)} copies of what was there before"
    files = [kept[0], *kept[0].rglob("*")]
    whole = sorted(path.read_bytes().hex() for path in files if path.is_file())
    return "" if whole == sorted(scenario.kept.values()) else f"what was kept is {len(whole)} files"


def kill(kills: int, seed: int, by: str = "line") -> list[str]:
    """So many kills, over all scenarios in turns; what was found, with the seed of each."""
    rng = random.Random(seed)
    context = _context()
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="restore-kill-") as name:
        home = Path(name)
        every = scenarios(home / "scenarios", rng)
        lengths: dict[str, float] = {}
        for number, scenario in zip(range(kills), itertools.cycle(every)):
            # every other kill within the few lines in which the place is taken
            stepped = () if by == "time" else (_PLACE, _ALL)[number // len(every) % 2]
            what = f"{scenario.name} {stepped}"
            if what not in lengths:
                lengths[what] = _length(context, home / "measure", scenario, stepped)
            at = rng.uniform(0, lengths[what])
            fault = _killed(context, home / f"disk-{number}", scenario, stepped, at)
            if fault:
                faults.append(f"seed {seed}, kill {number}, {scenario.name}: {fault}")
    return faults


def kill_at_each_line(chosen: str = "") -> list[str]:
    """Before each line in which the place is taken, once, in the scenarios of this name."""
    context = _context()
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="restore-kill-") as name:
        home = Path(name)
        for scenario in scenarios(home / "scenarios", random.Random(1)):
            if chosen not in scenario.name:
                continue
            lines = int(_length(context, home / "measure", scenario, _PLACE))
            for at in range(1, lines):
                fault = _killed(context, home / f"disk-{at}", scenario, _PLACE, at)
                if fault:
                    faults.append(f"line {at} of {lines}, {scenario.name}: {fault}")
    return faults


def _context() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["syncd.cli", "syncd.manual", "tests.workbench"])
    return context


def _killed(
    context: Any, disk: Path, scenario: Scenario, stepped: tuple[str, ...], at: float
) -> str:
    """One kill, by lines or seconds, and the restore that follows; what is wrong then."""
    shutil.copytree(scenario.home / "disk", disk, symlinks=True)
    if stepped:
        _run(context, disk, scenario, stepped, max(1, round(at)))
    else:
        _run_for(disk, scenario, at)
    fault = judge(disk, scenario)
    fault = fault or judge_end(disk, scenario, *_run(context, disk, scenario))
    shutil.rmtree(disk)
    return fault


def _length(context: Any, disk: Path, scenario: Scenario, stepped: tuple[str, ...]) -> float:
    """Lines, or seconds, of one undisturbed restore."""
    shutil.copytree(scenario.home / "disk", disk, symlinks=True)
    began = time.monotonic()
    if stepped:
        code, words = _run(context, disk, scenario, stepped, None, disk / "lines")
        length = float((disk / "lines").read_text())
    else:
        code, words = _run_for(disk, scenario, None)
        length = time.monotonic() - began
    fault = judge_end(disk, scenario, code, words)
    shutil.rmtree(disk)
    if fault:
        raise AssertionError(f"{scenario.name}, undisturbed: {fault}")
    return length


def main() -> int:
    """Print what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--by", choices=("line", "time", "each"), default="line")
    given = parser.parse_args()
    if given.by == "each":
        found: dict[str, object] = {"faults": (faults := kill_at_each_line())}
    else:
        faults = kill(given.kills, given.seed, given.by)
        found = {"kills": given.kills, "seed": given.seed, "faults": faults}
    print(json.dumps(found, indent=1))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
