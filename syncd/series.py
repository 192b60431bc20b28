"""What a checkpoint is one of, and which one, by its path."""

from __future__ import annotations

import re


def series(checkpoint: str) -> str:
    """What a checkpoint is one of: its path with the numbers of the last part left out.

    >>> series("run7/gen-000015")
    'run7/gen-#'
    """
    parent, slash, name = checkpoint.rpartition("/")
    return parent + slash + re.sub(r"\d+", "#", name)


def is_milestone(checkpoint: str, every: int | None) -> bool:
    """Whether a checkpoint's step, the last number of its name, is a multiple of ``every``.

    >>> is_milestone("run7/gen-000500", 100), is_milestone("epoch=1-step=250.h5", 100)
    (True, False)
    """
    if not every:
        return False
    step = step_of(checkpoint)
    return step >= 0 and step % every == 0


def step_of(checkpoint: str) -> int:
    """The last number of a checkpoint's name; -1 where there is none.

    >>> step_of("run7/gen-000015"), step_of("epoch=1-step=250.h5"), step_of("run7/last")
    (15, 250, -1)
    """
    name = re.sub(r"\.[A-Za-z]\w*$", "", checkpoint.rpartition("/")[2])
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers else -1
