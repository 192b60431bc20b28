"""What the daemon answers: the status page, /status, /history, /healthz and /metrics.

On the socket of the state directory it can also be asked for a flush, and be told what a
verification of the store has found and how many bytes a second may go. On an address it only
ever answers questions, to those who have the token, where one is set.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import itertools
import json
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from syncd import page
from syncd.health import Health
from syncd.metrics import CONTENT_TYPE, metrics
from syncd.programs import Program

Flush = Callable[[Callable[[dict[str, Any]], None]], None]
"""Asks for a flush; the callback gets its report when it is done."""

Answer = tuple[str, str, bytes]
"""Status, content type, body."""

_PLAIN = "text/plain; charset=utf-8"
_COOKIE = "syncd"
_MOST_BODY = 10**6

_HEADERS = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", page.POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)


class Application:
    """The web application (WSGI)."""

    def __init__(
        self,
        health: Health,
        flush: Flush | None = None,
        token: str = "",
        programs: Callable[[], list[Program]] = list,
        set_limit: Callable[[int | None], None] = lambda _rate: None,
    ) -> None:
        """``flush`` and ``set_limit`` are given on the socket only.

        With ``token`` nobody is answered without it.
        """
        self._health = health
        self._flush = flush
        self._token = token
        self._cookie = hmac.new(token.encode(), b"cookie", hashlib.sha256).hexdigest()
        self._programs = programs
        self._set_limit = set_limit
        self._numbers = itertools.count(1)
        self._reports: dict[int, dict[str, Any] | None] = {}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """Answer one request."""
        more: list[tuple[str, str]] = []
        refused = None if self._flush else self._refuse(environ, more)
        status, kind, body = refused or self._answer(environ)
        start(status, [("Content-Type", kind), *_HEADERS, *more])
        return [body]

    # -- who may ask

    def _refuse(self, environ: dict[str, Any], more: list[tuple[str, str]]) -> Answer | None:
        """None for those who may ask; else what they are told, with ``more`` headers."""
        if not self._token:
            if _names_this_machine(str(environ.get("HTTP_HOST", ""))):
                return None
            # a page of some other site, whose name was made to lead here
            return "403 Forbidden", _PLAIN, b"ask for it by address, or set SYNCD_HTTP_TOKEN\n"
        words = dict(parse_qsl(str(environ.get("QUERY_STRING", ""))))
        given = words.pop("token", None)
        if given is not None and _same(given, self._token):
            query = f"?{urlencode(words)}" if words else ""
            cookie = f"{_COOKIE}={self._cookie}; HttpOnly; SameSite=Lax; Path=/"
            here = "/" + quote(str(environ.get("PATH_INFO", "")).lstrip("/"))
            more += [("Location", here + query), ("Set-Cookie", cookie)]
            return "303 See Other", _PLAIN, b"\n"
        scheme, _, bearer = str(environ.get("HTTP_AUTHORIZATION", "")).partition(" ")
        if scheme.lower() == "bearer" and _same(bearer.strip(), self._token):
            return None
        if _same(_cookie_of(environ), self._cookie):
            return None
        more.append(("WWW-Authenticate", 'Bearer realm="syncd"'))
        told = b"open /?token=... once, or send Authorization: Bearer ... (SYNCD_HTTP_TOKEN)\n"
        return "401 Unauthorized", _PLAIN, told

    # -- what is answered

    def _answer(self, environ: dict[str, Any]) -> Answer:
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO") or "/"
        if self._flush and path.startswith("/flush"):
            return self._answer_flush(method, path)
        if self._flush and (method, path) == ("POST", "/verified"):
            return self._take_verified(environ)
        if self._flush and (method, path) == ("POST", "/limit"):
            return self._take_limit(environ)
        if method not in ("GET", "HEAD"):
            return "405 Method Not Allowed", _PLAIN, b"only questions are answered here\n"
        answers: dict[str, Callable[[], Answer]] = {
            "/": self._page,
            "/status": lambda: _json("200 OK", self._health.snapshot()),
            "/history": lambda: _json("200 OK", self._health.history()),
            "/healthz": self._healthz,
            "/metrics": lambda: ("200 OK", CONTENT_TYPE, metrics(self._health)),
        }
        if path not in answers:
            return "404 Not Found", _PLAIN, b"/status, /history, /healthz and /metrics are here\n"
        return answers[path]()

    def _page(self) -> Answer:
        body = page.render(self._health.snapshot(), self._health.history(), self._programs())
        return "200 OK", "text/html; charset=utf-8", body

    def _healthz(self) -> Answer:
        reasons = self._health.reasons()
        if not reasons:
            return "200 OK", _PLAIN, b"ok\n"
        text = "".join(f"{reason.message} ({reason.hint})\n" for reason in reasons)
        return "503 Service Unavailable", _PLAIN, text.encode(errors="replace")

    def _answer_flush(self, method: str, path: str) -> Answer:
        if method == "POST" and path == "/flush" and self._flush:
            number = next(self._numbers)
            self._reports[number] = None
            self._flush(lambda report: self._reports.__setitem__(number, report))
            return _json("202 Accepted", {"id": number})
        number = int(path.rpartition("/")[2] or 0) if path[7:].isdigit() else 0
        if number not in self._reports:
            return _json("404 Not Found", {"error": "no such flush"})
        report = self._reports[number]
        return _json("200 OK", {"done": report is not None, "report": report})

    def _take_limit(self, environ: dict[str, Any]) -> Answer:
        try:
            rate = _told(environ)["bytes_per_second"]
        except (ValueError, TypeError, KeyError):
            rate = 0
        if rate is not None and (type(rate) is not int or rate <= 0):
            return _json("400 Bad Request", {"error": "bytes per second, or null, are expected"})
        self._set_limit(rate)
        return _json("200 OK", {"limit_bytes_per_second": rate})

    def _take_verified(self, environ: dict[str, Any]) -> Answer:
        try:
            told = _told(environ)
            intact = [int(seq) for seq in told["intact"]]
            broken = {int(seq): str(words) for seq, words in told["broken"].items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            return _json("400 Bad Request", {"error": "numbers of commits are expected"})
        self._health.proven(intact, broken)
        return _json("200 OK", {"noted": len(intact) + len(broken)})


def _json(status: str, document: dict[str, Any]) -> Answer:
    return status, "application/json", json.dumps(document).encode() + b"\n"


def _told(environ: dict[str, Any]) -> Any:
    """The document that came with a request; ValueError if it is none."""
    length = min(int(environ.get("CONTENT_LENGTH") or 0), _MOST_BODY)
    return json.loads(environ["wsgi.input"].read(length))


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), wanted.encode())


def _cookie_of(environ: dict[str, Any]) -> str:
    try:
        morsel = SimpleCookie(str(environ.get("HTTP_COOKIE", ""))).get(_COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _names_this_machine(host: str) -> bool:
    """Whether a Host header is an address, or localhost, as of somebody who means this machine."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() in ("localhost", "")
    return True
