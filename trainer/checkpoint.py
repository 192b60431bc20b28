"""A checkpoint: one directory, written aside, fsynced, renamed into place.

    CHECKPOINT_DIR/<run>/gen-000010/
        agents/agent-00.safetensors ...     one file per agent; an unchanged elite: the same bytes
        learners/learner-00.safetensors ... parameters, targets, optimiser moments of each learner
        best.safetensors                    the actor that was worth most on validation so far
        replay.safetensors                  everybody's experience
        state.json                          written last: settings, histories, files with SHA-256,
                                            and the SHA-256 of all this as `seal`

Until its rename a checkpoint is `.tmp-gen-000010-<pid>`, a name that means "not yet". Tensors are
safetensors: a checkpoint that comes out of a bucket cannot run code.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from trainer.state import Files, digest

FORMAT = 3
STATE_FILE = "state.json"
NEEDED = frozenset({
    "run", "generation", "champion", "best", "updates", "data_hash", "history", "settings", "files",
    "state_digest", "saved_at",
})  # fmt: skip
_NAME = re.compile(r"gen-(\d{6,})")


@dataclass(frozen=True)
class Snapshot:
    """What a save needs, copied out of the running state."""

    run: str
    generation: int
    files: Files
    record: dict[str, Any]
    settings: dict[str, Any]
    identity: dict[str, Any]


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk."""

    path: Path
    state_digest: str


@dataclass(frozen=True)
class Loaded:
    """A checkpoint read and proven."""

    path: Path
    state: dict[str, Any]
    files: Files


class Damaged(Exception):
    """A checkpoint that is not what its state.json says."""


def name_of(generation: int) -> str:
    """The directory's name."""
    return f"gen-{generation:06d}"


def write(root: Path, snapshot: Snapshot) -> Saved:
    """Write a checkpoint; raises OSError having removed what it had begun."""
    run_dir = root / snapshot.run
    if not run_dir.is_dir():
        run_dir.mkdir(parents=True, exist_ok=True)
        _fsync(root)
    final = run_dir / name_of(snapshot.generation)
    aside = run_dir / f".tmp-{final.name}-{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        state = _write_files(aside, snapshot)
        _publish(aside, final)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    return Saved(final, state["state_digest"])


def sweep(run_dir: Path) -> None:
    """Remove what a killed life of this run left half-written (call under the run's lock)."""
    for left in run_dir.glob(".tmp-*"):
        shutil.rmtree(left, ignore_errors=True)


def prune(run_dir: Path, keep_last: int) -> None:
    """Remove all but the newest `keep_last` checkpoints; 0 keeps all."""
    if keep_last:
        for generation, path in sorted(_generations(run_dir), reverse=True)[max(2, keep_last) :]:
            aside = run_dir / f".tmp-old-{generation}-{os.getpid()}"
            path.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)


def has_any(run_dir: Path) -> bool:
    """Whether the run has a checkpoint, whole or not."""
    return any(True for _ in _generations(run_dir))


def newest(root: Path, run: str | None) -> tuple[Loaded | None, list[str]]:
    """The newest checkpoint that proves whole, and one line for each that was refused.

    Of the run named, else of the run whose newest checkpoint was saved last, then of the others.
    """
    refused: list[str] = []
    candidates: dict[str, list[tuple[int, Path]]] = {}
    ages: dict[str, tuple[str, int]] = {}
    for run_dir in [root / run] if run else _runs(root):
        for generation, path in _generations(run_dir):
            try:
                saved_at = str(read_state(path)["saved_at"])
            except Damaged as error:
                refused.append(f"{path}: {error}")
                continue
            candidates.setdefault(run_dir.name, []).append((generation, path))
            age = (saved_at, generation)
            ages[run_dir.name] = max(ages.get(run_dir.name, age), age)
    for name in sorted(candidates, key=lambda name: ages[name], reverse=True):
        for _, path in sorted(candidates[name], reverse=True):
            try:
                return read(path), refused
            except Damaged as error:
                refused.append(f"{path}: {error}")
    return None, refused


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's state.json; Damaged when it is absent, altered or of an unknown format."""
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except OSError as error:
        raise Damaged(f"{STATE_FILE} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise Damaged(f"{STATE_FILE} is not whole JSON") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise Damaged(f"{STATE_FILE} is no checkpoint's")
    if state["format"] != FORMAT:
        raise Damaged(f"its format is {state['format']}, and this trainer reads {FORMAT}")
    if state.get("seal") != seal(state):
        raise Damaged(f"{STATE_FILE} has another SHA-256 than its seal says")
    if missing := NEEDED - set(state):
        raise Damaged(f"{STATE_FILE} lacks {', '.join(sorted(missing))}")
    files = state["files"]
    if not isinstance(files, dict) or not all(isinstance(file, dict) for file in files.values()):
        raise Damaged(f"{STATE_FILE} names no files")
    return state


def seal(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state.json but for its seal: a flipped digit in a history is damage as well."""
    document = {name: value for name, value in state.items() if name != "seal"}
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def read(path: Path) -> Loaded:
    """Read a checkpoint and prove every file by size and SHA-256; Damaged says what is wrong."""
    state = read_state(path)
    files: Files = {}
    for name, expected in state["files"].items():
        if name.startswith("/") or ".." in Path(name).parts:
            raise Damaged(f"{STATE_FILE} names a file outside the checkpoint: {name!r}")
        try:
            content = (path / name).read_bytes()
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from None
        if len(content) != expected.get("size"):
            raise Damaged(f"{name} has {len(content)} bytes, not {expected['size']}")
        if hashlib.sha256(content).hexdigest() != expected.get("sha256"):
            raise Damaged(f"{name} has another SHA-256 than {STATE_FILE} says")
        try:
            files[name] = load_tensors(content)
        except SafetensorError as error:
            raise Damaged(f"{name} holds no tensors: {error}") from None
    return Loaded(path, state, files)


def _write_files(aside: Path, snapshot: Snapshot) -> dict[str, Any]:
    aside.mkdir()
    listing = {}
    for name, tensors in snapshot.files.items():
        path = aside / name
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, str(path))
        _fsync(path)
        listing[name] = {"size": path.stat().st_size, "sha256": _sha256(path)}
    state = {
        "format": FORMAT,
        "run": snapshot.run,
        "saved_at": datetime.datetime.now(datetime.timezone.utc).isoformat(),
        "host": platform.node(),
        "settings": snapshot.settings,
        **snapshot.record,
        "files": listing,
        "state_digest": digest(snapshot.files, snapshot.record, snapshot.identity),
    }
    state["seal"] = seal(state)
    target = aside / STATE_FILE
    with target.open("w", encoding="utf-8") as handle:
        json.dump(state, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    for folder in {path.parent for path in aside.rglob("*")}:
        _fsync(folder)
    return state


def _publish(aside: Path, final: Path) -> None:
    """Rename into place; a damaged one of the same name makes way."""
    old = final.with_name(f".tmp-old-{final.name}-{os.getpid()}")
    if final.exists():
        final.rename(old)
    aside.rename(final)
    _fsync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _runs(root: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [p for p in root.iterdir() if p.is_dir() and not p.name.startswith((".", "tmp"))]
    return []


def _generations(run_dir: Path) -> Iterator[tuple[int, Path]]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in run_dir.iterdir():
            match = _NAME.fullmatch(path.name)
            if match and path.is_dir():
                yield int(match[1]), path


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as handle:
        for block in iter(lambda: handle.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
