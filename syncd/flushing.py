"""Everything that is complete is committed now: at the end, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from syncd.backlog import Look
from syncd.clock import Clock
from syncd.commit import Publisher
from syncd.health import Waiting
from syncd.pipeline import Ends, Pipeline


@dataclass(frozen=True)
class FlushReport:
    """What a flush leaves: ``failed`` names what is complete and not safe."""

    committed: int
    logs: int
    failed: tuple[tuple[str, str], ...]
    incomplete: tuple[Waiting, ...]
    newer: tuple[tuple[str, str], ...] = ()
    """What is not sent and newer than all that is safe, and why not."""

    @property
    def safe(self) -> bool:
        """Whether everything complete on disk is committed."""
        return not self.failed


def flush(
    pipeline: Pipeline,
    publisher: Publisher,
    clock: Clock,
    give_up: Callable[[], bool],
    patience: float = 0.0,
    ends: Ends = lambda: None,
    only_in_time: bool = False,
    look: Look | None = None,
) -> Look:
    """Commit everything complete; newest first.

    What may become complete by quiet alone is waited for, ``patience`` seconds at most: a
    file that is always being written must not hold up a flush for ever. ``only_in_time``
    leaves what is not likely to be committed before the time ``ends`` says. ``look`` is one
    that was taken just now.
    """
    until = clock.monotonic() + patience
    with pipeline.pacer.hurry():
        look = look or pipeline.look(thorough=not only_in_time)
        while not give_up():
            if look.pending:
                if only_in_time and not pipeline.choose(look, publisher, ends)[1]:
                    break
                pipeline.commit_next(look, publisher, ends)
                if look.pending:
                    continue
            elif not _pause(clock, look.again, until, give_up):
                break
            look = pipeline.look()
    return look


def _pause(clock: Clock, seconds: float | None, latest: float, give_up: Callable[[], bool]) -> bool:
    """Wait so long, if that is worth while; say whether to look again."""
    until = clock.monotonic() + (seconds or 0.0)
    if seconds is None or until > latest:
        return False
    while not give_up() and (left := until - clock.monotonic()) > 0:
        clock.sleep(min(left, 0.1))
    return not give_up()
