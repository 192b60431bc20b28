"""Credentials for Google Cloud, from settings that may have come from ``.env``."""

from __future__ import annotations

import json
import os
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import google.auth
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import GoogleAuthError
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import credentials as user
from google.oauth2 import service_account

from syncd.errors import NeedsOperator
from syncd.stores.gcserrors import passes
from syncd.stores.wire import CONNECT_TIMEOUT, READ_TIMEOUT

# typed in part only, and another part in each version
_session: Any = AuthorizedSession
_request: Any = Request
_anonymous: Any = AnonymousCredentials
_service: Any = service_account.Credentials
_user: Any = user.Credentials
_load: Any = google.auth.load_credentials_from_file

_UNIVERSE = "googleapis.com"
_SCOPES = ["https://www.googleapis.com/auth/devstorage.read_write"]
_HINT = "point GOOGLE_APPLICATION_CREDENTIALS at the key file of a service account"


def open_session(environ: Mapping[str, str]) -> Any:
    """A requests session that signs what it sends; NeedsOperator without usable credentials."""
    return _session(_credentials(environ))


class Token:
    """What lets a request in: a token, fetched when the first one is made and before it expires.

    One thread fetches it, and those that wait for that share what comes of it.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Makes no request."""
        self._environ = environ
        self._lock = threading.Lock()
        self._found: tuple[Any, Any] | None = None
        self._renewed = 0.0
        self._failed: tuple[float, Exception] | None = None

    def _open(self) -> tuple[Any, Any]:
        if not self._found:
            ask = partial(_request(), timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
            self._found = _credentials(self._environ), ask
            universe = getattr(self._found[0], "_universe_domain", "") or _UNIVERSE
            if universe != _UNIVERSE:  # the property asks the machine's server for it
                self._found = None
                raise NeedsOperator(
                    f"the credentials are of {universe}, not of {_UNIVERSE}",
                    hint=f"set GOOGLE_CLOUD_UNIVERSE_DOMAIN={universe}",
                )
        return self._found

    def head(self, method: str, url: str) -> Mapping[str, str]:
        """See gcslean.Login; GoogleAuthError, or NeedsOperator without usable credentials."""
        headers: dict[str, str] = {}

        def ask(credentials: Any, request: Any) -> None:
            before = credentials.token
            credentials.before_request(request, method, url, headers)
            if credentials.token != before:
                self._renewed = time.monotonic()

        self._with_credentials(ask)
        return headers

    def renew(self, since: float) -> bool:
        """See gcslean.Login. GoogleAuthError where the login server does not answer."""

        def ask(credentials: Any, request: Any) -> None:
            if self._renewed < since:
                credentials.refresh(request)
                self._renewed = time.monotonic()

        try:
            self._with_credentials(ask)
        except GoogleAuthError as error:
            if passes(error):
                raise
            return False
        return True

    def _with_credentials(self, action: Callable[[Any, Any], None]) -> None:
        asked = time.monotonic()
        with self._lock:
            if self._failed and self._failed[0] >= asked:
                raise self._failed[1]
            try:
                action(*self._open())
            except GoogleAuthError as error:
                self._failed = time.monotonic(), error
                raise


def _credentials(environ: Mapping[str, str]) -> Any:
    if environ.get("STORAGE_EMULATOR_HOST"):
        return _anonymous()
    path = environ.get("GOOGLE_APPLICATION_CREDENTIALS", "")
    if not path or path == os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"):
        return google.auth.default(scopes=_SCOPES)[0]
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8"))
        kind = info.get("type")
        if kind == "service_account":
            return _service.from_service_account_info(info, scopes=_SCOPES)
        if kind == "authorized_user":
            return _user.from_authorized_user_info(info, scopes=_SCOPES)
        with warnings.catch_warnings():  # the file is the user's own: the warning is not for it
            warnings.simplefilter("ignore", DeprecationWarning)
            return _load(path, scopes=_SCOPES)[0]
    except OSError as error:
        raise NeedsOperator(
            f"GOOGLE_APPLICATION_CREDENTIALS={path} cannot be read: {error.strerror}", hint=_HINT
        ) from None
    except (ValueError, KeyError, AttributeError):
        raise NeedsOperator(  # the words of the library may quote the key
            f"GOOGLE_APPLICATION_CREDENTIALS={path} holds no usable credentials", hint=_HINT
        ) from None
