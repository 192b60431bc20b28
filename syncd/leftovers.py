"""What was sent for a checkpoint that was never committed, and that has gone or changed since."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from syncd.errors import NotFound
from syncd.journal import Journal
from syncd.scan import is_as_seen
from syncd.stores.base import ObjectStore


def clear(store: ObjectStore, journal: Journal, root: Path) -> int:
    """Delete objects that no attempt will ever name; how many. Errors of the store are raised.

    They are those that this journal has sent, for files below ``root`` that are not as they were,
    and only while they are still the same. Never beside a publication: that might name one.
    """
    gone = [sent for sent in journal.all_sent() if not is_as_seen(root / sent.path, sent.stat)]
    for sent in gone:
        with suppress(NotFound):
            if store.head(sent.key).version == sent.version:
                store.delete([sent.key])
        journal.drop_sent(sent.key)
    return len(gone)
