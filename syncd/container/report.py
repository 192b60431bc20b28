"""The few lines at the end: what became of the training, where it lies, what to do next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from syncd.container import probe
from syncd.container.rundir import Outcome, checkpoints

KILLED = 137


def final(
    outcome: Outcome | None,
    trainer_code: int | None,
    environ: Mapping[str, str] = os.environ,
    point: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write the report; no value of a secret variable is part of it."""
    words = _words(environ)
    folder = Path(environ.get("CHECKPOINT_DIR") or "checkpoints")
    newest = newest_checkpoint(folder)
    if _copies(environ):
        point = point or probe.newest_commit()
    rows = [
        ("outcome", _outcome(outcome, trainer_code)),
        ("data", _option(words, "--data") or environ.get("TRAINER_DATA") or "the trainer's own"),
        ("checkpoints", f"{folder}" + (f", newest {newest}" if newest else ", none yet")),
        ("logs", environ.get("LOG_DIR") or "logs"),
        ("bucket", _bucket(environ)),
        ("recovery point", _point(point, environ)),
        ("not safe", _not_safe(outcome, newest, point, environ)),
        ("next", _next(outcome, words, environ)),
    ]
    width = max(len(name) for name, _ in rows)
    return ["", "-- report " + "-" * 60, *(f"  {name:<{width}}  {text}" for name, text in rows)]


def newest_checkpoint(root: Path) -> str | None:
    """Return the name (below ``root``) of the youngest entry without younger ones inside it."""
    found: list[tuple[int, str, Path]] = []
    for path in checkpoints(root):
        try:
            if not path.is_symlink():
                found.append((path.stat().st_mtime_ns, path.relative_to(root).as_posix(), path))
        except OSError:
            continue
    parents = {path.parent for _, _, path in found if path.is_dir()}
    lone = [(mtime, name) for mtime, name, path in found if path not in parents and path.is_dir()]
    lone = lone or [(mtime, name) for mtime, name, path in found if path.is_file()]
    return max(lone)[1] if lone else None


def _words(environ: Mapping[str, str]) -> list[str]:
    try:
        return shlex.split(environ.get("TRAINER_ARGS", ""))
    except ValueError:
        return []


def _option(words: list[str], name: str) -> str | None:
    for index, word in enumerate(words):
        if word == name and index + 1 < len(words):
            return words[index + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def _outcome(outcome: Outcome | None, trainer_code: int | None) -> str:
    if outcome:
        return f"{outcome.reason} (exit {outcome.code})"
    if trainer_code == KILLED:
        return "stopped from outside; the trainer had to be killed before it had saved (exit 143)"
    return "stopped from outside (exit 143)"


def _copies(environ: Mapping[str, str]) -> bool:
    return bool(environ.get("CLOUD_BUCKET"))


def _bucket(environ: Mapping[str, str]) -> str:
    if not _copies(environ):
        return "none: CLOUD_BUCKET is not set, nothing is copied"
    provider = environ.get("CLOUD_PROVIDER") or "local"
    prefix = environ.get("CLOUD_PREFIX") or "eigen2"
    return f"{environ['CLOUD_BUCKET']} ({provider}), under {prefix}/"


def _point(point: Mapping[str, Any] | None, environ: Mapping[str, str]) -> str:
    if not _copies(environ):
        return "none"
    if not point:
        return "unknown: the store does not answer, or holds no commit yet"
    return f"{point.get('checkpoint')} (commit {point.get('seq')}, {point.get('committed_at')})"


def _not_safe(
    outcome: Outcome | None,
    newest: str | None,
    point: Mapping[str, Any] | None,
    environ: Mapping[str, str],
) -> str:
    if not _copies(environ):
        return f"everything: {newest} exists on this machine only" if newest else "nothing to lose"
    behind = newest is not None and (point is None or point.get("checkpoint") != newest)
    if outcome and outcome.safe and (outcome.left or not behind):
        return outcome.left or "nothing: all that is complete is in the bucket"
    if behind:
        return f"{newest} is not proven to be in the bucket; `python -m syncd --once` sends it"
    if outcome and outcome.safe is not True:
        return "the last flush failed; `python -m syncd --once` tries again and names what is left"
    if newest and point:
        return "nothing: the newest checkpoint is the recovery point"
    return "nothing known of: there is no checkpoint"


def _next(outcome: Outcome | None, words: list[str], environ: Mapping[str, str]) -> str:
    script = "bash start_vast.sh"
    if "--demo" in words:
        if outcome and outcome.code == 0:
            folder = shlex.quote(environ.get("CHECKPOINT_DIR") or "checkpoints")
            return (
                f"{script} --demo goes on from here; "
                f"after rm -rf {folder} it restores from the bucket and goes on"
            )
        return f"{script} --demo"
    data = _option(words, "--data")
    again = f"{script} --resume" + (f" --data {shlex.quote(data)}" if data else "")
    if outcome and outcome.code == 2:
        return f"mend what the trainer names above, then {again}"
    if outcome and outcome.code not in (0, 143):
        return f"read the trainer's last words above, then {again}"
    return f"{again} goes on from here"
