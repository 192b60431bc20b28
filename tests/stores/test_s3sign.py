"""Our signatures are those of the SDK, whatever is signed."""

from __future__ import annotations

import datetime
import hashlib
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from syncd.stores.s3sign import Keys, Signer

MOMENT = datetime.datetime(2026, 11, 26, 7, 30, 1, tzinfo=datetime.timezone.utc)


def by_sdk(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes, token: str
) -> str:
    """The Authorization header that botocore makes at the same moment."""
    request: Any = AWSRequest(
        method,
        f"http://127.0.0.1:9000{quote(path, safe='/-_.~')}",
        headers=dict(headers),
        data=body,
        params=query,
    )
    request.context["payload_signing_enabled"] = True
    signer: Any = S3SigV4Auth(Credentials("AK", "SK/+", token or None), "s3", "eu-central-1")
    with (
        mock.patch("botocore.auth.get_current_datetime", return_value=MOMENT),
        mock.patch("botocore.compat.get_current_datetime", return_value=MOMENT),
    ):
        signer.add_auth(request)
    return str(request.headers["Authorization"])


@pytest.mark.parametrize("token", ["", "a-session/token=="])
@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "body"),
    [
        (
            "GET",
            "/bucket",
            {"list-type": "2", "prefix": "a b/ü+&=~", "encoding-type": "url"},
            {},
            b"",
        ),
        ("PUT", "/bucket/a b/ü+&=~'(x)*.pt", {}, {"x-amz-checksum-crc32": "AAAAAA=="}, b"body"),
        (
            "PUT",
            "/bucket/a",
            {"partNumber": "3", "uploadId": "x.y_z~1"},
            {"if-none-match": "*"},
            b"b",
        ),
        ("POST", "/bucket/a//b/./c", {"uploads": ""}, {"content-md5": "a+/=="}, b""),
        ("HEAD", "/bucket/%41%", {}, {"if-match": '"etag"', "range": "bytes=0-4"}, b""),
    ],
)
def test_a_signature_is_the_one_of_the_sdk(
    method: str, path: str, query: dict[str, str], headers: dict[str, str], body: bytes, token: str
) -> None:
    ours = Signer(lambda: Keys("AK", "SK/+", token), "eu-central-1", "127.0.0.1:9000")
    payload = hashlib.sha256(body).hexdigest()
    _, signed = ours.sign(method, path, query, headers, payload, MOMENT.timestamp())
    assert signed["authorization"] == by_sdk(method, path, query, headers, body, token)


def test_credentials_that_change_are_used_at_once() -> None:
    keys = [Keys("A", "one"), Keys("B", "two"), Keys("B", "two")]
    signer = Signer(lambda: keys.pop(0), "us-east-1", "host")
    made = [signer.sign("GET", "/b", {}, {}, now=0.0)[1]["authorization"] for _ in range(3)]
    assert "Credential=A/" in made[0]
    assert "Credential=B/" in made[1]
    assert made[1] == made[2] != made[0]


def test_a_secret_is_in_no_text_of_its_holder() -> None:
    assert "geheim" not in repr(Keys("AK", "geheim", "geheim"))
