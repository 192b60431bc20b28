"""Does a store keep its word? Some take the condition of a request and ignore it.

Only trying tells: an object is made on the condition that there is none, twice. The answer is
remembered in the journal, which belongs to one store, and asked for again after a week.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, replace

from syncd.clock import Clock
from syncd.errors import Conflict, Permanent, StoreError
from syncd.journal import Journal
from syncd.records import Layout
from syncd.stores.base import IfAbsent, ObjectStore

_FACT = "conditions"
_VALID = 7 * 24 * 3600.0
"""Seconds for which an answer holds: stores are updated now and then."""


@dataclass(frozen=True)
class Conditions:
    """Which requests a store refuses where an object is there already.

    puts      whole objects; without it no writer can be fenced
    uploads   objects made of parts, too
    """

    puts: bool
    uploads: bool


def probe(store: ObjectStore, layout: Layout, key: str = "") -> Conditions:
    """Try it, with one small object that is deleted again; the store's errors are raised."""
    for _ in store.list(layout.probe):  # a bucket that is not there is best told by a listing
        break
    key = key or _new_key(layout)
    try:
        puts = _refuses_put(store, key)
        return Conditions(puts, puts and _refuses_upload(store, key))
    finally:
        with contextlib.suppress(StoreError):  # no right to delete: a few bytes stay
            store.delete([key])


def _new_key(layout: Layout) -> str:
    return f"{layout.probe}{secrets.token_hex(8)}"


def _refuses_put(store: ObjectStore, key: str) -> bool:
    try:
        store.put(key, b"first", IfAbsent())
    except Conflict:
        return True  # nobody else has this key: an earlier try of this request arrived
    except Permanent:
        store.put(key, b"first")  # it is the condition that it does not take, or all is wrong
        return False
    try:
        store.put(key, b"second", IfAbsent())
    except Conflict:
        return True
    return False


def _refuses_upload(store: ObjectStore, key: str) -> bool:
    upload = store.start_upload(key, 5)
    try:
        upload.send(1, b"third")
        upload.finish(IfAbsent())
    except Conflict:
        return True
    except Permanent:
        return False
    finally:
        upload.abort()
    return False


def known_conditions(
    store: ObjectStore, layout: Layout, journal: Journal, clock: Clock
) -> Conditions:
    """What was found out within the last week; else it is tried now."""
    puts, uploads, at = (journal.get(_FACT) or "0 0 0").split()
    if float(at) and abs(clock.now() - float(at)) < _VALID:
        return Conditions(puts == "1", uploads == "1")
    key = _new_key(layout)
    number = journal.begin_upload(key, "", "", 0, 0)  # what a kill leaves of it is found again
    try:
        found = probe(store, layout, key)
    finally:
        journal.drop_upload(number)
    journal.remember(_FACT, f"{found.puts:d} {found.uploads:d} {clock.now():.0f}")
    return found


def restrict(store: ObjectStore, found: Conditions) -> None:
    """Have the store promise no more than it keeps."""
    can = store.capabilities
    store.capabilities = replace(
        can,
        put_if_absent=can.put_if_absent and found.puts,
        upload_if_absent=can.upload_if_absent and found.uploads,
        conditional_copy=can.conditional_copy and found.puts,
    )
