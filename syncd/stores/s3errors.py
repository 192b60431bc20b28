"""What botocore raises, and our own road to S3, as the errors of this package, each with a remedy.

Only codes and our own words enter a message: the server's text may quote signed headers.
"""

from __future__ import annotations

import re
import ssl
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
from syncd.stores.s3lean import Refused as RefusedByStore
from syncd.stores.wire import CLOCK_HINT, TRANSIENT_STATUSES, clock_words, retry_after

_RIGHTS = (
    "allow s3:ListBucket, s3:ListBucketMultipartUploads, s3:GetObject, s3:PutObject, "
    "s3:DeleteObject, s3:AbortMultipartUpload and s3:ListMultipartUploadParts on the bucket"
)
_REGION = "set AWS_REGION to the region of the bucket, or correct AWS_ENDPOINT_URL"

_OPERATOR = {
    "InvalidAccessKeyId": "the access key does not exist: correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY; with a right one, AWS_REGION",
    "ExpiredToken": "get new session credentials and put them into the environment or .env",
    "ExpiredTokenException": "get new session credentials and put them into .env",
    "TokenRefreshRequired": "get new session credentials and put them into .env",
    "InvalidToken": "AWS_SESSION_TOKEN does not belong to these keys: remove or renew it",
    "InvalidClientTokenId": "correct AWS_ACCESS_KEY_ID and AWS_SESSION_TOKEN",
    "AccessDenied": _RIGHTS,
    "AllAccessDisabled": "the provider has disabled the bucket: ask its support",
    "AccountProblem": "the provider has a problem with the account: look at its billing",
    "NotSignedUp": "the account is not signed up for the service",
    "InvalidSecurity": "correct the credentials",
    "NoSuchBucket": "create the bucket, or correct CLOUD_BUCKET",
    "InvalidBucketName": "correct CLOUD_BUCKET",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "QuotaExceeded": "raise the quota of the bucket, or set SYNCD_KEEP_LAST",
    "XMinioStorageFull": "free some space in the store, or set SYNCD_KEEP_LAST",
    "KMS.DisabledException": "enable the key that encrypts the bucket",
    "RequestTimeTooSkewed": CLOCK_HINT,
    "RequestExpired": CLOCK_HINT,
}
_TRANSIENT = {
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",
    "RequestTimeoutException",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "PriorRequestNotComplete",
    "IncompleteBody",
    "OperationAborted",
    # somebody writes the same key at this moment: the retry meets either 412, or a free key
    "ConditionalRequestConflict",
}
_CORRUPT = {
    "BadDigest",
    "InvalidDigest",
    "XAmzContentSHA256Mismatch",
    "XAmzContentChecksumMismatch",
}
_PERMANENT = {
    "KeyTooLongError": "shorten the path of the file, or CLOUD_PREFIX",
    "KeyTooLong": "shorten the path of the file, or CLOUD_PREFIX",
    "EntityTooLarge": "the store does not take objects of this size",
    "MaxMessageLengthExceeded": "the store does not take objects of this size",
    "NotImplemented": "the store does not know this kind of request",
    "InvalidObjectState": "restore the object from its archive class first",
}
_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "NoAuthTokenError",
    "ProfileNotFound",
    "ConfigParseError",
    "ConfigNotFound",
    "TokenRetrievalError",
    "SSOError",
    "RefreshWithMFAUnsupportedError",
}


def _kinds(error: BaseException) -> set[str]:
    """The names of an error's classes: an SDK that was never loaded has raised nothing."""
    return {kind.__name__ for kind in type(error).__mro__}


def _error_of(error: BaseException | None) -> Mapping[str, Any]:
    if isinstance(error, RefusedByStore) or (error and "ClientError" in _kinds(error)):
        response: Mapping[str, Any] = getattr(error, "response", {})
        return response
    return {}


def code_of(error: BaseException | None) -> str:
    """The store's own word for what is wrong; empty where it did not answer."""
    return str(_error_of(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException | None) -> int:
    """The HTTP status of the answer, 0 where there was none."""
    return int(_error_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _region_of(error: Exception) -> str:
    """Where the store says the bucket is; empty where it does not say."""
    answer = _error_of(error)
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = headers.get("x-amz-bucket-region") or answer.get("Error", {}).get("Region") or ""
    return region if re.fullmatch(r"[a-z0-9-]{2,32}", str(region)) else ""


def translate(error: Exception, what: str) -> StoreError:  # noqa: PLR0911 - one for each kind
    """The error of this package for one of botocore's or of s3lean's, met while doing ``what``."""
    kinds = _kinds(error)
    if _error_of(error):
        return _translate_answer(error, what)
    if kinds & _CREDENTIALS:
        return NeedsOperator(
            f"{what}: there are no usable S3 credentials ({type(error).__name__})",
            hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        )
    if "FlexibleChecksumError" in kinds:
        return Corrupt(f"{what}: the content does not match its checksum")
    if isinstance(error, ssl.SSLCertVerificationError) or (
        "SSLError" in kinds and ("CERTIFICATE" in str(error) or "WRONG_VERSION" in str(error))
    ):
        return NeedsOperator(
            f"{what}: the store's TLS certificate is not trusted, or it speaks no TLS",
            hint="correct AWS_ENDPOINT_URL, or name the authority's file in AWS_CA_BUNDLE",
        )
    if "ParamValidationError" in kinds and "bucket" in str(error).lower():
        return NeedsOperator(f"{what}: this is no name of a bucket", hint="correct CLOUD_BUCKET")
    if "ParamValidationError" in kinds:
        return Permanent(f"{what}: {type(error).__name__}")
    if isinstance(error, ValueError):
        return NeedsOperator(
            f"{what}: the endpoint cannot be used",
            hint="AWS_ENDPOINT_URL must look like https://host:port",
        )
    if isinstance(error, FileNotFoundError) or "InvalidConfigError" in kinds:
        return NeedsOperator(
            f"{what}: the settings of S3 cannot be used ({type(error).__name__})",
            hint="check AWS_CA_BUNDLE, AWS_PROFILE and the files they name",
        )
    return Transient(
        f"{what}: no answer ({type(error).__name__})",
        hint="check the network and AWS_ENDPOINT_URL",
    )


def _translate_answer(error: Exception, what: str) -> StoreError:  # noqa: PLR0911 - one for each kind
    code, status = code_of(error), status_of(error)
    headers = _error_of(error).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    words = f"{what}: {code or status}"
    if code in ("PreconditionFailed", "NotModified") or status in (304, 412):
        return Conflict(f"{words}: the condition does not hold")
    if code in ("NoSuchKey", "NoSuchUpload", "NoSuchVersion"):
        return NotFound(words)
    if code in _CORRUPT:
        return Corrupt(f"{words}: the content changed on its way", hint="it is sent again")
    if code in _PERMANENT:
        return Permanent(words, hint=_PERMANENT[code])
    if code in _TRANSIENT or status in TRANSIENT_STATUSES:
        hint = "the store is busy or down; it is tried again"
        return Transient(words, hint=hint, retry_after=retry_after(headers))
    if code in _OPERATOR or status in (301, 307, 401, 403, 507):
        off = clock_words(headers)
        if off:
            return NeedsOperator(f"{words}: {off}", hint=CLOCK_HINT)
        hint = _OPERATOR.get(code, _REGION if status in (301, 307) else _RIGHTS)
        if hint is _REGION and (region := _region_of(error)):
            hint = f"the bucket is in {region}: set AWS_REGION={region}"
        return (Refused if hint is _RIGHTS else NeedsOperator)(words, hint=hint)
    if status == 404:
        return NotFound(words)
    return Permanent(words)


def refuses_checksums(error: BaseException | None) -> bool:
    """Whether the store may have refused the form of botocore's checksums, not the request."""
    code, status = code_of(error), status_of(error)
    if status in (411, 501) or code in ("MissingContentLength", "XAmzContentSHA256Mismatch"):
        return True
    words = str(_error_of(error).get("Error", {}).get("Message", "")).lower()
    named = any(word in words for word in ("checksum", "trailer", "aws-chunked", "sdk-checksum"))
    return status == 400 and code not in ("BadDigest", "InvalidDigest") and named
