"""Settings: read once from the environment and ``.env``, validated as a whole, never printed.

Every fault is found in one go, so that a person mends them in one go. The daemon reads the
environment file again when the store refuses its credentials; see :class:`Environment`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load
from marshmallow.validate import OneOf, Range

from syncd.envfile import EnvFile
from syncd.errors import SettingsError
from syncd.keys import parse_key, read_key

PROVIDERS = ("s3", "gcs", "azure", "local")

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes from ``50M`` style (K, M, G, T are powers of 1024; ``B`` and ``/s`` may follow).

    >>> parse_bytes("2.5M")
    2621440
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?(?:/s)?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a number of bytes such as 500K, 50M or 1G")
    value = int(float(match[1]) * _UNITS[match[2].upper()])
    if value <= 0:
        raise ValueError(f"{text!r} must be more than zero; leave it unset for no limit")
    return value


@dataclass(frozen=True)
class Settings:
    """Everything a person can set; names as in the table of the README, in lower case."""

    cloud_provider: str = "local"
    cloud_bucket: str = ""
    cloud_prefix: str = "eigen2"
    cloud_mirror: tuple[str, str, str] | None = None
    """Provider, bucket and prefix of the second store; an empty prefix is that of the first."""

    checkpoint_dir: Path = Path("checkpoints")
    log_dir: Path = Path("logs")
    state_dir: Path = Path(".syncd")
    settle: float = 2.0
    log_interval: float = 30.0
    bwlimit: int | None = None
    snapshot_limit: int | None = None
    concurrency: int | None = None
    shutdown_grace: float = 60.0
    keep_last: int | None = None
    keep_last_local: int | None = None
    keep_every: int | None = None
    exclude: tuple[str, ...] = ()
    compress: str = "off"
    encrypt_key: bytes = field(default=b"", repr=False)
    """Of the encryption, 32 bytes; empty: none."""

    http: tuple[str, int] | None = ("127.0.0.1", 8377)
    http_token: str = field(default="", repr=False)
    max_lag: float | None = None
    """Seconds; None: no bound but the one that lag.py describes, infinity: none at all."""

    hook: str = field(default="", repr=False)
    resume_from: str = "local"
    rank: int | None = None
    world: int = 1
    """Which of how many machines this is that save together; None: it saves alone."""

    is_mirror: bool = False
    environ: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The merged environment, for the stores to take their credentials from."""

    @property
    def copies(self) -> bool:
        """Whether there is a store at all: ``local`` without a bucket copies nothing."""
        return bool(self.cloud_bucket)

    @property
    def title(self) -> str:
        """What a person calls this store."""
        return "the mirror" if self.is_mirror else "the store"

    @property
    def lock_dir(self) -> Path:
        """The directory that is locked by who works with this state."""
        return self.state_dir.parent if self.is_mirror else self.state_dir

    @property
    def mirror(self) -> Settings | None:
        """The settings of the second store, as if it were the only one; None where there is none.

        ``CLOUD_MIRROR_X`` stands there for ``X``. Its journal is its own, and nothing on disk is
        deleted for its sake.
        """
        if self.cloud_mirror is None or not self.copies:
            return None
        provider, bucket, prefix = self.cloud_mirror
        return replace(
            self,
            cloud_provider=provider,
            cloud_bucket=bucket,
            cloud_prefix=prefix or self.cloud_prefix,
            cloud_mirror=None,
            is_mirror=True,
            state_dir=self.state_dir / "mirror",
            keep_last_local=None,
            environ=_of_mirror(self.environ),
        )


def _field(parse: Callable[[str], Any]) -> fields.Field[Any]:
    """A field of the schema from a plain function that raises ValueError."""

    def deserialize(value: str) -> Any:
        try:
            return parse(value)
        except ValueError as error:
            raise ValidationError(str(error)) from None

    return fields.Function(deserialize=deserialize)


def _address(text: str) -> tuple[str, int] | None:
    if text.lower() == "off":
        return None
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{text!r} is neither host:port nor 'off'")
    return host.strip("[]"), int(port)


_LEAST_TOKEN = 16
"""Characters that a token has at least: it stands between the page and everybody."""


def _token(text: str) -> str:
    if len(text) < _LEAST_TOKEN or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError(
            f"it needs {_LEAST_TOKEN} characters or more, of printable ASCII without spaces"
        )  # and is not shown
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _seconds_or_off(text: str) -> float:
    try:
        seconds = float("inf") if text.lower() == "off" else float(text)
    except ValueError:
        seconds = -1.0
    if not seconds > 0:
        raise ValueError(f"{text!r} is neither a number of seconds above zero nor 'off'")
    return seconds


def _hook(text: str) -> str:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"it cannot be read as a command: {error}") from None
    if not words:
        raise ValueError("it is neither a command nor a URL")
    return text


def _bytes_or_off(text: str) -> int:
    return 0 if text.lower() == "off" else parse_bytes(text)


_MIRROR = "CLOUD_MIRROR_"
_SCHEMES = {"s3": "s3", "gcs": "gcs", "gs": "gcs", "azure": "azure", "file": "local"}


def _of_mirror(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of the second store; what is set to nothing there is not set.

    A session token belongs to one key: it is not taken along for another one.
    """
    own = {k.removeprefix(_MIRROR): v for k, v in environ.items() if k.startswith(_MIRROR)}
    if "AWS_ACCESS_KEY_ID" in own:
        own.setdefault("AWS_SESSION_TOKEN", "")
    return {name: value for name, value in {**environ, **own}.items() if own.get(name, "-")}


def _mirror(text: str) -> tuple[str, str, str]:
    url = urlsplit(text)
    if url.username is not None or url.password is not None or url.query or url.fragment:
        raise ValueError("it holds more than a place; keys go into CLOUD_MIRROR_… variables")
    provider, path = _SCHEMES.get(url.scheme.lower()), unquote(url.path).strip("/")
    if provider == "local" and not url.netloc and path:
        return "local", f"/{path}", ""
    if provider in (None, "local") or not url.netloc:
        raise ValueError(
            f"{text!r} is none of s3://bucket/prefix, gcs://bucket/prefix, "
            "azure://container/prefix and file:///directory"
        )
    if path and not _usable(path):
        raise ValueError(f"{path!r} is not a usable key prefix")
    return str(provider), url.netloc, path


def _usable(prefix: str) -> bool:
    return not any(part in ("", ".", "..", ".syncd") for part in prefix.split("/"))


def _globs(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _concurrency(text: str) -> int | None:
    if text.lower() == "auto":
        return Settings.concurrency
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise ValueError(f"{text!r} is neither 'auto' nor a whole number from 1 to 64")
    return int(text)


def _directory(text: str) -> Path:
    """A folder that may appear later, but is no file and can be read when it is there."""
    path = Path(text).expanduser()
    try:
        there = path.exists()
    except OSError as error:
        raise ValueError(f"{path} cannot be looked at: {error.strerror}") from None
    if there and not path.is_dir():
        raise ValueError(f"{path} is not a directory")
    if there and not os.access(path, os.R_OK | os.X_OK):
        raise ValueError(f"{path} cannot be read; give this user read permission")
    return path


def _key_file(text: str) -> bytes:
    return read_key(Path(text).expanduser())


_SECONDS = Range(min=0, error="must be zero or more seconds")
_COUNT = Range(min=1, error="must be 1 or more; leave it unset to keep all")
_RANK = Range(min=0, error="must be 0 or more")
_MACHINES = Range(min=2, error="must be 2 or more; leave it unset for one machine")
_NUMBER = {"invalid": "{input!r} is not a number"}
_WHOLE = {"invalid": "{input!r} is not a whole number"}


class _Schema(Schema):
    class Meta:
        unknown = EXCLUDE

    CLOUD_PROVIDER = fields.String(
        validate=OneOf(PROVIDERS, error="{input!r} is not one of s3, gcs, azure, local")
    )
    CLOUD_BUCKET = fields.String()
    CLOUD_PREFIX = fields.String()
    CLOUD_MIRROR = _field(_mirror)
    CHECKPOINT_DIR = _field(_directory)
    LOG_DIR = _field(_directory)
    SYNCD_STATE_DIR = _field(_directory)
    SYNCD_SETTLE = fields.Float(validate=_SECONDS, error_messages=_NUMBER)
    SYNCD_LOG_INTERVAL = fields.Float(validate=_SECONDS, error_messages=_NUMBER)
    SYNCD_BWLIMIT = _field(parse_bytes)
    SYNCD_SNAPSHOT_LIMIT = _field(_bytes_or_off)
    SYNCD_CONCURRENCY = _field(_concurrency)
    SYNCD_SHUTDOWN_GRACE = fields.Float(validate=_SECONDS, error_messages=_NUMBER)
    SYNCD_KEEP_LAST = fields.Integer(validate=_COUNT, error_messages=_WHOLE)
    SYNCD_KEEP_LAST_LOCAL = fields.Integer(validate=_COUNT, error_messages=_WHOLE)
    SYNCD_KEEP_EVERY = fields.Integer(validate=_COUNT, error_messages=_WHOLE)
    SYNCD_EXCLUDE = _field(_globs)
    SYNCD_COMPRESS = fields.String(
        validate=OneOf(("off", "zstd"), error="{input!r} is neither 'off' nor 'zstd'")
    )
    SYNCD_ENCRYPT_KEY = _field(parse_key)
    SYNCD_ENCRYPT_KEY_FILE = _field(_key_file)
    SYNCD_RANK = fields.Integer(validate=_RANK, error_messages=_WHOLE)
    SYNCD_WORLD = fields.Integer(validate=_MACHINES, error_messages=_WHOLE)
    SYNCD_HTTP = _field(_address)
    SYNCD_HTTP_TOKEN = _field(_token)
    SYNCD_MAX_LAG = _field(_seconds_or_off)
    SYNCD_HOOK = _field(_hook)
    RESUME_FROM = fields.String(
        validate=OneOf(("local", "newest"), error="{input!r} is neither 'local' nor 'newest'")
    )

    @post_load
    def _lower(self, data: dict[str, Any], **_: Any) -> dict[str, Any]:
        return {name.removeprefix("SYNCD_").lower(): value for name, value in data.items()}


def encrypt_key_in(environ: Mapping[str, str]) -> bytes:
    """The key of the encryption, empty if there is none; SettingsError for one that is none."""
    names = ("SYNCD_ENCRYPT_KEY", "SYNCD_ENCRYPT_KEY_FILE")
    given = {name: environ[name] for name in names if environ.get(name, "").strip()}
    try:
        found: dict[str, bytes] = _Schema(only=names).load(given)
    except ValidationError as error:
        words: Mapping[str, list[str]] = error.messages_dict
        raise SettingsError([f"{name}: {text}" for name in words for text in words[name]]) from None
    return found.get("encrypt_key") or found.get("encrypt_key_file", b"")


class Environment:
    """The process environment with the environment file beneath it.

    What is set in the environment wins over the file, as everywhere. A value of the file that
    *changes* while the process lives wins from then on: somebody has just replaced a credential,
    and a start script may have exported the old one.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, file: Path | None = None) -> None:
        self._environ = dict(os.environ if environ is None else environ)
        self._file = EnvFile(Path(".env") if file is None else file)
        self._at_start = self._file.read()

    def read(self) -> dict[str, str]:
        """The merged variables as they are now."""
        now = self._file.read()
        changed = {k: v for k, v in now.items() if self._at_start.get(k) != v}
        return {**now, **self._environ, **changed}


def load_settings(environment: Environment | None = None) -> Settings:
    """Settings from the environment; SettingsError names every fault at once."""
    environ = (environment or Environment()).read()
    given = {
        name: environ[name].strip() for name in _Schema().fields if environ.get(name, "").strip()
    }
    faults: list[str] = []
    try:
        values = dict(_Schema().load(given))
    except ValidationError as error:
        values = {}
        messages: Mapping[str, list[str]] = error.messages_dict
        faults += [f"{name}: {text}" for name in messages for text in messages[name]]
    provider = given.get("CLOUD_PROVIDER", "local")
    if provider in PROVIDERS[:3] and "CLOUD_BUCKET" not in given:
        faults.append(f"CLOUD_BUCKET: not set, and CLOUD_PROVIDER={provider} needs a bucket's name")
    if "SYNCD_KEEP_EVERY" in given and "SYNCD_KEEP_LAST" not in given:
        faults.append("SYNCD_KEEP_EVERY: without SYNCD_KEEP_LAST all are kept anyway; set both")
    if {"SYNCD_ENCRYPT_KEY", "SYNCD_ENCRYPT_KEY_FILE"} <= given.keys():
        faults.append("SYNCD_ENCRYPT_KEY: SYNCD_ENCRYPT_KEY_FILE is set too; set one of the two")
    from_file = values.pop("encrypt_key_file", b"")
    values["encrypt_key"] = values.get("encrypt_key") or from_file
    if ("SYNCD_RANK" in given) != ("SYNCD_WORLD" in given):
        faults.append("SYNCD_RANK: it goes with SYNCD_WORLD: which machine, of how many")
    elif values.get("rank", 0) >= values.get("world", 1) > 1:
        faults.append("SYNCD_RANK: machines are counted from 0 to SYNCD_WORLD - 1")
    address = values.get("http")
    if address and not _is_loopback(address[0]) and "SYNCD_HTTP_TOKEN" not in given:
        faults.append(
            f"SYNCD_HTTP: {address[0]} can be reached from other machines: set SYNCD_HTTP_TOKEN, "
            "or listen on 127.0.0.1 and use a tunnel"
        )
    prefix = given.get("CLOUD_PREFIX", "eigen2").strip("/")
    if not prefix or not _usable(prefix):
        faults.append(f"CLOUD_PREFIX: {given['CLOUD_PREFIX']!r} is not a usable key prefix")
    settings = Settings(**{**values, "cloud_prefix": prefix}, environ=environ)
    if values.get("cloud_mirror") and not settings.copies:
        faults.append("CLOUD_MIRROR: there is no CLOUD_BUCKET that it could be the mirror of")
    elif settings.mirror and _place(settings.mirror) == _place(settings):
        faults.append("CLOUD_MIRROR: it is the very place of CLOUD_BUCKET; name another one")
    if faults:
        raise SettingsError(sorted(faults))
    return settings


def _place(settings: Settings) -> tuple[str, ...]:
    bucket = settings.cloud_bucket
    if settings.cloud_provider == "local":
        return ("local", str(Path(bucket).absolute()))
    environ = settings.environ
    names = ("AWS_ENDPOINT_URL", "AZURE_STORAGE_CONNECTION_STRING", "STORAGE_EMULATOR_HOST")
    server = (environ.get(name, "") for name in names)
    return (settings.cloud_provider, bucket, settings.cloud_prefix, *server)
