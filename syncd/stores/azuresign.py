"""Shared Key and shared access signatures of Azure Blob Storage.

The SDK's own signers make the same ones (``tests/stores/test_azure.py``); these need none of it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from urllib.parse import quote, urlsplit

VERSION = "2021-12-02"
"""Of the service: block blobs of its full size, and names that XML cannot hold."""

_ORDER = (
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-type",
    "date",
    "if-modified-since",
    "if-match",
    "if-none-match",
    "if-unmodified-since",
    "range",
)
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_ONE_DAY = 86400


class Account(NamedTuple):
    """What a connection string says; of ``key`` and ``token`` one is set."""

    name: str
    endpoint: str
    """Address of the blob service, without a slash at its end."""
    key: bytes = b""
    token: str = ""
    """A shared access signature, without the question mark."""

    def __repr__(self) -> str:
        return f"Account({self.name!r}, ...)"


def parse(connection: str) -> Account | None:
    """The account of a connection string; None in a form that only the SDK knows, or refuses."""
    pairs = (part.partition("=") for part in connection.rstrip(";").split(";"))
    told = {name.lower(): value for name, _, value in pairs}
    name, secret = told.get("accountname", ""), told.get("accountkey", "")
    token = told.get("sharedaccesssignature", "").lstrip("?")
    if bool(secret) == bool(token) or (secret and not name):
        return None
    endpoint = told.get("blobendpoint", "")
    if not endpoint:
        if not name:
            return None
        suffix = told.get("endpointsuffix") or "core.windows.net"
        endpoint = f"{told.get('defaultendpointsprotocol') or 'https'}://{name}.blob.{suffix}"
    url = urlsplit(endpoint)
    if not url.hostname or url.query or url.username:
        return None
    try:
        key = base64.b64decode(secret, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Account(name, endpoint.rstrip("/"), key, token)


class Signer(Protocol):
    """Makes a request one that the account allows."""

    def sign(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """The target of a request, and all its headers.

        ``path`` is escaped already, ``query`` is not. Names of ``headers`` are in lower case.
        """
        ...

    def readable(self, path: str, names: tuple[str, str]) -> str:
        """The path of a blob, escaped, with what lets the server itself read it.

        ``names`` are the container's and the blob's.
        """
        ...


def signer(account: Account, host: str) -> Signer:
    """Of an account whose blob service has this Host header."""
    return SharedKey(account, host) if account.key else Token(account, host)


class SharedKey:
    """Signs each request with the account's key."""

    def __init__(self, account: Account, host: str) -> None:
        self._account = account
        self._host = host

    def sign(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """See Signer."""
        signed = {**headers, "x-ms-date": _now(), "x-ms-version": VERSION}
        given = dict(signed)
        if given.get("content-length") == "0":
            given["content-length"] = ""
        ours = "".join(f"{n}:{signed[n]}\n" for n in sorted(signed) if n.startswith("x-ms-"))
        asked = "".join(f"\n{name}:{query[name]}" for name in sorted(query))
        text = "\n".join(
            (
                method,
                *(given.get(name, "") for name in _ORDER),
                f"{ours}/{self._account.name}{path}{asked}",
            )
        )
        signed["authorization"] = f"SharedKey {self._account.name}:{self._hmac(text)}"
        signed["host"] = self._host
        return _target(path, query), signed

    def _hmac(self, text: str) -> str:
        digest = hmac.new(self._account.key, text.encode(), hashlib.sha256).digest()
        return base64.b64encode(digest).decode()

    def readable(self, path: str, names: tuple[str, str]) -> str:
        """See Signer. For a day, as clocks differ."""
        until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + _ONE_DAY))
        resource = f"/blob/{self._account.name}/{names[0]}/{names[1]}"
        # permission, start, expiry, resource, policy, addresses, protocol, version, kind,
        # snapshot, scope of encryption, and five headers of the answer
        fields = ("r", "", until, resource, "", "", "", VERSION, "b", *[""] * 7)
        token = {"sp": "r", "se": until, "sv": VERSION, "sr": "b"}
        return _target(path, {**token, "sig": self._hmac("\n".join(fields))})


class Token:
    """Has a shared access signature, which goes with each request."""

    def __init__(self, account: Account, host: str) -> None:
        self._token = account.token
        self._host = host

    def sign(
        self, method: str, path: str, query: Mapping[str, str], headers: Mapping[str, str]
    ) -> tuple[str, dict[str, str]]:
        """See Signer."""
        del method
        target = _target(path, query)
        joined = f"{target}{'&' if query else '?'}{self._token}"
        return joined, {**headers, "x-ms-version": VERSION, "host": self._host}

    def readable(self, path: str, names: tuple[str, str]) -> str:
        """See Signer."""
        del names
        return f"{path}?{self._token}"


def _target(path: str, query: Mapping[str, str]) -> str:
    text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items())
    return f"{path}?{text}" if text else path


def _now() -> str:
    """The time in the form of a header, whatever the language of the system."""
    now = time.gmtime()
    day, month = _DAYS[now.tm_wday], _MONTHS[now.tm_mon - 1]
    return time.strftime(f"{day}, %d {month} %Y %H:%M:%S GMT", now)
