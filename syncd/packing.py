"""zstd: which files gain by it, and the way there and back in bounded memory.

A sample decides. What gains nothing, as all that is compressed already, stays what it is, and a
plain ``zstd -d`` opens the rest: one frame, with its length and a checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syncd.errors import Corrupt, NeedsOperator
from syncd.filestat import Stat
from syncd.stores.base import Buffer

_LEVEL = 1
"""The fastest: what waits for the processor is not safe yet."""

_GAIN = 0.9
"""Of its length at most may be left of what is worth the work."""

_THREADS = 2
"""For a large file. The bytes are the same on every machine: an upload may go on on another one."""

_SAMPLE = 64 * 1024
_WINDOW = 128 * 1024 * 1024
"""Bytes that a frame may ask to have in memory: more than this writer or ``zstd`` itself takes."""

_PIECE = 1024 * 1024


def _zstandard() -> Any:
    try:
        import zstandard
    except ImportError:
        raise NeedsOperator(
            "this needs zstd, and zstandard is not installed", hint="pip install 'syncd[zstd]'"
        ) from None
    return zstandard


@dataclass(frozen=True)
class Spool:
    """The compressed form of a file on disk; ``sha256`` and ``size`` are those of the file."""

    path: Path
    stat: Stat
    sha256: str


class Packer:
    """Compresses what gains by it; may be used from several threads."""

    def __init__(self, folder: Path) -> None:
        """Large files lie in ``folder`` while they are sent; NeedsOperator without zstandard."""
        self._zstandard = _zstandard()
        self._folder = folder

    @staticmethod
    def clear(folder: Path) -> None:
        """Remove what a life that was cut short has left."""
        shutil.rmtree(folder, ignore_errors=True)

    def _compressor(self, threads: int = 0) -> Any:
        return self._zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True, threads=threads)

    def pack(self, data: Buffer) -> bytes | None:
        """The compressed form; None where that gains too little."""
        with memoryview(data) as view:
            size = len(view)
            if size > 4 * _SAMPLE and not self.gains(lambda at, n: view[at : at + n], size):
                return None
            packed: bytes = self._compressor().compress(view)
        return packed if len(packed) <= _GAIN * size else None

    def gains(self, read: Callable[[int, int], Buffer], size: int) -> bool:
        """Whether the beginning, the middle and the end of something become shorter."""
        compressor, before, after = self._compressor(), 0, 0
        for at in (0, max(0, size - _SAMPLE) // 2, max(0, size - _SAMPLE)):
            sample = read(at, min(_SAMPLE, size))
            before, after = before + len(sample), after + len(compressor.compress(sample))
        return after <= _GAIN * before

    @contextlib.contextmanager
    def spooled(self, read: Callable[[int], bytes], size: int) -> Iterator[Spool | None]:
        """Compress ``size`` bytes that come in order to a file, which is gone afterwards.

        None where there is no room for that, or it gains too little.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            fd, name = tempfile.mkstemp(dir=self._folder)
        except OSError:
            yield None
            return
        path = Path(name)
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                sha256 = self._write(read, size, file.write)
                stat = Stat.of(os.fstat(fd)) if sha256 else None
            yield Spool(path, stat, sha256) if sha256 and stat else None
        finally:
            path.unlink(missing_ok=True)

    def _write(
        self, read: Callable[[int], bytes], size: int, write: Callable[[Buffer], int]
    ) -> str:
        digest, left, written = hashlib.sha256(), size, 0
        packing = self._compressor(_THREADS).compressobj(size=size)
        try:
            if shutil.disk_usage(self._folder).free < size:
                return ""
            while left:
                data = read(min(_PIECE, left))
                digest.update(data)
                left -= len(data)
                piece = packing.compress(data) + (b"" if left else packing.flush())
                written += len(piece)
                with memoryview(piece) as view:
                    done = 0
                    while done < len(view):
                        done += write(view[done:])
        except OSError:
            return ""  # the disk is full by now: it goes as it is
        return digest.hexdigest() if written <= _GAIN * size else ""


def packer_for(compress: str, folder: Path) -> Packer | None:
    """What compresses, if the setting asks for it."""
    return Packer(folder) if compress == "zstd" else None


def unpack(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """What was compressed, of which no more than ``limit`` bytes and one come; Corrupt."""
    zstandard = _zstandard()
    left = limit + 1
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW).stream_reader(_Source(chunks))
    while left:
        try:
            piece: bytes = reader.read(min(_PIECE, left))
        except zstandard.ZstdError as error:
            raise Corrupt(f"it cannot be decompressed: {error}") from None
        if not piece:
            return
        left -= len(piece)
        yield piece


class _Source:
    """Chunks as a file that is read once."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, count: int = -1) -> bytes:
        """The next bytes, ``count`` at most; b"" at the end."""
        data = self._rest or next(self._chunks, b"")
        if 0 <= count < len(data):
            data, self._rest = data[:count], data[count:]
        else:
            self._rest = b""
        return data
