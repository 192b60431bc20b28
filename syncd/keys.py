"""The key of the encryption: 32 random bytes, as text of 44 characters, in a file or a variable.

Whoever loses it loses every checkpoint that was encrypted with it: there is no other way in.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
from pathlib import Path

from syncd.errors import SettingsError

_LENGTH = 32

_NO_KEY = (
    "holds no key: 44 characters of base64 for 32 bytes; python -m syncd key new FILE makes one"
)


def parse_key(text: str) -> bytes:
    """The key from its text; ValueError, which never quotes it, if it is none."""
    try:
        key = base64.b64decode(text.strip().encode(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _LENGTH or len(set(key)) < _LENGTH // 4:  # zeros, or a repeated word
        raise ValueError(_NO_KEY)
    return key


def key_name(key: bytes) -> str:
    """What tells a key from others and may be shown."""
    return hmac.digest(key, b"syncd: name of a key", "sha256")[:4].hex()


def read_key(path: Path) -> bytes:
    """The key in a file; ValueError if there is none."""
    try:
        text = path.read_bytes()[:1024].decode("ascii")
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} {_NO_KEY}") from None
    try:
        return parse_key(text)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None


def new_key(path: Path) -> None:
    """Write a fresh key to a file that only its owner can read; a file that is there stays."""
    text = base64.b64encode(secrets.token_bytes(_LENGTH)) + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
    except FileExistsError:
        raise SettingsError(
            [f"{path} is there already; another key does not open what was encrypted with it"]
        ) from None
    except OSError as error:
        raise SettingsError([f"{path} cannot be written: {error.strerror}"]) from None
