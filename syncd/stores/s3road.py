"""Which road a bucket can be spoken to by: the SDK alone, or the lean one beside it.

The lean road asks nothing that the environment or the SDK has not told: its credentials, endpoint
and region are theirs. Where that is not enough (a proxy, another signature, a bucket that is an
ARN) there is only the SDK.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from syncd.stores.exchange import connect_to
from syncd.stores.s3lean import Lean
from syncd.stores.s3sign import Keys, Signer

VIRTUAL_HOSTS = ("amazonaws.com", "aliyuncs.com", "myqcloud.com", "volces.com")
"""Where the bucket must be part of the host name; everywhere else a path is safer."""

_BUCKET = re.compile(r"[A-Za-z0-9._-]{3,255}")


def endpoint_of(environ: Mapping[str, str]) -> str:
    """The endpoint that is set; empty: Amazon's own."""
    return environ.get("AWS_ENDPOINT_URL_S3") or environ.get("AWS_ENDPOINT_URL") or ""


def told(bucket: str, environ: Mapping[str, str]) -> Lean | None:
    """The lean road by the environment alone, without loading the SDK; None: ask the SDK."""
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    url = urlsplit(endpoint_of(environ))
    host = url.hostname or ""
    more = any({**os.environ, **environ}.get(name) for name in ("AWS_PROFILE", "AWS_CONFIG_FILE"))
    if more or not (key and secret and host) or host.endswith(VIRTUAL_HOSTS):
        return None
    if Path("~/.aws/config").expanduser().exists():
        return None
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    keys = Keys(key, secret, environ.get("AWS_SESSION_TOKEN") or "")
    path = f"{unquote(url.path).rstrip('/')}/{bucket}"
    return _open(bucket, url, path, lambda: keys, region, environ.get("AWS_CA_BUNDLE") or "")


def beside(client: Any, session: Any, bucket: str, environ: Mapping[str, str]) -> Lean | None:
    """The lean road by what the SDK has found out; None where only the SDK knows the way."""
    signer = getattr(client, "_request_signer", None)
    credentials = getattr(signer, "_credentials", None)
    if credentials is None or client.meta.config.signature_version not in ("s3v4", "s3"):
        return None

    def keys() -> Keys:
        now = credentials.get_frozen_credentials()
        return Keys(now.access_key, now.secret_key, now.token or "")

    sample = {"Bucket": bucket, "Key": "k"}
    url = urlsplit(client.generate_presigned_url("head_object", Params=sample))
    region = client.meta.region_name
    if "s3express" in (url.hostname or "") or not url.path.endswith("/k"):
        return None
    bundle = environ.get("AWS_CA_BUNDLE") or session.get_config_variable("ca_bundle") or ""
    base = unquote(url.path.removesuffix("/k"))
    return _open(bucket, url, base, keys, "us-east-1" if region == "aws-global" else region, bundle)


def _open(
    bucket: str, url: SplitResult, base: str, keys: Callable[[], Keys], region: str, bundle: str
) -> Lean | None:
    found = connect_to(url, bundle) if _BUCKET.fullmatch(bucket) else None
    if found is None:
        return None
    exchange, host = found
    return Lean(exchange, Signer(keys, region, host), base, url.scheme == "https")
