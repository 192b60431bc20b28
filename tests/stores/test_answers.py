"""Answers that no emulator gives: through the real SDK, from a server that says nothing else."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from xml.etree import ElementTree

import pytest
import trustme
from botocore.exceptions import CredentialRetrievalError

from syncd.errors import NeedsOperator, Permanent, Transient
from syncd.stores import open_store
from syncd.stores.base import IfVersion
from syncd.stores.http1 import Address, Broken, Connection, Strange, _parse
from syncd.stores.s3lean import _delete_document
from syncd.stores.s3road import told
from syncd.stores.s3sign import Keys
from syncd.stores.s3upload import conditions
from tests.servers.azure import connection_string

Serve = Callable[..., str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server with one answer; its address."""
    made: list[ThreadingHTTPServer] = []

    def start(status: int, body: bytes = b"", tls: bool = False, **headers: str) -> str:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = answer

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]
            server.socket = context.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.append(server)
        return f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}"

    yield start
    for server in made:
        server.shutdown()
        server.server_close()


def refusal(provider: str, env: dict[str, str]) -> str:
    """Put an object there: the words for a person."""
    store = open_store(provider, "bucket", env)
    try:
        with pytest.raises(NeedsOperator) as caught:
            store.put("a", b"x")
    finally:
        store.close()
    return caught.value.explain()


@pytest.mark.parametrize(
    ("code", "status", "remedy"),
    [
        ("AuthorizationPermissionMismatch", 403, "read, write, list and delete"),
        ("AuthorizationFailure", 403, "firewall"),
        ("KeyBasedAuthenticationNotPermitted", 403, "SAS token"),
        ("ContainerDisabled", 403, "enable the container"),
        ("LeaseIdMissing", 412, "break it"),
        ("BlobImmutableDueToPolicy", 409, "use another one"),
        ("BlobArchived", 409, "rehydrate it"),
        ("AuthenticationFailed", 403, "AZURE_STORAGE_CONNECTION_STRING"),
    ],
)
def test_what_azure_refuses_is_told_with_a_remedy(
    serve: Serve, code: str, status: int, remedy: str
) -> None:
    url = serve(status, x_ms_error_code=code)
    words = refusal("azure", {"AZURE_STORAGE_CONNECTION_STRING": connection_string(url)})
    assert code in words
    assert remedy in words


@pytest.mark.parametrize(
    ("code", "error"), [("DirectoryIsNotEmpty", Permanent), ("PendingCopyOperation", Transient)]
)
def test_a_conflict_that_does_not_end_is_not_waited_for(
    serve: Serve, code: str, error: type[Exception]
) -> None:
    connection = connection_string(serve(409, x_ms_error_code=code))
    store = open_store("azure", "bucket", {"AZURE_STORAGE_CONNECTION_STRING": connection})
    with pytest.raises(error):
        store.put("a", b"x")
    store.close()


S3 = {"AWS_REGION": "eu-west-1", "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}


def lean(serve: Serve, status: int, body: bytes = b"", **headers: str) -> Any:
    """S3's lean road to a server that says this."""
    made = told("bkt", {**S3, "AWS_ENDPOINT_URL": serve(status, body, **headers)})
    assert made
    return made


def test_a_copy_of_which_nothing_is_told_is_none(serve: Serve) -> None:
    """Then the bytes are sent."""
    url = serve(200, ETag='"e"', Last_Modified="Thu, 26 Nov 2026 12:00:00 GMT")
    store = open_store("s3", "bkt", {**S3, "AWS_ENDPOINT_URL": url})
    with pytest.raises(Permanent, match="what it has made of a copy of a"):
        store.copy("a", "b")
    store.close()


@pytest.mark.parametrize(
    "code", ["AuthorizationHeaderMalformed", "IllegalLocationConstraintException"]
)
def test_a_bucket_in_another_region_is_left_to_the_sdk(serve: Serve, code: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>the region is wrong</Message></Error>".encode()
    road = lean(serve, 400, body)
    with pytest.raises(Strange):
        road.call("list_objects_v2", {"Prefix": "x"})
    road.close()


def test_the_next_page_of_uploads_is_asked_for_by_its_own_name(serve: Serve) -> None:
    """Names come escaped where that was asked for, the marker too."""
    body = (
        b"<R><EncodingType>url</EncodingType><NextKeyMarker>a%3D1+b</NextKeyMarker>"
        b"<Upload><Key>a%3D1+b</Key><UploadId>u</UploadId></Upload></R>"
    )
    road = lean(serve, 200, body)
    page = road.call("list_multipart_uploads", {"Prefix": "a"})
    assert (page["NextKeyMarker"], page["Uploads"][0]["Key"]) == ("a=1 b", "a=1 b")
    road.close()


def test_credentials_that_cannot_be_renewed_are_an_answer_for_each(serve: Serve) -> None:
    road = lean(serve, 200, ETag='"e"')

    def keys() -> Keys:
        raise CredentialRetrievalError(provider="sso", error_msg="expired")

    road._signer._keys = keys
    (found,) = road.each("put_object", [{"Key": "a", "Body": b"x"}])
    assert isinstance(found, CredentialRetrievalError)
    road.close()


def test_a_head_needs_no_length() -> None:
    assert _parse(b"HTTP/1.1 200 OK", has_body=False).status == 200
    with pytest.raises(Strange):
        _parse(b"HTTP/1.1 200 OK", has_body=True)


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("size", [0, 40_000_000])
def test_a_server_that_falls_silent_is_not_waited_for(tls: bool, size: int) -> None:
    """It takes the connection, and then neither a byte nor says one."""
    authority = trustme.CA()
    ours, theirs = ssl.create_default_context(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.configure_trust(ours)
    authority.issue_cert("127.0.0.1").configure_cert(theirs)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as silent:

        def accept() -> socket.socket:
            plain, _ = server.accept()
            return theirs.wrap_socket(plain, server_side=True) if tls else plain

        accepted = silent.submit(accept)
        address = Address("127.0.0.1", server.getsockname()[1], ours if tls else None)
        connection = Connection(address, 5.0, 0.5)
        with accepted.result(), pytest.raises(Broken):
            connection.send(b"PUT / HTTP/1.1\r\n\r\n", bytes(size))
            connection.receive()
        connection.close()


def test_a_refusal_may_end_with_the_connection() -> None:
    """As older proxies answer: neither the SDK nor the same request again is called for."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        connection = Connection(Address("127.0.0.1", server.getsockname()[1]), 5.0, 5.0)
        with server.accept()[0] as there:
            there.sendall(b"HTTP/1.0 503 Busy\r\nServer: p\r\n\r\n<html>busy</html>")
        answer = connection.receive()
        assert (answer.status, answer.keeps) == (503, False)
        assert connection.body(answer, 1000) == b"<html>busy</html>"
        connection.close()


def test_an_etag_that_a_proxy_has_made_weak_is_the_stores_own(serve: Serve) -> None:
    etag = hashlib.md5(b"x").hexdigest()
    modified = "Sat, 28 Nov 2026 21:00:00 GMT"
    url = serve(200, b"", ETag=f'W/"{etag}"', Last_Modified=modified)
    store = open_store("s3", "bucket", {**S3, "AWS_ENDPOINT_URL": url})
    made = store.put("a", b"x")
    assert made.version == store.head("a").version == etag
    assert conditions(IfVersion(made.version)) == {"IfMatch": f'"{etag}"'}
    store.close()


def test_a_name_with_line_breaks_is_deleted_as_it_is() -> None:
    document = _delete_document([{"Key": "a\r\nb"}])
    assert ElementTree.fromstring(document).findtext("Object/Key") == "a\r\nb"


@pytest.mark.parametrize(
    ("reason", "status", "remedy"),
    [
        ("insufficientPermissions", 403, "roles/storage.objectUser"),
        ("forbidden", 403, "roles/storage.objectUser"),
        ("retentionPolicyNotMet", 403, "retention policy"),
        ("quotaExceeded", 403, "SYNCD_KEEP_LAST"),
    ],
)
def test_what_google_refuses_is_told_with_a_remedy(
    serve: Serve, reason: str, status: int, remedy: str
) -> None:
    fault = {"code": status, "message": "no", "errors": [{"reason": reason, "message": "no"}]}
    url = serve(status, json.dumps({"error": fault}).encode(), Content_Type="application/json")
    words = refusal("gcs", {"STORAGE_EMULATOR_HOST": url})
    assert f"{status} {reason}" in words
    assert remedy in words


@pytest.mark.parametrize("fault", ["nobody knows its authority", "it speaks no TLS"])
def test_a_store_without_tls_that_can_be_trusted_is_told(serve: Serve, fault: str) -> None:
    url = serve(200, tls=fault.startswith("nobody")).replace("http:", "https:")
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_ENDPOINT_URL": url}
    words = refusal("s3", {**env, "AWS_REGION": "us-east-1"})
    assert "TLS certificate is not trusted, or it speaks no TLS" in words
    assert "AWS_CA_BUNDLE" in words


def test_no_credentials_for_s3_are_told(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    words = refusal("s3", {"AWS_ENDPOINT_URL": serve(200), "AWS_REGION": "us-east-1"})
    assert "no usable S3 credentials" in words
    assert "AWS_ACCESS_KEY_ID" in words
