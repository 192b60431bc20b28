"""How the path of a checkpoint and those of its members go together, and where they may lead."""

from __future__ import annotations

from pathlib import PurePosixPath

ZSTD = "zstd"
SUFFIXES = {"": "", ZSTD: ".zst"}
"""The ends of keys of objects, by the encoding of what they hold."""


def member(checkpoint: str, path: str, beside: bool = False) -> str:
    """The path under the root of a checkpoint's member: the one place that joins the two.

    >>> member("run/gen-000015", "agents/best")
    'run/gen-000015/agents/best'
    >>> member("run/model_10_steps.zip", "model_replay_buffer_10_steps.pkl", beside=True)
    'run/model_replay_buffer_10_steps.pkl'
    """
    folder = checkpoint.rpartition("/")[0] if beside else checkpoint
    return "/".join(part for part in (folder, path) if part)


def safe_path(path: str) -> bool:
    """Whether a relative path stays below its folder and names one thing only."""
    parts = path.split("/")
    return not any(part in ("", ".", "..") for part in parts) and "\0" not in path


def is_ours(path: str) -> bool:
    """Whether a path leads to what syncd keeps for itself: its state, or a restore under way."""
    return any(part == ".syncd" or part.startswith(".syncd-") for part in path.split("/"))


def link_stays_inside(path: str, target: str) -> bool:
    """Whether a link at ``path`` to ``target`` stays inside the folder ``path`` is relative to.

    ``..`` may only stand at the beginning: after a name that is itself a link it would lead
    from wherever that one points to, and so out of the folder.
    """
    if target.startswith("/") or "\0" in target or not target:
        return False
    depth, climbing = len(PurePosixPath(path).parts) - 1, True
    for part in target.split("/"):
        if part == "..":
            depth -= 1
            if depth < 0 or not climbing:
                return False
        elif part not in ("", "."):
            climbing = False
    return True


def encoding_of(key: str, path: str) -> str:
    """How an object holds the file ``path`` that it was made for: a key ends in that path."""
    return ZSTD if key.endswith(f"/{path}{SUFFIXES[ZSTD]}") else ""
