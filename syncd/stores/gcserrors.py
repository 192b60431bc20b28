"""What either road to Google raises, as the errors of this package, each with a remedy.

None of Google's libraries is loaded for it: what was raised is told by its form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from syncd.errors import (
    Conflict,
    Corrupt,
    NeedsOperator,
    NotFound,
    Permanent,
    Refused,
    StoreError,
    Transient,
)
from syncd.stores.wire import CLOCK_HINT, TRANSIENT_STATUSES, clock_words, retry_after

_BUSY = "the store is busy or down; it is tried again"
_KEY = "point GOOGLE_APPLICATION_CREDENTIALS at a valid key file of a service account"
_RIGHTS = "give the service account the role roles/storage.objectUser on the bucket"
_BUCKET = "create the bucket, or correct CLOUD_BUCKET"
_OPERATOR = {
    "accountDisabled": "enable the account, or pay its bill",
    "accountProjectAccessDenied": "enable billing for the project of the bucket",
    "insufficientPermissions": _RIGHTS,
    "quotaExceeded": "raise the quota of the project, or set SYNCD_KEEP_LAST",
    "retentionPolicyNotMet": "the bucket's retention policy forbids to replace objects",
}
_LIMITS = {"rateLimitExceeded", "userRateLimitExceeded"}


def _answer_of(error: BaseException | None) -> Any:
    answer = getattr(error, "response", None)
    return error if answer is None else answer  # of the lean road it is both


def status_of(error: BaseException | None) -> int:
    """The HTTP status of the answer, 0 where there was none."""
    told = getattr(_answer_of(error), "status_code", None) or getattr(error, "code", None)
    return int(told) if isinstance(told, int) else 0


def is_of_login(error: BaseException) -> bool:
    """Whether it is an error of google-auth."""
    return any(kind.__name__ == "GoogleAuthError" for kind in type(error).__mro__)


def passes(error: BaseException | None) -> bool:
    """Whether an error of google-auth, or what it wraps, says that the server did not answer."""
    if error is None:
        return False
    if type(error).__name__ == "TransportError" or getattr(error, "retryable", False):
        return True
    inner = [one for one in error.args if isinstance(one, Exception)]
    return passes(error.__cause__) or any(map(passes, inner))


def _details(error: Exception) -> tuple[str, str]:
    """The reason and the words of an answer."""
    answer = _answer_of(error)
    try:
        fault = json.loads(answer.text)["error"]
        return str(fault["errors"][0]["reason"]), str(fault.get("message", ""))
    except (AttributeError, ValueError, LookupError, TypeError, RuntimeError):
        return "", str(getattr(answer, "text", "") or "")


def translate(error: Exception, what: str, of_bucket: bool = False) -> StoreError:
    """The error of this package for one of Google's, met while doing ``what``."""
    if is_of_login(error):
        return _translate_login(error, what)
    if status_of(error):
        return _translate_answer(error, what, of_bucket)
    if type(error).__name__ == "DataCorruption":  # its module differs between versions
        return Corrupt(f"{what}: the content changed on its way", hint="it is sent again")
    if "CERTIFICATE_VERIFY" in str(error) or "WRONG_VERSION_NUMBER" in str(error):
        return NeedsOperator(
            f"{what}: the store's TLS certificate is not trusted, or it speaks no TLS",
            hint="correct STORAGE_EMULATOR_HOST, or REQUESTS_CA_BUNDLE",
        )
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return NeedsOperator(
            f"{what}: the settings of the store cannot be used",
            hint="check CLOUD_BUCKET and STORAGE_EMULATOR_HOST",
        )
    return Transient(f"{what}: no answer ({type(error).__name__})", hint="check the network")


def _translate_login(error: Exception, what: str) -> StoreError:
    """A refused login needs a person; a login server that could not be reached does not."""
    if passes(error):
        return Transient(f"{what}: the login server does not answer", hint="check the network")
    hint = _KEY
    if "invalid_grant" in str(error):
        hint = f"{_KEY}; a wrong clock of this machine has the same effect"
    return NeedsOperator(
        f"{what}: Google refuses the credentials ({type(error).__name__})", hint=hint
    )


def _translate_answer(  # noqa: PLR0911 - one for each kind
    error: Exception, what: str, of_bucket: bool
) -> StoreError:
    status, (reason, text) = status_of(error), _details(error)
    headers: Mapping[str, str] = getattr(_answer_of(error), "headers", None) or {}
    words = f"{what}: {status} {reason if reason.isalnum() else ''}".rstrip()
    if status in (304, 412):
        return Conflict(f"{words}: the condition does not hold")
    if reason in _LIMITS or status in TRANSIENT_STATUSES:
        return Transient(words, hint=_BUSY, retry_after=retry_after(headers))
    if status in (401, 403):
        off = clock_words(headers)
        if off:
            return NeedsOperator(f"{words}: {off}", hint=CLOCK_HINT)
        hint = _OPERATOR.get(reason, _KEY if status == 401 else _RIGHTS)
        return (Refused if hint is _RIGHTS else NeedsOperator)(words, hint=hint)
    if status == 404 and (of_bucket or "bucket does not exist" in text.lower()):
        return NeedsOperator(f"{words}: there is no such bucket", hint=_BUCKET)
    if status in (404, 410):
        return NotFound(words)
    if status == 400 and any(word in text.lower() for word in ("crc32c", "md5", "checksum")):
        return Corrupt(f"{words}: the content changed on its way", hint="it is sent again")
    if status == 400 and "bucket name" in text.lower():
        return NeedsOperator(f"{words}: this is no name of a bucket", hint=_BUCKET)
    return Permanent(words)
