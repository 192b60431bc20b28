"""What can go wrong, as one short tree.

    SyncdError
    ├── SettingsError        every fault of the settings, all at once (exit 2)
    ├── Changed              a member changed while it was read: this revision is dropped
    │   └── Busy             a database that its writer leaves no moment for a copy: later
    ├── GaveWay              stopped for something more urgent: it goes on later
    ├── Awaits               sent, and other machines have not sent theirs: looked at again later
    └── StoreError           raised at the edge, by the file of the store that met it
        ├── Transient        goes away by itself: retried for as long as it takes
        ├── NeedsOperator    a person must act: health goes red with the reason, retried slowly
        │   └── Refused      the credentials are known, and lack the right for this request
        ├── Permanent        this object will never work: reported, skipped, the rest goes on
        │   ├── NotFound     there is no such object
        │   └── Conflict     the condition of a conditional request did not hold
        ├── Fenced           another writer has taken over: this one stops writing
        └── Corrupt          the bytes are not the ones that were promised: never accepted
            └── Locked       they are not encrypted, or not with the key of this machine

Each carries ``hint``: what a person can do about it. Messages never hold a secret.
"""

from __future__ import annotations

from collections.abc import Sequence


class SyncdError(Exception):
    """Base of every error of this package; ``hint`` says what to do about it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def explain(self) -> str:
        """One line for a person: what is wrong and, where known, the remedy."""
        return f"{self.message} ({self.hint})" if self.hint else self.message


class SettingsError(SyncdError):
    """The settings cannot be used; ``faults`` has one line for each thing that is wrong."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


class Changed(SyncdError):
    """A member of a checkpoint changed while it was read; its revision must not be committed."""


class Busy(Changed):
    """A database is locked by its writer, or written to faster than it can be copied."""


class GaveWay(SyncdError):
    """A publication was stopped because something more urgent waits; what was sent is kept."""


class Awaits(SyncdError):
    """What this machine has of a checkpoint is sent; those of others are missing.

    ``pause`` is the number of seconds after which another look is worth while; ``fresh`` whether
    it is what a restore would lack.
    """

    def __init__(self, message: str, *, pause: float, fresh: bool = True) -> None:
        super().__init__(message)
        self.pause = pause
        self.fresh = fresh


class StoreError(SyncdError):
    """An object store refused or failed a request."""


class Transient(StoreError):
    """Expected to go away: 5xx, throttling, reset, time-out, DNS.

    ``retry_after`` is the pause the store asked for, in seconds, where it asked.
    """

    def __init__(self, message: str, *, hint: str = "", retry_after: float | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class NeedsOperator(StoreError):
    """A person must act: credentials, permission, missing bucket or SDK, quota, clock skew."""


class Refused(NeedsOperator):
    """The store knows these credentials and does not allow them this request."""


class Permanent(StoreError):
    """This one request can never succeed: name too long, object too large, file vanished."""


class NotFound(Permanent):
    """No object has this key."""


class Conflict(Permanent):
    """The condition of a conditional request did not hold: somebody else was there first."""


class Fenced(StoreError):
    """Another writer has taken over the commit log; this one must not write any more."""


class Corrupt(StoreError):
    """Content does not match its digest, its length or its format."""


class Locked(Corrupt):
    """Content that the key of this machine does not open, or that needs a key and finds none."""
