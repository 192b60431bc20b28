"""``syncd check`` with the least rights there are, and with one of them missing.

The policies are the ones of docs/vast.md, read out of it. moto enforces actions and resources of a
policy, but no conditions; SeaweedFS enforces rights by prefix; Azurite the letters of a SAS token.
Nothing here enforces Google's: its words are in tests/stores.
"""

from __future__ import annotations

import copy
import datetime
import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.processes import ROOT, Machine
from tests.servers.azure import ACCOUNT, Azurite
from tests.servers.azure import SECRET as AZURE_SECRET
from tests.servers.fixtures import fresh_name, running
from tests.servers.s3 import LIMITED_KEY, Moto, SeaweedFS

pytestmark = pytest.mark.slow

GUIDE = (ROOT / "docs" / "vast.md").read_text()
BUCKET = "my-checkpoints"


def check(disk: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return Machine(disk, settings).syncd("check")


def failed(said: str) -> list[str]:
    return re.findall(r"^(.+?) +FAILED", said, re.MULTILINE)


# -- S3: the policy of the guide


def policy() -> dict[str, Any]:
    found = re.search(r"```json\n(\{\n  \"Version\".*?\n\})\n```", GUIDE, re.DOTALL)
    assert found, "the guide has a policy to paste"
    whole: dict[str, Any] = json.loads(found[1])
    # moto takes the deletion of several objects for an action on the bucket, Amazon does not
    deletion = {
        "Effect": "Allow",
        "Action": "s3:DeleteObject",
        "Resource": f"arn:aws:s3:::{BUCKET}",
    }
    whole["Statement"].append(deletion)
    return whole


def without(action: str) -> dict[str, Any]:
    less = copy.deepcopy(policy())
    for statement in less["Statement"]:
        actions = statement["Action"]
        actions = [actions] if isinstance(actions, str) else actions
        statement["Action"] = [each for each in actions if each != action]
    less["Statement"] = [statement for statement in less["Statement"] if statement["Action"]]
    assert less != policy(), f"the policy has {action}"
    return less


MISSING = {
    "s3:ListBucket": ("reach and list", "s3:ListBucket on arn:aws:s3:::my-checkpoints"),
    "s3:PutObject": ("write", "s3:PutObject on arn:aws:s3:::my-checkpoints/eigen2/*"),
    "s3:GetObject": ("read", "s3:GetObject on arn:aws:s3:::my-checkpoints/eigen2/*"),
    "s3:AbortMultipartUpload": ("unfinished", "allow s3:AbortMultipartUpload"),
    "s3:ListBucketMultipartUploads": ("unfinished", "s3:ListBucketMultipartUploads on"),
    "s3:DeleteObject": ("delete", "s3:DeleteObject on arn:aws:s3:::my-checkpoints/eigen2/*"),
}


@pytest.fixture(scope="module")
def users() -> Iterator[dict[str, dict[str, str]]]:
    """The keys of a user with the whole policy, and of one for each action without it."""
    for server in running(Moto()):
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()
        keys = {"all": server.user("all", policy())}
        for number, action in enumerate(MISSING):
            keys[action] = server.user(f"user-{number}", without(action))
        server.enforce()
        where = {"CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": BUCKET}
        yield {name: {**key, **where} for name, key in keys.items()}


def test_the_policy_of_the_guide_is_enough(
    users: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    done = check(tmp_path, users["all"])
    assert done.returncode == 0, done.stdout
    assert done.stdout.endswith("everything works\n")


def test_the_policy_of_the_guide_is_enough_for_a_life(
    users: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    one = Machine(tmp_path / "one", {**users["all"], "CLOUD_PREFIX": "eigen2/life"})
    for step in (1, 2, 3):
        one.write_checkpoint(f"run/gen-{step:06}", {"weights.bin": bytes([step]) * 9_000_000})
    for words in (("--once",), ("verify",), ("prune", "--keep", "1"), ("ls",)):
        done = one.syncd(*words)
        assert done.returncode == 0, done.stdout + done.stderr
    two = Machine(tmp_path / "two", {**users["all"], "CLOUD_PREFIX": "eigen2/life"})
    done = two.syncd("restore")
    assert done.returncode == 0, done.stderr
    assert "run/gen-000003" in done.stderr


@pytest.mark.parametrize("action", MISSING)
def test_a_missing_action_is_named(
    users: dict[str, dict[str, str]], tmp_path: Path, action: str
) -> None:
    step, remedy = MISSING[action]
    done = check(tmp_path, users[action])
    assert done.returncode == 1, done.stdout
    assert failed(done.stdout)[0] == step
    assert remedy in done.stdout


def test_a_prefix_that_the_policy_is_not_for_is_said(
    users: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    done = check(tmp_path, {**users["all"], "CLOUD_PREFIX": "another"})
    assert done.returncode == 1
    assert "correct CLOUD_PREFIX, if the policy is for another one" in done.stdout


# -- S3: rights by prefix


@pytest.fixture(scope="module")
def narrow() -> Iterator[dict[str, str]]:
    """A key that may work below one prefix of one bucket, on a server that enforces it."""
    below = f"{BUCKET}/eigen2/*"
    rights = [f"{right}:{below}" for right in ("Read", "Write", "List")]
    for server in running(SeaweedFS(limited=rights)):
        client = server.client()
        client.create_bucket(Bucket=BUCKET)
        client.put_object(Bucket=BUCKET, Key="another/theirs", Body=b"not ours")
        client.close()
        yield {
            **server.env(),
            "AWS_ACCESS_KEY_ID": LIMITED_KEY,
            "CLOUD_PROVIDER": "s3",
            "CLOUD_BUCKET": BUCKET,
        }


def test_a_key_for_one_prefix_is_enough_there_and_nowhere_else(
    narrow: dict[str, str], tmp_path: Path
) -> None:
    done = check(tmp_path / "one", narrow)
    assert failed(done.stdout) in ([], ["unfinished"]), done.stdout
    done = check(tmp_path / "two", {**narrow, "CLOUD_PREFIX": "another"})
    assert done.returncode == 1
    assert failed(done.stdout)[0] == "reach and list"


# -- Azure: the token of the guide


def token(server: Azurite, container: str, letters: str) -> dict[str, str]:
    from azure.storage.blob import ContainerSasPermissions, generate_container_sas

    signature = generate_container_sas(
        ACCOUNT,
        container,
        account_key=AZURE_SECRET,
        permission=ContainerSasPermissions.from_string(letters),
        expiry=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1),
    )
    endpoint = f"{server.url}/{ACCOUNT}"
    text = f"BlobEndpoint={endpoint};SharedAccessSignature={signature}"
    return {
        "CLOUD_PROVIDER": "azure",
        "CLOUD_BUCKET": container,
        "AZURE_STORAGE_CONNECTION_STRING": text,
    }


@pytest.fixture
def container(azurite: Azurite) -> str:
    from azure.storage.blob import BlobServiceClient

    from tests.servers.azure import connection_string

    name = fresh_name()
    client = BlobServiceClient.from_connection_string(connection_string(azurite.url))
    client.create_container(name)
    client.close()
    return name


def letters_of_the_guide() -> str:
    found = re.search(r"--permissions ([a-z]+)", GUIDE)
    assert found
    return found[1]


def test_the_token_of_the_guide_is_enough(azurite: Azurite, container: str, tmp_path: Path) -> None:
    done = check(tmp_path, token(azurite, container, letters_of_the_guide()))
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("letter", "step"), [("r", "read"), ("d", "delete"), ("l", "reach and list")]
)
def test_a_missing_letter_is_named(
    azurite: Azurite, container: str, tmp_path: Path, letter: str, step: str
) -> None:
    less = letters_of_the_guide().replace(letter, "")
    settings = token(azurite, container, less)
    done = check(tmp_path, settings)
    assert done.returncode == 1, done.stdout
    assert failed(done.stdout)[0] == step
    assert f"({letter})" in done.stdout
    assert settings["AZURE_STORAGE_CONNECTION_STRING"].rpartition("sig=")[2] not in done.stdout
