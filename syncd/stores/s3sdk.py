"""boto3, opened as the settings say. Loading it takes a third of a second: only when it is needed.

boto3's transfer manager and its CRT are not used: parts are cut by the caller, and the CRT
ignores the endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from syncd.errors import NeedsOperator
from syncd.stores.s3road import VIRTUAL_HOSTS, endpoint_of
from syncd.stores.wire import CONNECT_TIMEOUT, CONNECTIONS, READ_TIMEOUT, quiet

try:
    import boto3
    import botocore.session
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError
    from urllib3.exceptions import HTTPError

    from syncd.stores.s3errors import translate
except ImportError as missing:
    raise NeedsOperator("boto3 is not installed", hint="pip install 'syncd[s3]'") from missing

FAILURES = (BotoCoreError, ClientError, HTTPClientError, HTTPError)


def open_sdk(environ: Mapping[str, str], checksums: str) -> tuple[Any, Any]:
    """A client and its session, with the credentials of ``environ`` or of boto3's own chain."""
    quiet("boto3", "botocore", "urllib3")
    session = botocore.session.Session()  # a session of one's own reads credential files anew
    for variable, name in (
        ("profile", "AWS_PROFILE"),
        ("credentials_file", "AWS_SHARED_CREDENTIALS_FILE"),
        ("config_file", "AWS_CONFIG_FILE"),
    ):
        if environ.get(name):
            session.set_config_variable(variable, environ[name])
    key, secret = environ.get("AWS_ACCESS_KEY_ID"), environ.get("AWS_SECRET_ACCESS_KEY")
    region = environ.get("AWS_REGION") or environ.get("AWS_DEFAULT_REGION")
    endpoint = endpoint_of(environ)
    host = urlsplit(endpoint).hostname or ""
    # "auto" has presigned URLs, by which the lean road finds its host, name the global endpoint
    style = "virtual" if not host or host.endswith(VIRTUAL_HOSTS) else "path"
    try:
        client = boto3.session.Session(
            aws_access_key_id=key or None,
            aws_secret_access_key=secret or None,
            aws_session_token=(environ.get("AWS_SESSION_TOKEN") or None) if key else None,
            region_name=region or session.get_config_variable("region") or "us-east-1",
            botocore_session=session,
        ).client(
            "s3",
            endpoint_url=endpoint or None,
            verify=environ.get("AWS_CA_BUNDLE") or None,
            config=Config(
                retries={"total_max_attempts": 1, "mode": "standard"},
                connect_timeout=CONNECT_TIMEOUT,
                read_timeout=READ_TIMEOUT,
                max_pool_connections=CONNECTIONS,
                tcp_keepalive=True,
                request_checksum_calculation=checksums,
                # every file that is restored is proven by its SHA-256, and some stores
                # answer a range with the checksum of the whole
                response_checksum_validation="when_required",
                s3={"addressing_style": style},
            ),
        )
    except (BotoCoreError, ValueError) as error:
        raise translate(error, "opening the store") from None
    return client, session
