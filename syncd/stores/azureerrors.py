"""What Azure's SDK and the lean road raise, as the errors of this package, each with a remedy.

Only codes and our own words enter a message: the server's text quotes signed headers, and a
URL may hold a signature.
"""

from __future__ import annotations

from collections.abc import Mapping

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

_KEY = "correct AZURE_STORAGE_CONNECTION_STRING: the key or token is wrong, expired or revoked"
_RIGHTS = "the key or token must allow to read, write, list and delete blobs in the container"
_NAME = "shorten the path of the file, or CLOUD_PREFIX"

_OPERATOR = {
    "AuthenticationFailed": _KEY,
    "InvalidAuthenticationInfo": _KEY,
    "NoAuthenticationInformation": _KEY,
    "KeyBasedAuthenticationNotPermitted": "the account forbids keys: use a SAS token",
    "AuthorizationFailure": "the account's firewall or the token's range of addresses says no",
    "AccountIsDisabled": "enable the storage account, or pay its bill",
    "ContainerNotFound": "create the container, or correct CLOUD_BUCKET",
    "ContainerDisabled": "enable the container, or correct CLOUD_BUCKET",
    "InvalidResourceName": "correct CLOUD_BUCKET",
    "LeaseIdMissing": "somebody holds a lease on the blob: break it",
    "BlobImmutableDueToPolicy": "the container forbids changes: use another one",
    "BlobImmutableDueToLegalHold": "the container forbids changes: use another one",
    "BlobArchived": "the blob is in the archive tier: rehydrate it first",
}
_CONFLICT = {"BlobAlreadyExists", "ConditionNotMet", "TargetConditionNotMet"}
_TRANSIENT = {"ServerBusy", "OperationTimedOut", "InternalError", "ContainerBeingDeleted"}
_FINAL = {
    "BlobOperationNotSupported",
    "BlockCountExceedsLimit",
    "DirectoryIsNotEmpty",
    "InvalidBlobType",
}
"""Conflicts that do not end by waiting."""
_CORRUPT = {"Md5Mismatch", "Crc64Mismatch", "InvalidMd5"}


def status_of(error: BaseException | None) -> int:
    """The HTTP status of the answer, 0 where there was none."""
    return int(getattr(error, "status_code", 0) or 0)


def translate(error: Exception, what: str) -> StoreError:
    """The error of this package for one of either road, met while doing ``what``."""
    if status_of(error):
        return _translate_answer(error, what)
    if "CERTIFICATE_VERIFY" in str(error) or "WRONG_VERSION_NUMBER" in str(error):
        return NeedsOperator(
            f"{what}: the store's TLS certificate is not trusted, or it speaks no TLS",
            hint="correct the endpoint in AZURE_STORAGE_CONNECTION_STRING, or REQUESTS_CA_BUNDLE",
        )
    if any(kind.__name__ == "ClientAuthenticationError" for kind in type(error).__mro__):
        return NeedsOperator(f"{what}: there are no usable credentials", hint=_KEY)
    if isinstance(error, ValueError) and not isinstance(error, OSError):
        return Permanent(f"{what}: the request cannot be made ({type(error).__name__})")
    return Transient(
        f"{what}: no answer ({type(error).__name__})",
        hint="check the network, and the account's name in AZURE_STORAGE_CONNECTION_STRING",
    )


def _translate_answer(  # noqa: PLR0911 - one for each kind
    error: Exception, what: str
) -> StoreError:
    status = status_of(error)
    answer = error if hasattr(error, "headers") else getattr(error, "response", None)
    headers: Mapping[str, str] = getattr(answer, "headers", None) or {}
    given = getattr(error, "error_code", None) or headers.get("x-ms-error-code") or ""
    code = str(getattr(given, "value", given))
    words = f"{what}: {code or status}"
    if code in _CONFLICT or (status == 412 and code not in _OPERATOR):
        return Conflict(f"{words}: the condition does not hold")
    if code in _CORRUPT:
        return Corrupt(f"{words}: the content changed on its way", hint="it is sent again")
    if code in _TRANSIENT or status in TRANSIENT_STATUSES:
        hint = "the store is busy or down; it is tried again"
        return Transient(words, hint=hint, retry_after=retry_after(headers))
    if code in _OPERATOR or status in (401, 403):
        off = clock_words(headers)
        if off:
            return NeedsOperator(f"{words}: {off}", hint=CLOCK_HINT)
        if code in _OPERATOR:
            return NeedsOperator(words, hint=_OPERATOR[code])
        return Refused(words, hint=_RIGHTS)
    if status == 404:
        return NotFound(words)
    if status == 409 and code not in _FINAL:
        return Transient(words, hint="another operation on the blob is under way")
    return Permanent(words, hint=_NAME if code in ("OutOfRangeInput", "InvalidUri") else "")
