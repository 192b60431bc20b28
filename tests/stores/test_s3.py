"""What is S3's own: older servers, large copies, refused batches, skewed clocks."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from syncd.errors import (
    Conflict,
    Corrupt,
    NeedsOperator,
    NotFound,
    Permanent,
    Refused,
    StoreError,
    Transient,
)
from syncd.stores import open_store, s3copy, s3road, s3sdk
from syncd.stores.base import Body, IfAbsent, ObjectInfo
from syncd.stores.s3 import S3Store
from syncd.stores.s3errors import translate
from tests.servers.fixtures import Bucket, s3_bucket
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire

MIB = 1024 * 1024


@pytest.fixture
def seaweed_bucket(seaweedfs: SeaweedFS) -> Iterator[Bucket]:
    yield from s3_bucket("s3-seaweedfs", seaweedfs, frozenset())


def test_a_large_copy_goes_by_ranges(
    seaweed_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3copy, "_COPY_WHOLE", 8 * MIB)
    monkeypatch.setattr(s3copy, "_COPY_RANGE", 5 * MIB)
    store = seaweed_bucket.open()
    data = os.urandom(12 * MIB + 3)
    store.put("a", data)
    info = store.copy("a", "b")
    assert info.size == len(data)
    assert info.version.endswith("-3")
    assert b"".join(store.read("b")) == data
    assert list(store.pending_uploads("")) == []


@pytest.mark.parametrize("only_sdk", [False, True])
def test_names_that_no_document_can_hold_are_deleted_one_by_one(
    seaweed_bucket: Bucket, only_sdk: bool
) -> None:
    store = cast("S3Store", seaweed_bucket.open())
    if only_sdk:
        store._only_sdk()
    names = ["run/a", "run/b\x1b[0m", "run/c\td", "run/e\x08"]
    for name in names:
        store.put(name, b"x")
    assert sorted(info.key for info in store.list("run/")) == sorted(names)
    store.delete(names[:2])
    store.delete(names[3:])
    assert [info.key for info in store.list("run/")] == names[2:3]
    store.delete(names)
    assert list(store.list("run/")) == []
    assert store._batch_deletes
    store.close()


def test_finishing_again_after_a_lost_answer_succeeds(seaweed_bucket: Bucket) -> None:
    store = seaweed_bucket.open()
    upload = store.start_upload("a", 5 * MIB + 1)
    upload.send(1, bytes(5 * MIB))
    upload.send(2, b"x")
    info = upload.finish()
    assert upload.finish() == info
    store.delete(["a"])
    with pytest.raises(NotFound):
        upload.finish()


@pytest.mark.parametrize("kind", ["seaweedfs", "seaweedfs_tls", "moto"])
def test_both_roads_give_the_same_answers(kind: str, request: pytest.FixtureRequest) -> None:
    for bucket in s3_bucket(kind, request.getfixturevalue(kind), frozenset()):
        answers = []
        lean, sdk = (cast("S3Store", bucket.open()) for _ in range(2))
        sdk._only_sdk()
        for store, name in ((lean, "x"), (sdk, "y")):
            found: list[Any] = [store.put(f"{name}/a b+ü", b"content", IfAbsent()).version]
            for numbers in ((1, 2), (1, 3)):  # side by side: a key once in each
                bodies = [Body(f"{name}/{n}", b"%d" % n, IfAbsent()) for n in numbers]
                found += [getattr(i, "version", type(i)) for i in store.put_each(bodies)]
            found += [b"".join(store.read(f"{name}/a b+ü", start, 3)) for start in (0, 5, 7)]
            found += [
                type(item) if isinstance(item, StoreError) else bytes(item)
                for item in store.read_each([(f"{name}/2", 9), (f"{name}/no", 9)])
            ]
            upload = store.start_upload(f"{name}/parts", 5 * MIB + 1)
            upload.send(1, bytes(5 * MIB))
            upload.send(2, b"x")
            found += [upload.finish().version, store.copy(f"{name}/2", f"{name}/copy").size]
            found += sorted((i.key[2:], i.size, i.version) for i in store.list(f"{name}/"))
            store.delete([f"{name}/1", f"{name}/2"])
            found += sorted(i.key[2:] for i in store.list(f"{name}/"))
            answers.append(found)
        assert lean._lean is not None, "nothing was strange on the way"
        assert answers[0] == answers[1]
        lean.close()
        sdk.close()


def test_refusal_does_not_cost_the_connection(seaweedfs: SeaweedFS) -> None:
    """It goes back when the answer was read, and whoever has it then must not lose it again."""
    for bucket in s3_bucket("seaweedfs", seaweedfs, frozenset()):
        wire = Wire(bucket.port)
        store = bucket.through(wire)
        store.put("a", b"one")
        for _ in range(20):
            with pytest.raises(NotFound):
                list(store.read("no"))
            with pytest.raises(Conflict):
                store.put("a", b"two", IfAbsent())
        gone = list(store.read_each([("no", 1)] * 20))
        assert {type(answer) for answer in gone} == {NotFound}
        assert [*store.read_each([("a", 3)] * 20)] == [b"one"] * 20
        assert wire.connections <= 2 + 20, "those of the refusals serve again"
        store.close()
        wire.close()


def test_what_the_lean_road_does_not_know_goes_by_the_sdk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    env["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    assert s3road.told("bucket", env)
    for other in ({"AWS_PROFILE": "me"}, {"AWS_ENDPOINT_URL": ""}, {"AWS_SECRET_ACCESS_KEY": ""}):
        assert s3road.told("bucket", {**env, **other}) is None
    assert s3road.told("arn:aws:s3:eu-west-1:1:accesspoint/a", env) is None
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:8")
    monkeypatch.setenv("NO_PROXY", "elsewhere")
    assert s3road.told("bucket", env) is None
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert s3road.told("bucket", env)


class OldServer(ThreadingHTTPServer):
    """Just enough of an S3 from before checksums: refuses them as it is told to."""

    daemon_threads = True

    def __init__(self, refusal: tuple[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), OldHandler)
        self.refusal = refusal
        self.objects: dict[str, bytes] = {}
        self.puts: list[dict[str, str]] = []
        self.damage = b""
        self.etag = ""
        threading.Thread(target=self.serve_forever, daemon=True).start()


class OldHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: OldServer

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        pass

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.puts.append(headers)
        if any(name.startswith("x-amz-checksum") for name in headers):
            status, code = self.server.refusal
            self.reply(status, f"<Error><Code>{code}</Code><Message>checksum</Message></Error>")
            return
        md5 = base64.b64encode(hashlib.md5(body).digest()).decode()
        if headers.get("content-md5") != md5:
            self.reply(400, "<Error><Code>MissingContentMD5</Code></Error>")
            return
        body += self.server.damage
        self.server.objects[self.path] = body
        etag = self.server.etag or hashlib.md5(body).hexdigest()
        self.reply(200, "", {"ETag": f'"{etag}"'})

    def do_GET(self) -> None:
        body = self.server.objects[self.path]
        self.reply(200, body.decode(), {"ETag": '"x"'})

    def do_DELETE(self) -> None:
        found = self.server.objects.pop(self.path, None)
        self.reply(204 if found is not None else 404, "")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.reply(501, "<Error><Code>NotImplemented</Code></Error>")

    def reply(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            self.wfile.write(body.encode())


def open_old(server: OldServer) -> Any:
    port = server.server_address[1]
    env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    return open_store("s3", "bucket", {**env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"})


@pytest.mark.parametrize(
    "refusal",
    [(411, "MissingContentLength"), (501, "NotImplemented"), (400, "InvalidArgument")],
)
def test_a_store_that_refuses_checksums_gets_content_md5(refusal: tuple[int, str]) -> None:
    server = OldServer(refusal)
    try:
        store = open_old(server)
        store.put("a", b"one")
        store.put("b", b"two")
        assert server.objects == {"/bucket/a": b"one", "/bucket/b": b"two"}
        assert len(server.puts) == 3, "the refusal is met once and remembered"
        store.delete(["a", "b", "c"])
        assert server.objects == {}
        store.close()
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("only_sdk", [False, True], ids=["lean", "sdk"])
def test_threads_that_meet_the_refusal_at_once_all_get_through(
    only_sdk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = s3sdk.open_sdk

    def open_late(environ: Mapping[str, str], checksums: str) -> tuple[Any, Any]:
        made = real(environ, checksums)
        if checksums == "when_supported" and next(opened):
            threading.Event().wait(0.1)  # ready after the first has been refused
        return made

    monkeypatch.setattr(s3sdk, "open_sdk", open_late)
    server = OldServer((411, "MissingContentLength"))
    try:
        for turn in range(3):
            opened = itertools.count()
            one, many = (cast("S3Store", open_old(server)) for _ in range(2))
            for store in (one, many) if only_sdk else ():
                store._only_sdk()
            with ThreadPoolExecutor(8) as pool:
                jobs = [pool.submit(one.put, f"{turn}/{n}", b"x") for n in range(16)]
            assert {type(job.result()) for job in jobs} == {ObjectInfo}
            before = len(server.puts)
            outcomes = list(many.put_each(Body(f"{turn}/e{n}", b"x") for n in range(16)))
            assert {type(outcome) for outcome in outcomes} == {ObjectInfo}
            assert len(server.puts) - before == 17, "the first shows it to all others"
            one.close()
            many.close()
        assert len(server.objects) == 3 * 32
    finally:
        server.shutdown()
        server.server_close()


def test_a_damaged_object_is_corrupt_and_a_strange_etag_is_not() -> None:
    server = OldServer((501, "NotImplemented"))
    try:
        server.damage = b"!"
        with pytest.raises(Corrupt):
            open_old(server).put("a", b"one")
        server.damage, server.etag = b"", "0" * 32
        open_old(server).put("a", b"one")
    finally:
        server.shutdown()
        server.server_close()


def answered(code: str, status: int, **headers: str) -> ClientError:
    where = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    return ClientError(
        {"Error": {"Code": code, "Message": "geheim"}, "ResponseMetadata": where},
        "PutObject",
    )


@pytest.mark.parametrize(
    ("code", "status", "expected", "hint"),
    [
        ("SlowDown", 503, Transient, "busy"),
        ("InternalError", 500, Transient, ""),
        ("TooManyRequests", 429, Transient, ""),
        ("RequestTimeout", 400, Transient, ""),
        ("502", 502, Transient, ""),
        ("ConditionalRequestConflict", 409, Transient, ""),
        ("OperationAborted", 409, Transient, ""),
        ("InvalidAccessKeyId", 403, NeedsOperator, "AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, NeedsOperator, "AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", 400, NeedsOperator, "new session credentials"),
        ("AccessDenied", 403, Refused, "s3:ListBucket"),
        ("SomethingNew", 403, Refused, "s3:ListBucket"),
        ("NoSuchBucket", 404, NeedsOperator, "CLOUD_BUCKET"),
        ("PermanentRedirect", 301, NeedsOperator, "AWS_REGION"),
        ("QuotaExceeded", 403, NeedsOperator, "SYNCD_KEEP_LAST"),
        ("PreconditionFailed", 412, Conflict, ""),
        ("304", 304, Conflict, ""),
        ("NoSuchKey", 404, NotFound, ""),
        ("KeyTooLongError", 400, Permanent, "shorten"),
        ("EntityTooLarge", 400, Permanent, "size"),
        ("NotImplemented", 501, Permanent, ""),
        ("BadDigest", 400, Corrupt, ""),
    ],
)
def test_every_code_has_its_class_and_a_remedy(
    code: str, status: int, expected: type[StoreError], hint: str
) -> None:
    error = translate(answered(code, status), "putting a")
    assert type(error) is expected
    assert hint in error.hint
    assert "geheim" not in error.explain()


@pytest.mark.parametrize(
    ("error", "response"),
    [
        ({"Code": "PermanentRedirect"}, {"x-amz-bucket-region": "eu-central-1"}),
        ({"Code": "AuthorizationHeaderMalformed", "Region": "eu-central-1"}, {}),
    ],
)
def test_the_region_of_the_bucket_is_said_where_the_store_says_it(
    error: dict[str, str], response: dict[str, str]
) -> None:
    where = {"HTTPStatusCode": 400, "HTTPHeaders": response}
    answer = ClientError({"Error": error, "ResponseMetadata": where}, "PutObject")
    assert translate(answer, "putting a").hint.endswith("set AWS_REGION=eu-central-1")


def test_retry_after_is_honoured_as_seconds_and_as_a_date() -> None:
    error = translate(answered("SlowDown", 503, **{"retry-after": "17"}), "putting")
    assert isinstance(error, Transient)
    assert error.retry_after == 17.0
    date = email.utils.formatdate(time.time() + 100, usegmt=True)
    error = translate(answered("SlowDown", 503, **{"Retry-After": date}), "putting")
    assert isinstance(error, Transient)
    assert 95 < (error.retry_after or 0) < 105


def test_a_wrong_clock_is_named_with_its_error() -> None:
    date = email.utils.formatdate(time.time() + 3600, usegmt=True)
    error = translate(answered("RequestTimeTooSkewed", 403, date=date), "putting a")
    assert isinstance(error, NeedsOperator)
    assert "60 minutes behind" in error.message
    assert "NTP" in error.hint
