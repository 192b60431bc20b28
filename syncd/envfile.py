"""The environment file: read whole, or refused in words; never in part and never in silence.

A file that is passed over looks like one that sets nothing: with no bucket named there is nothing
to copy, and that is called safe.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path

from dotenv import dotenv_values

from syncd.errors import SettingsError

log = logging.getLogger(__name__)


class EnvFile:
    """One such file; it need not exist. SettingsError where it does and cannot be used."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fault = ""
        self._values = self._load()

    def read(self) -> dict[str, str]:
        """Its values as they are now; while it cannot be used, those that it had before."""
        try:
            self._values, self._fault = self._load(), ""
        except SettingsError as error:
            if error.message != self._fault:
                self._fault = error.message
                log.warning("%s; until then what it said before counts", error.message)
        return self._values

    def _load(self) -> dict[str, str]:
        try:
            # editors of other systems put a mark of three bytes at the beginning
            text = self._path.read_text(encoding="utf-8-sig")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return {}
        except OSError as error:
            raise self._unusable(
                f"it cannot be read: {error.strerror}; give this user the right, or remove it"
            ) from None
        except UnicodeDecodeError:
            raise self._unusable("it is not UTF-8 text; save it as UTF-8") from None
        if "\0" in text:  # UTF-16 without a mark
            raise self._unusable("it is not UTF-8 text; save it as UTF-8")
        values = dotenv_values(stream=io.StringIO(text), interpolate=False)
        return {name: value for name, value in values.items() if value is not None}

    def _unusable(self, words: str) -> SettingsError:
        return SettingsError([f"{self._path}: {words}"])
