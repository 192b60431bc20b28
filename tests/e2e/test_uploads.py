"""Uploads in parts and the daemon's life: new credentials, another day, what others have left."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.e2e.processes import Machine, wait_until
from tests.servers.s3 import KEY, SECRET, SeaweedFS

MIB = 1024 * 1024


@pytest.fixture
def server() -> Iterator[SeaweedFS]:
    made = SeaweedFS()
    yield made
    made.stop()


def let_in(server: SeaweedFS, secret: str) -> None:
    """Start the server anew with this secret for the daemon; ours stays what it is."""
    server.kill()
    actions = ["Admin", "Read", "List", "Tagging", "Write"]
    identities = [
        {"name": name, "credentials": [{"accessKey": key, "secretKey": word}], "actions": actions}
        for name, key, word in (("admin", KEY, SECRET), ("daemon", "AKDAEMON", secret))
    ]
    (server.folder / "s3.json").write_text(json.dumps({"identities": identities}))
    server.start()


def give(machine: Machine, secret: str) -> None:
    (machine.disk / ".env").write_text(
        f"AWS_ACCESS_KEY_ID=AKDAEMON\nAWS_SECRET_ACCESS_KEY={secret}\n"
    )


def uploads(client: Any, bucket: str) -> dict[str, int]:
    """Ids of the uploads under way, and how many parts each has."""
    counts = {}
    for one in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ()):
        with contextlib.suppress(ClientError):  # gone by now
            listed = client.list_parts(Bucket=bucket, Key=one["Key"], UploadId=one["UploadId"])
            counts[one["UploadId"]] = len(listed.get("Parts", ()))
    return counts


def test_the_same_upload_goes_on_with_new_credentials(tmp_path: Path, server: SeaweedFS) -> None:
    let_in(server, "the-first-secret")
    client = server.client()
    client.create_bucket(Bucket="tokens")
    settings = {
        "CLOUD_PROVIDER": "s3",
        "CLOUD_BUCKET": "tokens",
        "AWS_ENDPOINT_URL": server.url,
        "AWS_REGION": "us-east-1",
        "SYNCD_BWLIMIT": "8M",
        "SYNCD_CONCURRENCY": "1",
    }
    one = Machine(tmp_path / "one", settings)
    try:
        give(one, "the-first-secret")
        one.write_checkpoint("run/gen-000005", {"w.bin": os.urandom(96 * MIB)})
        one.start()
        wait_until(lambda: max(uploads(client, "tokens").values(), default=0) >= 3, one.log)
        let_in(server, "the-second-secret")
        wait_until(lambda: "AWS_SECRET_ACCESS_KEY" in one.reasons(), one.log)
        ((before, parts),) = uploads(client, "tokens").items()
        give(one, "the-second-secret")
        wait_until(lambda: "goes on" in one.log(), one.log)
        ((after, _),) = uploads(client, "tokens").items()
        assert after == before
        # the answer to its last part may have died with the first server
        known = (f"goes on: {count} parts are there" for count in (parts, parts - 1))
        assert any(words in one.log() for words in known)
        wait_until(one.has_committed("run/gen-000005"), one.log)
        assert uploads(client, "tokens") == {}
        assert one.syncd("verify").returncode == 0
        assert "secret" not in one.log().replace("AWS_SECRET_ACCESS_KEY", "")
    finally:
        one.kill()
        client.close()


def test_what_nobody_goes_on_with_is_aborted_by_the_daemon_itself(
    tmp_path: Path, seaweedfs: SeaweedFS
) -> None:
    """At its start; other machines' uploads get a day, this machine's own none."""
    client, bucket = seaweedfs.client(), f"orphans-{os.getpid()}"
    client.create_bucket(Bucket=bucket)
    settings = {**seaweedfs.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": bucket}
    one = Machine(tmp_path / "one", {**settings, "SYNCD_BWLIMIT": "4M"})
    try:
        one.write_checkpoint("run/gen-000005", {"w.bin": os.urandom(64 * MIB)})
        one.start()
        wait_until(lambda: max(uploads(client, bucket).values(), default=0) > 0, one.log)
        one.kill()
        key = "eigen2/checkpoints/run/gen-000001/other.bin"
        other = client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]
        (one.checkpoints / "run/gen-000005/w.bin").unlink()
        one.start()
        wait_until(lambda: set(uploads(client, bucket)) == {other}, one.log)
    finally:
        one.kill()
        client.close()
