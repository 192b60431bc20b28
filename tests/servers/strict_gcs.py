"""What Google enforces and fake-gcs-server does not, as a layer in front of it.

    preconditions on resumable uploads, rewrite, compose and its sources, delete and reads: 412
    resumable sessions whole: status query, offsets, chunks of 256 KiB, the lost acknowledgement
    wrong crc32c or md5 of an upload: 400, and no object
    names longer than 1,024 bytes: 400
    one write per second to the same name: 429 (only where ``one_write_per_second`` is set)
    names and listings outside of a prefix: 403 (only where ``prefix`` is set;
        all listings where ``lists`` is not)
    a token that is none of its own: 401 (only where ``tokens`` is set; ``/token`` gives one out,
        to anybody)

It checks no other rights, and it is no Google: say so where results are quoted.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import itertools
import json
import re
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import google_crc32c

_UPLOAD = re.compile(r"^(?:/resumable)?/upload/storage/v1/b/([^/]+)/o$")
_OBJECT = re.compile(r"^(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)$")
_TARGET = re.compile(
    r"^/storage/v1/b/[^/]+/o/[^/]+/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)$"
    r"|^/storage/v1/b/([^/]+)/o/([^/]+)/compose$"
)


class Refused(Exception):
    """An answer of this layer instead of the server's."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass
class Session:
    """A resumable upload under way."""

    bucket: str
    name: str
    generation: str | None
    metadata: dict[str, Any]
    body: bytearray = field(default_factory=bytearray)
    done: tuple[int, bytes] | None = None


class StrictGcs:
    """The layer; ``url`` is what STORAGE_EMULATOR_HOST takes."""

    def __init__(self, upstream_port: int) -> None:
        self.upstream = upstream_port
        self.one_write_per_second = False
        self.tokens: set[str] | None = None
        self.prefix = ""
        """What all names begin with that its user may touch or list."""
        self.lists = True
        self.given_out = 0
        self.takes_none = False
        """Whether the tokens that are given out are refused all the same."""
        self.gives_none = False
        """Whether the login server is down; ``given_out`` counts how often it was asked."""
        self.sessions: dict[str, Session] = {}
        self.lock = threading.RLock()
        self._written: dict[tuple[str, str], float] = {}
        self._ids = itertools.count(1)
        layer = self

        class Handler(_Handler):
            strict = layer

        self._server = _Quiet(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def new_id(self) -> str:
        return f"session-{next(self._ids)}"

    def forward(
        self, method: str, path: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Ask the server behind."""
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def generation(self, bucket: str, name: str) -> str:
        """Of the object as it is now; "0" where there is none."""
        path = f"/storage/v1/b/{bucket}/o/{quote(name, safe='')}"
        status, _, body = self.forward("GET", path, {}, b"")
        return str(json.loads(body)["generation"]) if status == 200 else "0"

    def require(self, bucket: str, name: str, wanted: str | None) -> None:
        """Refuse unless the object is still that generation."""
        if wanted is not None and self.generation(bucket, name) != wanted:
            raise Refused(412, "conditionNotMet")

    def note_write(self, bucket: str, name: str) -> None:
        """Refuse a second write to one name within a second."""
        if len(name.encode()) > 1024:
            raise Refused(400, "invalid: the maximum object length is 1024 characters")
        now = time.monotonic()
        last = self._written.get((bucket, name), 0.0)
        if self.one_write_per_second and now - last < 1.0:
            raise Refused(429, "rateLimitExceeded")
        self._written[bucket, name] = now


class _Quiet(ThreadingHTTPServer):
    """Connections are cut here on purpose; nothing else is kept quiet."""

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def check_content(metadata: dict[str, Any], body: bytes) -> None:
    """Refuse content that does not match the checksums sent along."""
    crc32c = base64.b64encode(google_crc32c.value(body).to_bytes(4, "big")).decode()
    md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
    for name, value in (("crc32c", crc32c), ("md5Hash", md5)):
        if metadata.get(name, value) != value:
            raise Refused(400, f"invalid: provided {name} doesn't match calculated {name}")


class _Handler(BaseHTTPRequestHandler):
    strict: StrictGcs
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_GET(self) -> None:
        self._serve(b"")

    def do_DELETE(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self._body())

    def do_PATCH(self) -> None:
        self._serve(self._body())

    def do_PUT(self) -> None:
        self._serve(self._body())

    def _body(self) -> bytes:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            raise ConnectionAbortedError("the client went away")
        return body

    def _serve(self, body: bytes) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        try:
            self._let_in(url.path)
            upload = _UPLOAD.match(url.path)
            if url.path == "/token":
                self._give_out()
            elif upload and "upload_id" in query:
                self._session(query["upload_id"], body)
            elif upload:
                self._upload(unquote(upload[1]), query, body)
            else:
                self._other(url.path, query, body)
        except Refused as refusal:
            words = {"message": refusal.reason, "errors": [{"reason": refusal.reason}]}
            self._reply(refusal.status, json.dumps({"error": words}).encode())

    def _let_in(self, path: str) -> None:
        tokens = self.strict.tokens
        told = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if tokens is not None and told not in tokens and path != "/token":
            raise Refused(401, "authError")

    def _allow(self, name: str) -> None:
        if not name.startswith(self.strict.prefix):
            raise Refused(403, "forbidden")

    def _give_out(self) -> None:
        with self.strict.lock:
            if self.strict.gives_none:
                self.strict.given_out += 1
                self._reply(503, b'{"error": "internal_failure"}')
                return
            self.strict.given_out += 1
            token = f"token-{self.strict.given_out}"
            self.strict.tokens = set() if self.strict.takes_none else {token}
        answer = {"access_token": token, "expires_in": 3600, "token_type": "Bearer"}
        self._reply(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _upload(self, bucket: str, query: dict[str, str], body: bytes) -> None:
        strict, wanted = self.strict, query.get("ifGenerationMatch")
        kind, content = query.get("uploadType"), body
        metadata: dict[str, Any] = {}
        if kind == "multipart":
            metadata, content = _split(self.headers["Content-Type"], body)
        elif kind == "resumable":
            metadata = json.loads(body or b"{}")
        name = str(metadata.get("name") or query.get("name", ""))
        self._allow(name)
        with strict.lock:
            strict.require(bucket, name, wanted)
            if kind == "resumable":
                strict.note_write(bucket, name)
                status, _, _ = strict.forward("GET", f"/storage/v1/b/{bucket}", {}, b"")
                if status != 200:
                    raise Refused(404, "notFound: the specified bucket does not exist.")
                upload = strict.new_id()
                strict.sessions[upload] = Session(bucket, name, wanted, metadata)
                place = f"/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={upload}"
                self._reply(200, b"", {"Location": f"http://{self.headers['Host']}{place}"})
                return
            check_content(metadata, content)
            strict.note_write(bucket, name)
            self._pass_on(body)

    def _session(self, upload: str, body: bytes) -> None:
        with self.strict.lock:
            session = self.strict.sessions.get(upload)
            if session is None:
                raise Refused(410, "gone")
            if self.command == "DELETE":
                del self.strict.sessions[upload]
                self._reply(499, b"")
                return
            if session.done:
                self._reply(*session.done)
                return
            span = re.match(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers["Content-Range"])
            if not span:
                raise Refused(400, "badRequest: Content-Range")
            if span[1]:
                if int(span[1]) != len(session.body):
                    raise Refused(503, "backendError: the offset is not where the upload is")
                final = span[3] != "*" and int(span[2]) + 1 == int(span[3])
                if not final and len(body) % (256 * 1024):
                    raise Refused(400, "badRequest: a chunk is a multiple of 256 KiB")
                session.body += body
            if span[3] == "*" or len(session.body) < int(span[3]):
                last = len(session.body) - 1
                self._reply(308, b"", {"Range": f"bytes=0-{last}"} if last >= 0 else {})
                return
            session.done = self._finalise(session)
            self._reply(*session.done)

    def _finalise(self, session: Session) -> tuple[int, bytes]:
        strict, content = self.strict, bytes(session.body)
        sent = dict(session.metadata)
        for part in (self.headers.get("X-Goog-Hash") or "").split(","):
            name, _, value = part.strip().partition("=")
            if name in ("crc32c", "md5"):
                sent["md5Hash" if name == "md5" else name] = value
        check_content(sent, content)
        strict.require(session.bucket, session.name, session.generation)
        path = f"/upload/storage/v1/b/{session.bucket}/o?uploadType=media&name="
        status, _, answer = strict.forward(
            "POST",
            path + quote(session.name, safe=""),
            {"Content-Type": "application/octet-stream"},
            content,
        )
        return status, answer

    def _other(self, path: str, query: dict[str, str], body: bytes) -> None:
        strict, wanted = self.strict, query.get("ifGenerationMatch")
        target, plain = _TARGET.match(path), _OBJECT.match(path)
        about = target or plain
        parts = [unquote(part) for part in about.groups() if part is not None] if about else []
        bucket, name = parts or ("", query.get("prefix", ""))
        self._allow(name)
        if not about and not strict.lists:
            raise Refused(403, "forbidden")
        with strict.lock:
            if about:
                strict.require(bucket, name, wanted)
            if target:
                strict.note_write(bucket, name)
                if path.endswith("/compose"):
                    self._compose(bucket, name, json.loads(body)["sourceObjects"])
                    return
            self._pass_on(body)

    def _compose(self, bucket: str, name: str, sources: list[dict[str, Any]]) -> None:
        """The server behind keeps the generation of a target that was there."""
        strict, content = self.strict, b""
        for source in sources:
            conditions = source.get("objectPreconditions", {})
            for wanted in (source.get("generation"), conditions.get("ifGenerationMatch")):
                strict.require(bucket, source["name"], str(wanted) if wanted else None)
            path = f"/storage/v1/b/{bucket}/o/{quote(source['name'], safe='')}?alt=media"
            status, _, body = strict.forward("GET", path, {}, b"")
            if status != 200:
                raise Refused(404, f"notFound: {source['name']}")
            content += body
        path = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(name, safe='')}"
        kind = {"Content-Type": "application/octet-stream"}
        status, _, answer = strict.forward("POST", path, kind, content)
        self._reply(status, answer, {"Content-Type": "application/json"})

    def _pass_on(self, body: bytes) -> None:
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower() not in ("host", "connection", "content-length", "accept-encoding")
        }
        status, answered, content = self.strict.forward(self.command, self.path, headers, body)
        kept = {
            name: value
            for name, value in answered
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date")
        }
        self._reply(status, content, kept)

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _split(content_type: str, body: bytes) -> tuple[dict[str, Any], bytes]:
    """The metadata and the media of a multipart/related upload."""
    found = re.search(r'boundary="?([^";]+)"?', content_type)
    boundary = b"--" + (found[1] if found else "").strip("'").encode()
    _, first, rest = body.split(boundary, 2)
    media = rest.rpartition(b"\r\n" + boundary)[0]
    metadata = json.loads(first.partition(b"\r\n\r\n")[2])
    return dict(metadata), media.partition(b"\r\n\r\n")[2]
