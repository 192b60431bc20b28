"""SHA-256 that can be taken up in the middle, as it was after some part of a file.

The state after each part costs nothing, as it is on the way to the digest of the whole, and with
the state before a part its bytes can be proven by themselves, whatever comes before them.
hashlib keeps its state to itself; so this asks the OpenSSL that hashlib itself works with.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import struct
from typing import Any

_BLOCK = 64
"""Bytes: a state can be told after a multiple of these."""


class _Context(ctypes.Structure):
    """OpenSSL's SHA256_CTX, as it has been since 0.9.8."""

    _fields_ = (
        ("state", ctypes.c_uint32 * 8),
        ("bits", ctypes.c_uint32 * 2),
        ("data", ctypes.c_uint32 * 16),
        ("waiting", ctypes.c_uint),
        ("length", ctypes.c_uint),
        ("room", ctypes.c_uint * 8),
    )


@functools.cache
def _openssl() -> Any:
    """OpenSSL's three functions; None where they are not at hand, or do something else."""
    try:
        import _hashlib

        if _hashlib.get_fips_mode():
            return None  # there are such where these functions end the process
        library = ctypes.CDLL(_hashlib.__file__)
        update, final = library.SHA256_Update, library.SHA256_Final
        library.SHA256_Init.argtypes = [ctypes.c_void_p]
        update.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
        final.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
    except (ImportError, AttributeError, OSError):
        return None
    return library if _keeps_its_word(library) else None


def _keeps_its_word(library: Any) -> bool:
    first, second = bytes(range(2 * _BLOCK)), b"and what follows" * 9
    begun = Chain(library=library)
    begun.update(first)
    again = Chain(begun.state(), len(first), library)
    again.update(second)
    return again.hexdigest() == hashlib.sha256(first + second).hexdigest()


class Chain:
    """A digest under way."""

    def __init__(self, state: str = "", done: int = 0, library: Any = None) -> None:
        """``state`` is what :meth:`state` said after ``done`` bytes; "" and 0: at the beginning.

        ValueError where no digest can be taken up.
        """
        self._library = library or _openssl()
        if self._library is None:
            if state:
                raise ValueError("no digest can be taken up here")
            self._plain = hashlib.sha256()
            return
        self._context = _Context()
        self._library.SHA256_Init(ctypes.byref(self._context))
        if state:
            self._context.state[:] = struct.unpack(">8I", bytes.fromhex(state))
            self._context.bits[:] = (done * 8 & 0xFFFFFFFF, done * 8 >> 32)

    def update(self, data: bytes) -> None:
        """More bytes of the file."""
        if self._library is None:
            self._plain.update(data)
        else:
            self._library.SHA256_Update(ctypes.byref(self._context), data, len(data))

    def state(self) -> str:
        """What it can be taken up by; "" where that cannot be told."""
        if self._library is None or self._context.waiting:
            return ""
        return struct.pack(">8I", *self._context.state).hex()

    def hexdigest(self) -> str:
        """SHA-256 of all bytes so far."""
        if self._library is None:
            return self._plain.hexdigest()
        copy = _Context.from_buffer_copy(self._context)
        digest = ctypes.create_string_buffer(32)
        self._library.SHA256_Final(digest, ctypes.byref(copy))
        return digest.raw.hex()
