"""Ends what costs money: stops or destroys the rented instance once everything is safe.

Off unless ON_FINISH says ``stop`` or ``destroy``. The instance's own key (CONTAINER_API_KEY, which
Vast.ai gives to each instance for itself alone) is used; it goes into a header and nowhere else.
"""

from __future__ import annotations

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

from syncd.container import probe
from syncd.container.rundir import Outcome

ACTIONS = ("stop", "destroy")
_API = "https://console.vast.ai"
_TIMEOUT = 20.0
_TRIES = 5


def finish(  # noqa: PLR0911 - one for each reason to leave the instance alone
    outcome: Outcome | None, environ: Mapping[str, str] = os.environ, pause: float = 2.0
) -> str | None:
    """Do as ON_FINISH says and tell in a line what was done, or why not; None: not asked for.

    Only a finished training (exit 0) whose flush was complete, and whose newest commit has just
    been read back from the store and proven, ends its machine.
    """
    action = environ.get("ON_FINISH", "").strip().lower()
    if not action or action == "nothing":
        return None
    if action not in ACTIONS:
        return f"ON_FINISH={action!r} is neither stop nor destroy: the instance stays"
    if outcome is None or outcome.code != 0:
        return f"the training has not finished: the instance stays (ON_FINISH={action})"
    if not environ.get("CLOUD_BUCKET"):
        return f"nothing is copied to a bucket: the instance stays (ON_FINISH={action})"
    if action == "destroy" and _goes_with_it(environ):
        return "the bucket is a directory on this machine's own disk: the instance stays"
    if outcome.safe is not True:
        return f"the last flush is not proven: the instance stays (ON_FINISH={action})"
    if outcome.left:
        return f"{outcome.left}: the instance stays (ON_FINISH={action})"
    if not probe.newest_is_intact():
        return f"the newest commit could not be proven: the instance stays (ON_FINISH={action})"
    number, key = environ.get("CONTAINER_ID", ""), environ.get("CONTAINER_API_KEY", "")
    if not re.fullmatch(r"\d+", number) or not key:
        return "CONTAINER_ID and CONTAINER_API_KEY are not set: is this Vast.ai? Nothing is stopped"
    return _ask(action, number, key, environ.get("VAST_URL") or _API, pause)


def _goes_with_it(environ: Mapping[str, str]) -> bool:
    """Whether the store is a directory that is destroyed with the instance."""
    if (environ.get("CLOUD_PROVIDER") or "local") != "local":
        return False
    own = [Path("/"), Path(environ.get("CHECKPOINT_DIR") or "checkpoints")]
    try:
        device = Path(environ["CLOUD_BUCKET"]).stat().st_dev
        return device in [path.stat().st_dev for path in own if path.exists()]
    except OSError:
        return True


def _ask(action: str, number: str, key: str, url: str, pause: float) -> str:
    where = urlsplit(url)
    if where.scheme != "https" and where.hostname not in ("127.0.0.1", "localhost"):
        return "VAST_URL is not https: the key is not sent, the instance stays"
    method, body = ("DELETE", {}) if action == "destroy" else ("PUT", {"state": "stopped"})
    request = urllib.request.Request(  # noqa: S310 - the scheme is looked at above
        f"{url.rstrip('/')}/api/v0/instances/{number}/",
        data=json.dumps(body).encode(),
        method=method,
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    retrying = Retrying(
        stop=stop_after_attempt(_TRIES),
        wait=wait_exponential(multiplier=pause, max=30),
        retry=retry_if_exception(_passes),
        reraise=True,
    )
    try:
        retrying(_send, request)
    except urllib.error.HTTPError as error:
        return f"Vast.ai refused to {action} the instance (HTTP {error.code}): do it by hand"
    except OSError as error:
        kind = type(error).__name__
        return f"Vast.ai could not be asked to {action} the instance ({kind}): do it by hand"
    return f"Vast.ai was asked to {action} instance {number}"


def _passes(error: BaseException) -> bool:
    """Whether another try may help: not when the answer was a refusal."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code == 429 or error.code >= 500
    return isinstance(error, OSError)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key is for one host: a redirect would carry it to another."""

    def redirect_request(self, *_args: object) -> None:
        return None


def _send(request: urllib.request.Request) -> None:
    try:
        with urllib.request.build_opener(_NoRedirect).open(request, timeout=_TIMEOUT) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        error.close()
        raise
