"""A fresh bucket on every kind of store, for any test that takes ``bucket``."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from syncd.stores import open_store
from syncd.stores.base import ObjectStore
from tests.servers.azure import SECRET as AZURE_SECRET
from tests.servers.azure import Azurite, connection_string
from tests.servers.gcs import FakeGcs, GcpEmulator
from tests.servers.process import NotInstalled, Server
from tests.servers.s3 import SECRET, Moto, Rclone, S3Server, SeaweedFS
from tests.servers.strict_gcs import StrictGcs
from tests.servers.wires import Wire

_S = TypeVar("_S", bound=Server)
_numbers = itertools.count(1)

PROVIDERS = ("local", "s3-seaweedfs", "gcs-strict", "azure")
"""A server of each provider; KINDS has all."""

KINDS = ("local", "s3-seaweedfs", "s3-seaweedfs-tls", "s3-moto", "gcs-strict", "azure")


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, and the settings that reach it.

    ``can`` says what the server behind is able to prove: ``credentials`` that it checks them,
    ``checksums`` that wrong ones are noticed, ``network`` that it is reached over one, ``plain``
    that this is not encrypted, ``abort`` that nothing of an aborted upload is left in its lists,
    ``swap of parts`` that IfVersion holds for uploads.
    """

    kind: str
    provider: str
    bucket: str
    env: Mapping[str, str] = field(repr=False)
    raw: Any = field(repr=False)
    can: frozenset[str]
    port: int = 0
    at_port: Callable[[int], Mapping[str, str]] = field(default=lambda _port: {}, repr=False)
    """Settings that reach the same server through another port of this machine."""
    wrong: Mapping[str, str] = field(default_factory=dict, repr=False)
    """What to set for credentials that the server must refuse."""
    secrets: tuple[str, ...] = field(default=(), repr=False)

    def settings(self) -> dict[str, str]:
        """The environment of a daemon that syncs to this bucket."""
        return {**self.env, "CLOUD_PROVIDER": self.provider, "CLOUD_BUCKET": self.bucket}

    def open(self, **changes: str) -> ObjectStore:
        """The store, with some of its settings changed."""
        return open_store(self.provider, self.bucket, {**self.env, **changes})

    def through(self, wire: Wire) -> ObjectStore:
        """The store as it is seen at the other end of a wire."""
        return open_store(self.provider, self.bucket, {**self.env, **self.at_port(wire.port)})

    def missing(self) -> ObjectStore:
        """A bucket on the same server that nobody has created."""
        name = f"{self.bucket}/no/such" if self.provider == "local" else f"{self.bucket}-missing"
        return open_store(self.provider, name, self.env)

    def needs(self, ability: str) -> None:
        """Skip a test of what this server cannot prove, and say so."""
        if ability not in self.can:
            pytest.skip(f"{self.kind} cannot prove this: no {ability!r}")


def running(server: _S) -> Iterator[_S]:
    """The server for as long as it is needed; a skip that says why where it is not installed."""
    try:
        server.start()
    except NotInstalled as missing:
        server.stop()
        if os.environ.get("SYNCD_REQUIRE_SERVERS"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield server
    server.stop()


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    yield from running(SeaweedFS())


@pytest.fixture(scope="session")
def seaweedfs_tls() -> Iterator[SeaweedFS]:
    yield from running(SeaweedFS(tls=True))


@pytest.fixture(scope="session")
def moto() -> Iterator[Moto]:
    yield from running(Moto())


@pytest.fixture(scope="session")
def rclone() -> Iterator[Rclone]:
    yield from running(Rclone())


@pytest.fixture(scope="session")
def fake_gcs() -> Iterator[FakeGcs]:
    yield from running(FakeGcs())


@pytest.fixture(scope="session")
def gcp_emulator() -> Iterator[GcpEmulator]:
    yield from running(GcpEmulator())


@pytest.fixture(scope="session")
def azurite() -> Iterator[Azurite]:
    yield from running(Azurite())


@pytest.fixture
def strict_gcs(fake_gcs: FakeGcs) -> Iterator[StrictGcs]:
    layer = StrictGcs(fake_gcs.port)
    yield layer
    layer.stop()


def fresh_name() -> str:
    """Of a bucket, valid everywhere."""
    return f"bucket-{os.getpid()}-{next(_numbers)}"


def s3_bucket(kind: str, server: S3Server, can: frozenset[str]) -> Iterator[Bucket]:
    """A fresh bucket on an S3 server."""
    name, client = fresh_name(), server.client()
    client.create_bucket(Bucket=name)
    yield Bucket(
        kind=kind,
        provider="s3",
        bucket=name,
        env=server.env(),
        raw=client,
        can=can,
        port=server.port,
        at_port=lambda port: {"AWS_ENDPOINT_URL": server.url.replace(str(server.port), str(port))},
        wrong={"AWS_SECRET_ACCESS_KEY": "a-wrong-secret"},
        secrets=(SECRET, "a-wrong-secret"),
    )
    client.close()


def gcs_bucket(kind: str, url: str, port: int, can: frozenset[str]) -> Iterator[Bucket]:
    """A fresh bucket on an emulator of Google Cloud Storage."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    name = fresh_name()
    client = storage.Client(
        project="tests",
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options={"api_endpoint": url},
    )
    client.create_bucket(name)
    yield Bucket(
        kind=kind,
        provider="gcs",
        bucket=name,
        env={"STORAGE_EMULATOR_HOST": url},
        raw=client,
        can=can,
        port=port,
        at_port=lambda port: {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"},
    )
    client.close()


def azure_bucket(kind: str, server: Azurite, can: frozenset[str]) -> Iterator[Bucket]:
    """A fresh container."""
    from azure.storage.blob import BlobServiceClient

    name = fresh_name()
    wrong = "d3Jvbmctd3Jvbmctd3Jvbmc="
    client = BlobServiceClient.from_connection_string(connection_string(server.url))
    client.create_container(name)
    variable = "AZURE_STORAGE_CONNECTION_STRING"
    yield Bucket(
        kind=kind,
        provider="azure",
        bucket=name,
        env={variable: connection_string(server.url)},
        raw=client,
        can=can,
        port=server.port,
        at_port=lambda port: {variable: connection_string(f"http://127.0.0.1:{port}")},
        wrong={variable: connection_string(server.url, wrong)},
        secrets=(AZURE_SECRET, wrong),
    )
    client.close()


_REAL = frozenset({"credentials", "checksums", "network", "abort", "swap of parts"})


@pytest.fixture(params=KINDS)
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    """A fresh bucket, once on every kind of store."""
    yield from fresh_bucket(request, tmp_path)


def fresh_bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    """A bucket on the kind of store that is the fixture's parameter."""
    kind = request.param
    plain = _REAL | {"plain"}
    if kind == "local":
        folder = tmp_path / "bucket"
        folder.mkdir()
        yield Bucket(kind, "local", str(folder), {}, folder, frozenset({"abort", "swap of parts"}))
        shutil.rmtree(folder)
    elif kind == "s3-seaweedfs":
        yield from s3_bucket(kind, request.getfixturevalue("seaweedfs"), plain)
    elif kind == "s3-seaweedfs-tls":
        yield from s3_bucket(kind, request.getfixturevalue("seaweedfs_tls"), _REAL)
    elif kind == "s3-moto":
        # it accepts wrong secrets, and If-Match on CompleteMultipartUpload; that content
        # arrived whole is seen by its ETag alone
        can = plain - {"credentials", "swap of parts"}
        yield from s3_bucket(kind, request.getfixturevalue("moto"), can)
    elif kind == "gcs-strict":
        layer = request.getfixturevalue("strict_gcs")
        yield from gcs_bucket(kind, layer.url, layer.port, plain - {"credentials"})
    else:
        yield from azure_bucket(kind, request.getfixturevalue("azurite"), plain - {"abort"})


@pytest.fixture
def wire(bucket: Bucket) -> Iterator[Wire]:
    """A faulty wire to the bucket's server."""
    bucket.needs("network")
    bucket.needs("plain")
    line = Wire(bucket.port)
    yield line
    line.close()


__all__ = [
    "Bucket",
    "azurite",
    "bucket",
    "fake_gcs",
    "gcp_emulator",
    "moto",
    "rclone",
    "running",
    "seaweedfs",
    "seaweedfs_tls",
    "strict_gcs",
    "wire",
]
