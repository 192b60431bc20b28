"""What both roads to Google Cloud Storage have in common: their calls, addresses, checksums."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple, Protocol

import google_crc32c

from syncd.errors import Corrupt
from syncd.stores.base import Buffer, Condition, ObjectInfo

_SERVER = "https://storage.googleapis.com"


class Told(NamedTuple):
    """An answer of an upload's session; names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Objects(Protocol):
    """The calls that both roads have."""

    def put(self, key: str, data: Buffer, condition: Condition) -> ObjectInfo:
        """Make an object in one request, whose CRC32C the server verifies; Corrupt."""
        ...

    def start_session(self, key: str, size: int, generation: str) -> str:
        """Start a resumable upload over an object of that generation ("0": none); its address."""
        ...

    def session(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> Told:
        """Speak to an upload under way; 308 is an answer here."""
        ...

    def read(
        self, key: str, start: int, length: int | None, version: str | None
    ) -> tuple[int, Iterator[Any]]:
        """How many bytes come, and the bytes."""
        ...

    def head(self, key: str) -> ObjectInfo:
        """Look at an object."""
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects of that prefix."""
        ...

    def look(self, prefix: str) -> None:
        """Look whether there is such a bucket, by listing at most one object of that prefix."""
        ...

    def rewrite(self, source: str, target: str, condition: Condition) -> ObjectInfo:
        """Have the server copy an object."""
        ...

    def compose(self, key: str, sources: Mapping[str, str], generation: str) -> ObjectInfo:
        """Have the server make one object of others, given with their generations."""
        ...

    def delete(self, key: str) -> None:
        """Delete an object."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def server(environ: Mapping[str, str]) -> str:
    """The address that requests go to."""
    host = environ.get("STORAGE_EMULATOR_HOST") or _SERVER
    return (host if "://" in host else f"http://{host}").rstrip("/")


def base64_crc32c(value: int) -> str:
    """As Google writes it."""
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def span(start: int, length: int | None) -> dict[str, str]:
    """The headers that ask for bytes of an object as they are stored."""
    headers = {"accept-encoding": "identity"}
    if start or length is not None:
        headers["range"] = f"bytes={start}-{'' if length is None else start + length - 1}"
    return headers


def crc32c_of(data: Buffer) -> str:
    """The checksum of some bytes, as Google writes it."""
    return base64_crc32c(google_crc32c.value(data if isinstance(data, bytes) else bytes(data)))


def checked(info: ObjectInfo, data: Buffer, crc32c: str | None) -> ObjectInfo:
    """What was made of ``data``; Corrupt if the store has other bytes by its own account."""
    if crc32c != crc32c_of(data):
        raise Corrupt(f"{info.key} arrived with another checksum", hint="it is sent again")
    return info


def seconds(date: str) -> float:
    """Of a date as Google writes it, since the epoch; its fraction has any number of digits."""
    whole, _, fraction = date.removesuffix("Z").partition(".")
    at = datetime.fromisoformat(whole).replace(tzinfo=timezone.utc).timestamp()
    return at + float(f"0.{fraction or 0}")
