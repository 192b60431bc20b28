"""Opening a store: only its own SDK, no request, no stale credentials, no secret in a message."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from syncd.errors import NeedsOperator, Transient
from syncd.stores import open_store
from tests.servers.azure import connection_string
from tests.servers.gcs import service_account
from tests.servers.process import free_port

SETTINGS = {
    "s3": {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"},
    "gcs": {"STORAGE_EMULATOR_HOST": "http://127.0.0.1:9"},
    "azure": {"AZURE_STORAGE_CONNECTION_STRING": connection_string("http://127.0.0.1:9")},
}
SDKS = {"s3": "boto3", "gcs": "google.cloud.storage", "azure": "azure.storage.blob"}


@pytest.mark.parametrize("provider", ["s3", "gcs", "azure", "local"])
def test_opening_one_provider_imports_no_other_sdk(provider: str, tmp_path: Path) -> None:
    others = [SDKS[name] for name in SDKS if name != provider]
    script = f"""
import sys
from syncd.stores import open_store
open_store({provider!r}, {str(tmp_path)!r} if {provider!r} == "local" else "bucket",
           {SETTINGS.get(provider, {})!r})
print([name for name in {others!r} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("provider", list(SDKS))
def test_a_missing_sdk_needs_an_operator(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(f"syncd.stores.{provider}")]:
        monkeypatch.delitem(sys.modules, name)
    if provider == "gcs":
        monkeypatch.delattr("google.cloud.storage", raising=False)
    monkeypatch.setitem(sys.modules, SDKS[provider], None)
    with pytest.raises(NeedsOperator, match="is not installed") as caught:
        open_store(provider, "bucket", SETTINGS[provider])
    assert caught.value.hint == f"pip install 'syncd[{provider}]'"


@pytest.mark.parametrize("provider", list(SDKS))
def test_opening_makes_no_request(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    open_store(provider, "bucket", SETTINGS[provider]).close()
    if provider == "gcs":  # looking for the machine's own credentials would ask its server
        open_store(provider, "bucket", {}).close()


def test_an_unknown_provider_needs_an_operator() -> None:
    with pytest.raises(NeedsOperator):
        open_store("floppy", "bucket", {})


@pytest.mark.parametrize(
    ("provider", "env", "words"),
    [
        ("s3", {"AWS_ACCESS_KEY_ID": "only-this"}, "AWS_SECRET_ACCESS_KEY"),
        ("s3", {**SETTINGS["s3"], "AWS_ENDPOINT_URL": "not a url"}, "AWS_ENDPOINT_URL"),
        ("s3", {"AWS_PROFILE": "nobody-has-this"}, "AWS"),
        ("azure", {}, "AZURE_STORAGE_CONNECTION_STRING"),
        (
            "azure",
            {"AZURE_STORAGE_CONNECTION_STRING": "AccountKey=geheim"},
            "AZURE_STORAGE_CONNECTION_STRING",
        ),
    ],
)
def test_unusable_settings_need_an_operator(provider: str, env: dict[str, str], words: str) -> None:
    with pytest.raises(NeedsOperator) as caught:
        open_store(provider, "bucket", env)
    assert words in caught.value.explain()
    assert "geheim" not in caught.value.explain()


@pytest.mark.parametrize(
    "content", [None, "no json geheim", '{"type": "service_account", "private_key": "geheim"}']
)
def test_unusable_google_credentials_need_an_operator(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "key.json"
    if content:
        path.write_text(content)
    store = open_store("gcs", "bucket", {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})
    with pytest.raises(NeedsOperator) as caught:
        store.put("a", b"x")
    assert "GOOGLE_APPLICATION_CREDENTIALS" in caught.value.explain()
    assert "geheim" not in caught.value.explain()


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (400, {"error": "invalid_grant"}, NeedsOperator),
        (503, {"error": "internal_failure"}, Transient),
        (0, {}, Transient),
    ],
)
def test_a_login_that_fails_is_told_from_a_refused_one(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    answer: dict[str, str],
    expected: type[Exception],
) -> None:
    """The login server of this key file is on this machine: nothing goes to Google."""
    server = _answering(status, json.dumps(answer)) if status else None
    port = server.server_address[1] if server else free_port()
    path = tmp_path / "key.json"
    path.write_text(json.dumps(service_account(f"http://127.0.0.1:{port}/token")))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # google-auth's own retries
    store = open_store("gcs", "bucket", {"GOOGLE_APPLICATION_CREDENTIALS": str(path)})
    try:
        with pytest.raises(expected) as caught:
            store.put("a", b"x")
        assert getattr(caught.value, "hint", "")
    finally:
        if server:
            server.shutdown()
            server.server_close()


def _answering(status: int, body: str) -> Any:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_a_rotated_credentials_file_is_read_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "credentials"
    env = {"AWS_SHARED_CREDENTIALS_FILE": str(path), "AWS_CONFIG_FILE": str(tmp_path / "none")}
    seen = []
    for key in ("first", "second"):
        path.write_text(f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\n")
        store: Any = open_store("s3", "bucket", env)
        seen.append(store._open()[0]._request_signer._credentials.access_key)
        store.close()
    assert seen == ["first", "second"]


@pytest.mark.parametrize(
    ("bucket", "host"),
    [
        ("bkt", "bkt.s3.af-south-1.amazonaws.com"),
        ("with.dots", "s3.af-south-1.amazonaws.com"),  # no certificate holds for another name
    ],
)
def test_amazon_is_asked_in_the_buckets_own_region(bucket: str, host: str) -> None:
    """Its global endpoint knows nothing of the regions that came after 2019."""
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "af-south-1"}
    store: Any = open_store("s3", bucket, keys)
    assert store._road()._exchange._pool._address.host == host
    store.close()
