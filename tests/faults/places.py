"""Where trials have their buckets: an emulator for each kind of store, started once for a run."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.servers.azure import Azurite, connection_string
from tests.servers.gcs import FakeGcs
from tests.servers.process import Server
from tests.servers.s3 import SeaweedFS
from tests.servers.strict_gcs import StrictGcs

STORES = ("s3", "gcs", "azure", "local")


@dataclass(frozen=True)
class Bucket:
    """An empty bucket of one trial; it can be sent to another process."""

    provider: str
    name: str
    env: Mapping[str, str] = field(repr=False)
    url: str = ""
    port: int = 0
    """Of the server; 0 where no network lies between."""

    def settings(self) -> dict[str, str]:
        """The environment of a daemon that copies to this bucket."""
        return {**self.env, "CLOUD_PROVIDER": self.provider, "CLOUD_BUCKET": self.name}

    def at_port(self, port: int) -> dict[str, str]:
        """What to change in it to come through another port of this machine."""
        there, here = f"127.0.0.1:{self.port}", f"127.0.0.1:{port}"
        return {name: value.replace(there, here) for name, value in self.env.items()}


@dataclass(frozen=True)
class Place:
    """A running server that makes buckets and throws them away, with all that is in them."""

    provider: str
    make: Callable[[], Bucket]
    drop: Callable[[Bucket], None]


_numbers = itertools.count(1)


def _name() -> str:
    return f"torture-{os.getpid()}-{next(_numbers)}"


@contextlib.contextmanager
def place_of(provider: str, folder: Path) -> Iterator[Place]:
    """Start what ``provider`` needs; NotInstalled if it is not here."""
    with contextlib.ExitStack() as stack:
        if provider == "local":
            yield _local(folder)
        elif provider == "s3":
            yield _s3(_running(stack, SeaweedFS()))
        elif provider == "gcs":
            layer = StrictGcs(_running(stack, FakeGcs()).port)
            stack.callback(layer.stop)
            yield _gcs(layer)
        else:
            yield _azure(_running(stack, Azurite()))


def _running(stack: contextlib.ExitStack, server: Any) -> Any:
    assert isinstance(server, Server)
    stack.callback(server.stop)
    server.start()
    return server


def _local(folder: Path) -> Place:
    def make() -> Bucket:
        bucket = folder / _name()
        bucket.mkdir()
        return Bucket("local", str(bucket), {})

    return Place("local", make, lambda bucket: shutil.rmtree(bucket.name))


def _s3(server: SeaweedFS) -> Place:
    client = server.client()

    def make() -> Bucket:
        name = _name()
        client.create_bucket(Bucket=name)
        return Bucket("s3", name, server.env(), server.url, server.port)

    return Place("s3", make, lambda bucket: client.delete_bucket(Bucket=bucket.name))


def _gcs(layer: StrictGcs) -> Place:
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(
        project="tests",
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options={"api_endpoint": layer.url},
    )

    def make() -> Bucket:
        name = _name()
        client.create_bucket(name)
        env = {"STORAGE_EMULATOR_HOST": layer.url}
        return Bucket("gcs", name, env, layer.url, layer.port)

    def drop(bucket: Bucket) -> None:
        for blob in client.list_blobs(bucket.name):
            blob.delete()
        client.bucket(bucket.name).delete()

    return Place("gcs", make, drop)


def _azure(server: Azurite) -> Place:
    from azure.storage.blob import BlobServiceClient

    client = BlobServiceClient.from_connection_string(connection_string(server.url))

    def make() -> Bucket:
        name = _name()
        client.create_container(name)
        env = {"AZURE_STORAGE_CONNECTION_STRING": connection_string(server.url)}
        return Bucket("azure", name, env, server.url, server.port)

    return Place("azure", make, lambda bucket: client.delete_container(bucket.name))
