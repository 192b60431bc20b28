"""How trainers write their checkpoints: a table that a person extends with a few lines.

A profile recognises a checkpoint directory and knows its writer's last act. The sources are the
writers' own code; docs/architecture.md tells how to add one.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from syncd.scan import Folder


@dataclass(frozen=True)
class Profile:
    """One writer's manner.

    directory    the directory's name (regular expression, whole name)
    contains     paths or globs below it, of which at least one must be there
    needs        paths or globs below it that must all be there; where there is neither marker nor
                 tracker, they are written last, but for ``late``
    marker       file inside that the writer finishes last
    marker_renamed   the writer gives it its name by a rename
    required_with    members that only ever come with the marker: with one of them, nothing is
                 complete without it. With none, a marker that never comes is not waited for
    late         members that may be written after the last act
    tracker      file or link beside the directory that names the newest finished one; it is no
                 checkpoint itself: a restore writes it anew, so that it names what is there
    tracks       what the tracker holds: "name" of the directory, its "number", or a "link" to it
    blocked_by   file inside that says "still saving"
    renamed      the directory only ever appears whole, by a rename
    """

    name: str
    directory: str = ".*"
    contains: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    marker: str | None = None
    marker_renamed: bool = False
    required_with: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    tracker: str | None = None
    tracks: str = "name"
    blocked_by: str | None = None
    renamed: bool = False


@dataclass(frozen=True)
class Group:
    """Several files that make one checkpoint though they share their folder with others.

    ends     how the name of the file ends that names the checkpoint
    head     that whole name (regular expression with named groups)
    parts    names of the others, made of what the named groups found
    """

    name: str
    ends: str
    head: str
    parts: tuple[str, ...]


GROUPS = (
    Group(
        "sb3",
        "_steps.zip",
        r"(?P<run>.+)_(?P<step>\d+)_steps\.zip",
        ("{run}_replay_buffer_{step}_steps.pkl", "{run}_vecnormalize_{step}_steps.pkl"),
    ),
)

PROFILES = (
    Profile("trainer", r"gen-\d{6,}", contains=("state.json",), renamed=True),
    Profile("orbax", contains=("commit_success.txt", "_CHECKPOINT_METADATA"), renamed=True),
    Profile(  # Accelerate's save_state, also under the names that the Diffusers scripts give
        "accelerate",
        r"checkpoint[-_]\d+",
        contains=("random_states_*.pkl", "optimizer*.bin", "scheduler*.bin", "sampler*.bin"),
        needs=("random_states_*.pkl",),
        late=("custom_checkpoint_*.pkl",),
    ),
    Profile(  # under the names that kohya's scripts give: NAME-000002-state
        "accelerate",
        r".+[-_]state",
        contains=("random_states_*.pkl",),
        needs=("random_states_*.pkl",),
        late=("custom_checkpoint_*.pkl", "train_state.json"),
    ),
    Profile(
        "hf",
        r"checkpoint-\d+",
        marker="trainer_state.json",
        required_with=("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state*.pth"),
        late=("rng_state*.pth", "README.md"),
        blocked_by="checkpoint-is-incomplete.txt",
    ),
    Profile("deepspeed", r"global_step\d+", tracker="latest"),
    Profile(
        "megatron",
        r"iter_\d{7}",
        tracker="latest_checkpointed_iteration.txt",
        tracks="number",
        late=("*.json", "*.yaml", "*.txt", "*.model", "*tokenizer*"),
    ),
    Profile(  # NeMo 2; a file beside it says how long it is being saved
        "nemo",
        r".*(step|epoch)=\d.*",
        contains=("weights/*.distcp", "weights/.metadata"),
        marker="weights/.metadata",
        marker_renamed=True,
        required_with=("weights/*",),
        late=("context/*", "weights/metadata.json"),
    ),
    Profile(
        "dcp",
        contains=(".metadata", "*.distcp"),
        marker=".metadata",
        marker_renamed=True,
        required_with=("*",),
    ),
    Profile(
        "lerobot",
        r"\d+",
        contains=("pretrained_model/*",),
        needs=("pretrained_model/*", "training_state/*"),
        tracker="last",
        tracks="link",
    ),
    Profile(
        "eigen2",
        contains=("population/agent_*.pth",),
        marker="trainer_state.json",
        required_with=("*",),
    ),
)
"""Tried in this order; the first that fits names the checkpoint."""

SET = Profile("set")
"""A directory of files that nobody's profile fits: complete after quiet time."""

LONE = Profile("file")
"""A file by itself: complete after quiet time, once its format is whole."""

COMPANION = Profile("companion")
"""Small text, code, a picture, a link, or a directory of nothing else (``tokenizer``): restored
beside checkpoints, never instead of one."""


_GLOB = re.compile(r"[*?\[]")


def _has(folder: Folder, pattern: str) -> bool:
    head, slash, rest = pattern.partition("/")
    if slash:
        return any(
            _has(child, rest)
            for name, child in folder.folders.items()
            if fnmatch.fnmatchcase(name, head)
        )
    if not _GLOB.search(head):
        return head in folder.files or head in folder.folders
    match = re.compile(fnmatch.translate(head)).match
    return any(map(match, folder.files)) or any(map(match, folder.folders))


def by_name(label: str) -> Profile | None:
    """The profile that a commit record's ``profile`` speaks of, if this version knows it."""
    name = label.partition(",")[0]
    return next((profile for profile in PROFILES if profile.name == name), None)


def profile_of(folder: Folder) -> Profile | None:
    """The profile whose name and content fit this directory."""
    for profile in PROFILES:
        if not re.fullmatch(profile.directory, folder.name):
            continue
        if not profile.contains or any(_has(folder, pattern) for pattern in profile.contains):
            return profile
    return None


def may_become(folder: str, child: str) -> bool:
    """Whether what happens in ``child`` may make a checkpoint of the folder of this name."""
    return any(
        fnmatch.fnmatchcase(child, pattern.partition("/")[0])
        for profile in PROFILES
        if re.fullmatch(profile.directory, folder)
        for pattern in profile.contains
        if "/" in pattern
    )
