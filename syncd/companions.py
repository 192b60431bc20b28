"""What only accompanies checkpoints, by names and sizes: nothing that a trainer goes on from."""

from __future__ import annotations

import re

from syncd.filestat import Stat
from syncd.scan import Folder

_COMPANION = re.compile(
    r"[^.]+|last_checkpoint\.rank[-_]?\d+|.*\.(json|jsonl|ya?ml|toml|ini|cfg|conf|txt|md|csv|log)",
    re.IGNORECASE,
)
_COMPANION_LIMIT = 1024 * 1024
_LOG = re.compile(r".*(tfevents.*|\.(log|jsonl|csv|tsv|md|out|err|wandb))", re.IGNORECASE)
"""What is written to all the time, and proves nothing of a checkpoint."""

_GROWS = re.compile(
    r"(.*/)?([^/]*tfevents[^/]*|[^/]*\.(log|jsonl|out|err|wandb)"
    r"|([^/]*[-_.])?(metrics|scalars|logs?|loss(?!.scal)|losses)([-_.][^/]*)?\.(json|txt|csv|tsv)"
    r"|([^/]*[-_.])?(results|summary|progress|monitor|history)([-_.][^/]*)?\.(csv|tsv)"
    r"|[^/]*logs?\.txt|(std)?(out|err)(put)?\.txt|vis_data/[^/]*\.json"
    r"|(result|catboost_training)\.json|[^/]*_(error|left)\.tsv)",
    re.IGNORECASE,
)
"""What loggers append to, or write anew all the time: TensorBoard, Python's, Detectron2, MMEngine,
Lightning, Ultralytics, Ray, CatBoost."""

_ASIDE = re.compile(
    r".*\.(py|sh|ipynb|html?|css|js|xml|rst|tex|pdf|svg|png|jpe?g|gif|webp|log|jsonl|out|wandb|lock)"
    r"|.*tfevents.*|core\.\d+|\.DS_Store",
    re.IGNORECASE,
)
"""Code, pages, pictures and logs, of whatever size: no trainer goes on from these."""

_WORDS = re.compile(
    r"(tokenizer.*|vocab.*)\.json|(merges|vocab.*)\.txt|(tokenizer|spiece|.*\.bpe)\.model"
)
"""What tokenizers are made of, of whatever size."""

RECIPE = "recipe_state"
"""A folder with one file of this name (torchtune): all but the weights, of whatever size, written
anew with each epoch. It is of no use without that epoch's weights, which lie in another folder."""

_SERIES = re.compile(
    r".*\.(ckpt|pt|pth|pth\.tar|safetensors|zip|keras|h5|cleanrl_model)", re.IGNORECASE
)
"""Files that are each a whole checkpoint though they share a directory (Lightning, Ultralytics)."""

_STATE_TEXT = re.compile(r".*state.*\.(json|ya?ml|txt)", re.IGNORECASE)
_STEP = re.compile(r".*\d+")
"""A directory named after a step or an epoch holds one set of files."""

_STEPS = re.compile(
    r"(checkpoint|ckpt|global_?step|step|iter|iteration|epoch)[-_.]?\d+|CKPT\+[-+\d]+",
    re.IGNORECASE,
)
"""A directory that is one of several checkpoints, whatever is in it (Ray, SpeechBrain, scripts)."""

_RECORDERS = {"mlruns", "wandb"}
"""Folders of those who keep record of experiments, where numbers name no steps."""


def accompanies(name: str, stat: Stat) -> bool:
    """Whether no trainer goes on from a file, as far as its name and size tell."""
    small = is_slight(name, stat.size)
    named = name == f"{RECIPE}.pt" or _ASIDE.fullmatch(name) or _WORDS.fullmatch(name)
    return bool(small or named)


def is_slight(name: str, size: int) -> bool:
    """Whether it is a small text by its name and size."""
    return size <= _COMPANION_LIMIT and bool(_COMPANION.fullmatch(name))


def is_companion(folder: Folder, name: str) -> bool:
    """Whether a file of a folder only accompanies checkpoints."""
    return _repeats(folder, name) or accompanies(name, folder.files[name])


def _repeats(folder: Folder, name: str) -> bool:
    """Whether a text beside it says the same (Ray's settings of a trial)."""
    return name == "params.pkl" and "params.json" in folder.files


def is_log(name: str) -> bool:
    """Whether a file is a log by its name: it comes, goes and grows, and proves nothing."""
    return bool(_LOG.fullmatch(name.rpartition("/")[2]))


def grows(path: str) -> bool:
    """Whether a file is a log by its path: it is written to all the time, at its end.

    No text that may hold state is one, for that is written over: ``state.json``, ``model.txt``.
    """
    return bool(_GROWS.fullmatch(path))


def tells_of_state(name: str) -> bool:
    """Whether a companion may hold some state that was saved: no log, code or picture does."""
    return not (_ASIDE.fullmatch(name) or is_log(name))


def all_accompany(folder: Folder) -> bool:
    """Whether all that lies below a directory which nobody's profile fits accompanies others.

    Some trainers keep each step as small text, or in files whose names tell nothing.
    """
    parts = [part for _, part in folder.walk()]
    files = [file for part in parts for file in part.files.items() if not _repeats(part, file[0])]
    if any(part.unfinished for part in parts) or not all(accompanies(*file) for file in files):
        return False
    if not _RECORDERS.isdisjoint(folder.path.split("/")):
        return True
    steps = any(_STEP.fullmatch(part.name) for part in parts)
    return not steps and all("." in name for name, _ in files)


def holds_no_state(folder: Folder) -> bool:
    """Whether no trainer goes on from anything below a directory: texts, or pictures and logs."""
    names = [(part, name) for _, part in folder.walk() for name in part.files]
    return all_accompany(folder) or all(
        _ASIDE.fullmatch(name) or grows(part.below(name)) for part, name in names
    )


def keeps_text_of_state(folder: Folder) -> bool:
    """Whether a text in a directory says by its name that it belongs to one save."""
    return any(_STATE_TEXT.fullmatch(name) for name in folder.files)


def holds_steps(folder: Folder) -> bool:
    """Whether there are checkpoints in a directory that is none itself: a run, an experiment."""
    if any(map(_STEPS.fullmatch, folder.path.split("/"))):
        return False
    return any(map(_STEPS.fullmatch, folder.folders))


def ends_in_number(folder: Folder) -> bool:
    """Whether a directory may be one of several, by a number at its end."""
    return bool(_STEP.fullmatch(folder.name))


def is_step(name: str) -> bool:
    """Whether a directory's name says that it is one of several steps."""
    return bool(_STEPS.fullmatch(name))


def could_be_set(folder: Folder) -> bool:
    """Whether there are files in an unknown directory and they belong together."""
    if all(_ASIDE.fullmatch(name) for name in folder.files):
        return False
    if _STEP.fullmatch(folder.name) or folder.name == RECIPE:
        return True
    return not all(map(is_whole_alone, folder.files))


def is_whole_alone(name: str) -> bool:
    """Whether a file's name says that it is a checkpoint by itself, whatever lies beside it."""
    return bool(_SERIES.fullmatch(name))
