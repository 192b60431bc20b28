"""What the stores behind HTTP have in common: names, pauses, clocks, quiet loggers, sessions."""

from __future__ import annotations

import importlib.util
import logging
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from syncd.errors import NeedsOperator, Permanent

CHUNK = 1024 * 1024
"""Bytes that a reading yields at a time."""

CONNECT_TIMEOUT, READ_TIMEOUT = 10, 60
CONNECTIONS = 32
LONGEST_KEY = 1024
"""Bytes of UTF-8: the limit of S3, Google Cloud Storage and Azure alike."""

TRANSIENT_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})


def checked_key(key: str) -> str:
    """The key, if it can be the name of an object anywhere; Permanent otherwise."""
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise Permanent(
            f"{key!r} is not valid Unicode, and no object can have this name",
            hint="rename the file",
        ) from None
    if not 0 < length <= LONGEST_KEY or "\0" in key:
        raise Permanent(
            f"{key[:60]!r}... has {length} bytes; an object's name has 1 to {LONGEST_KEY}, no NUL",
            hint="shorten the path of the file, or CLOUD_PREFIX",
        )
    return key


@lru_cache(maxsize=4)
def _parsed(date: str) -> float | None:
    """Seconds since the epoch, of a date in a header: it changes once a second."""
    import email.utils

    found = email.utils.parsedate_tz(date)
    return float(email.utils.mktime_tz(found)) if found else None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the store asks for, given as a number or as a date; None if it does not."""
    value = _header(headers, "retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        date = _parsed(value)
        return None if date is None else max(0.0, date - time.time())


def server_time(headers: Mapping[str, str]) -> float:
    """When the store says it answered; this machine's clock where it does not say."""
    date = _parsed(_header(headers, "date") or "")
    return time.time() if date is None else date


def clock_words(headers: Mapping[str, str], tolerated: float = 240.0) -> str:
    """How far this machine's clock is off by the Date of an answer; empty within tolerance."""
    off = time.time() - server_time(headers)
    if abs(off) <= tolerated:
        return ""
    words = f"{abs(off) / 60:.0f} minutes" if abs(off) >= 120 else f"{abs(off):.0f} seconds"
    return f"the clock of this machine is {words} {'ahead' if off > 0 else 'behind'}"


CLOCK_HINT = "set the clock of the machine, for instance by turning NTP on"


def _header(headers: Mapping[str, str], name: str) -> str | None:
    if name in headers:
        return headers[name]
    found = (value for key, value in headers.items() if key.lower() == name)
    return next(found, None)


def quiet(*loggers: str) -> None:
    """Keep an SDK's debug logs, which hold signed headers, out of a verbose root logger."""
    for name in loggers:
        logger = logging.getLogger(name)
        if logger.level == logging.NOTSET:
            logger.setLevel(logging.WARNING)


def check_installed(module: str, package: str, extra: str) -> None:
    """NeedsOperator unless the SDK can be loaded, without loading it."""
    try:
        there = importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        there = False
    if not there:
        raise NeedsOperator(f"{package} is not installed", hint=f"pip install 'syncd[{extra}]'")


def side_by_side(keys: Iterable[str], action: Callable[[str], None]) -> None:
    """Do something with every key, several at a time; the first error is raised at the end."""
    with ThreadPoolExecutor(8, thread_name_prefix="keys") as pool:
        for job in [pool.submit(action, key) for key in keys]:
            job.result()


def enlarge(session: Any) -> None:
    """Give a requests session room for all transfers, and keep its idle connections alive."""
    from requests.adapters import HTTPAdapter
    from urllib3.connection import HTTPConnection

    options = [*HTTPConnection.default_socket_options, (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
            super().init_poolmanager(*args, socket_options=options, **kwargs)

    for scheme in ("http://", "https://"):
        session.mount(scheme, Adapter(pool_connections=4, pool_maxsize=CONNECTIONS, max_retries=0))
