"""Forgotten uploads are aborted beside everything else: a store that hangs holds up no look."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from pathlib import Path

from syncd.clock import Clock
from syncd.errors import SyncdError
from syncd.scan import is_as_seen
from syncd.uploadrows import Begun
from syncd.uploads import LATE, Uploads

log = logging.getLogger(__name__)

_AGAIN, _AFTER_FAILURE = 24 * 3600.0, 3600.0
"""Seconds between two looks into the store, and from one that failed to the next."""

_WAITS = 3600.0
"""Seconds for which a look into the store waits while checkpoints do."""


class Sweeper:
    """Decides when there is something to abort, and does it in a thread of its own."""

    def __init__(self, root: Path, clock: Clock) -> None:
        """``root`` is where the files lie that uploads are made of."""
        self._root = root
        self._clock = clock
        self._due = clock.monotonic()
        self._thread: threading.Thread | None = None

    def mind(
        self, uploads: Uploads, lives: Collection[str], left_out: Collection[str], idle: bool
    ) -> None:
        """Begin to abort what nobody will go on with, if there is any, and nothing is under way.

        ``lives`` are the writers of this machine, ``left_out`` files that are not sent any more.
        Unless it is ``idle``, the look at what others have left waits for a while.
        """
        if self._thread and self._thread.is_alive():
            return

        def wanted(begun: Begun) -> bool:
            return begun.path not in left_out and is_as_seen(self._root / begun.path, begun.stat)

        now = self._clock.monotonic()
        sweep = now >= self._due + (0.0 if idle else _WAITS)
        if not sweep and not uploads.left(wanted):
            return
        if sweep:
            self._due = now + _AGAIN

        def work() -> None:
            try:
                uploads.tidy(wanted)
                swept = uploads.sweep(lives) if sweep else 0
                if sweep and uploads.may_come:
                    self._due = min(self._due, self._clock.monotonic() + LATE)
                if swept:
                    log.info("aborted %d uploads that were begun and forgotten", swept)
            except Exception as error:  # noqa: BLE001 - it costs money, and never a checkpoint
                words = error.message if isinstance(error, SyncdError) else repr(error)
                log.info("forgotten uploads are looked for later: %s", words)
                self._due = min(self._due, self._clock.monotonic() + _AFTER_FAILURE)

        self._thread = threading.Thread(target=work, name="uploads", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Give what is under way this time to end."""
        if self._thread:
            self._thread.join(seconds)
