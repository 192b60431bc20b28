"""What is Azure's own: two roads to one container, signatures, tokens, proxies."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, cast
from unittest import mock
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from azure.core.pipeline import PipelineContext, PipelineRequest
from azure.core.rest import HttpRequest
from azure.storage.blob import (
    BlobSasPermissions,
    ContainerSasPermissions,
    generate_blob_sas,
    generate_container_sas,
)
from azure.storage.blob._shared.authentication import SharedKeyCredentialPolicy

from syncd.errors import Conflict, Permanent, Transient
from syncd.stores import azurelean, open_store
from syncd.stores.azure import AzureStore
from syncd.stores.azuresign import Account, SharedKey, parse
from syncd.stores.base import Body, IfAbsent, IfVersion, ObjectInfo, ObjectStore, Upload
from syncd.stores.http1 import Strange
from tests.servers.azure import ACCOUNT, SECRET, Azurite, connection_string
from tests.servers.fixtures import Bucket, azure_bucket
from tests.stores.roads import everything

HOST = "127.0.0.1:10000"


@pytest.fixture
def container(azurite: Azurite) -> Iterator[Bucket]:
    yield from azure_bucket("azure", azurite, frozenset())


def by_token(bucket: Bucket, server: Azurite) -> str:
    """A connection string that holds a shared access signature in the place of the key."""
    token = generate_container_sas(
        ACCOUNT,
        bucket.bucket,
        account_key=SECRET,
        permission=ContainerSasPermissions.from_string("racwdl"),
        expiry=datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=1),
    )
    return f"BlobEndpoint={server.url}/{ACCOUNT};SharedAccessSignature={token}"


def in_parts(store: ObjectStore, name: str, odd: str) -> list[Any]:
    upload = store.start_upload(f"{name}/parts", 8)
    upload.send(1, memoryview(b"x1234"))
    upload.copy(2, store.head(odd), 1, 3)
    return [upload.finish(IfAbsent()).size, b"".join(store.read(f"{name}/parts"))]


def test_all_roads_give_the_same_answers(azurite: Azurite, container: Bucket) -> None:
    variable = "AZURE_STORAGE_CONNECTION_STRING"
    token = {variable: by_token(container, azurite)}
    stores = [cast("AzureStore", container.open(**env)) for env in ({}, {}, token, token)]
    for sdk in stores[1::2]:
        sdk._only_sdk()
    answers = [everything(s, name, in_parts) for s, name in zip(stores, "abcd", strict=True)]
    for store, answer in zip(stores, answers, strict=True):
        assert answer == answers[0]
        store.close()
    for lean in stores[::2]:
        assert lean._lean is not None, "nothing was strange on the way"
        assert lean._sdk is None


@pytest.mark.parametrize("replaces", [False, True])
@pytest.mark.parametrize("taken_by", ["us", "another upload", "another put", "nobody"])
def test_a_blob_whose_answer_was_lost_is_ours_and_nobody_elses(
    container: Bucket, monkeypatch: pytest.MonkeyPatch, replaces: bool, taken_by: str
) -> None:
    made = azurelean.Lean.put_block_list
    lost: list[object] = []

    def lose(*args: Any) -> Any:
        if lost:
            return made(*args)
        lost.append(args)
        if taken_by == "us":
            made(*args)
        elif taken_by == "another upload":
            send_in_parts(store, "a").finish()
        elif taken_by == "another put":
            store.put("a", b"x1234567")
        elif replaces:
            store.delete(["a"])
        raise TimeoutError("the answer is lost")

    store = cast("AzureStore", container.open())
    condition = IfVersion(store.put("a", b"what was there").version) if replaces else IfAbsent()
    upload = send_in_parts(store, "a")
    monkeypatch.setattr(azurelean.Lean, "put_block_list", lose)
    with pytest.raises(Transient):
        upload.finish(condition)
    if taken_by == "us" or (taken_by == "nobody" and not replaces):
        assert upload.finish(condition) == store.head("a")
        assert b"".join(store.read("a")) == b"x1234567"
        blob = container.raw.get_blob_client(container.bucket, "a")
        assert len(blob.get_block_list()[0]) == 2
    else:
        with pytest.raises(Conflict):
            upload.finish(condition)
    store.close()


def send_in_parts(store: ObjectStore, key: str) -> Upload:
    upload = store.start_upload(key, 8)
    upload.send(1, memoryview(b"x1234"))
    upload.send(2, memoryview(b"567"))
    return upload


def test_a_listing_has_all_its_pages(container: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is asked for pages of 50: to put the 5001 that it splits takes half a minute."""
    made, asked = azurelean.Lean._request, []

    def short(
        self: azurelean.Lean, method: str, path: str, query: Mapping[str, str], *rest: Any
    ) -> Any:
        if query.get("comp") == "list":
            asked.append(query.get("marker"))
            query = {**query, "maxresults": "50"}
        return made(self, method, path, query, *rest)

    store = cast("AzureStore", container.open())
    assert all(not isinstance(i, Exception) for i in store.put_each(_bodies(201)))
    monkeypatch.setattr(azurelean.Lean, "_request", short)
    assert [info.key for info in store.list("many/")] == [body.key for body in _bodies(201)]
    assert len(asked) == 5
    assert store._lean is not None
    store.close()


def _bodies(count: int) -> Iterator[Body]:
    return (Body(f"many/{n:05d}", b"x") for n in range(count))


@pytest.mark.parametrize(
    ("method", "key", "query", "headers"),
    [
        ("GET", "", {"restype": "container", "comp": "list", "prefix": "a b/ü+&=~"}, {}),
        (
            "PUT",
            "a b/ü+&=~'(x)*.pt",
            {},
            {"content-length": "4", "content-md5": "AA==", "x-ms-blob-type": "BlockBlob"},
        ),
        (
            "PUT",
            "a",
            {"comp": "block", "blockid": "YWJj+/=="},
            {
                "content-length": "0",
                "x-ms-copy-source": "http://h/a?b=c",
                "x-ms-source-range": "bytes=0-3",
            },
        ),
        (
            "PUT",
            "a",
            {},
            {
                "content-length": "0",
                "if-none-match": "*",
                "x-ms-copy-source": "http://h/a",
                "x-ms-source-if-match": '"0x1"',
            },
        ),
        ("GET", "a", {}, {"if-match": '"0x1"', "x-ms-range": "bytes=3-"}),
        ("DELETE", "a", {}, {"x-ms-delete-snapshots": "include"}),
    ],
)
def test_a_signature_is_the_one_that_the_sdk_makes(
    method: str, key: str, query: Mapping[str, str], headers: Mapping[str, str]
) -> None:
    account = parse(connection_string(f"http://{HOST}"))
    assert account
    path = quote(f"/{ACCOUNT}/bucket/{key}".rstrip("/"), safe="/~")
    target, signed = SharedKey(account, HOST).sign(method, path, query, headers)
    ours = signed.pop("authorization")
    request = HttpRequest(method, f"http://{HOST}{target}", headers=signed)
    asked = PipelineRequest(_legacy(request), PipelineContext(None))
    policy: Any = SharedKeyCredentialPolicy
    policy(ACCOUNT, SECRET).on_request(asked)
    assert asked.http_request.headers["Authorization"] == ours


def _legacy(request: HttpRequest) -> Any:
    """The form of a request that the policy of this SDK reads its query from."""
    from azure.core.pipeline.transport import HttpRequest as Legacy

    return Legacy(request.method, request.url, headers=dict(request.headers))


def test_a_token_is_the_one_that_the_sdk_makes() -> None:
    account = parse(connection_string(f"http://{HOST}"))
    assert account
    ours = SharedKey(account, HOST).readable("/p", ("bucket", "a b/ü.pt"))
    told = {name: value for name, (value,) in parse_qs(urlsplit(ours).query).items()}
    with mock.patch("azure.storage.blob._shared_access_signature.X_MS_VERSION", told["sv"]):
        token = generate_blob_sas(
            ACCOUNT,
            "bucket",
            "a b/ü.pt",
            account_key=SECRET,
            permission=BlobSasPermissions(read=True),
            expiry=told["se"],
        )
    assert told == {name: value for name, (value,) in parse_qs(token).items()}


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        (
            "AccountName=mine;AccountKey=a2V5",
            "https://mine.blob.core.windows.net",
        ),
        (
            "DefaultEndpointsProtocol=http;AccountName=mine;AccountKey=a2V5;"
            "EndpointSuffix=core.chinacloudapi.cn;",
            "http://mine.blob.core.chinacloudapi.cn",
        ),
        (
            "BLOBENDPOINT=https://mine.example/;SharedAccessSignature=?sv=1&sig=a%3D=",
            "https://mine.example",
        ),
    ],
)
def test_a_connection_string_is_read_as_the_sdk_reads_it(text: str, endpoint: str) -> None:
    account = parse(text)
    assert account
    assert account.endpoint == endpoint
    assert "a2V5" not in repr(account)
    store: Any = open_store("azure", "bucket", {"AZURE_STORAGE_CONNECTION_STRING": text})
    store._only_sdk()
    assert store._open()._container.url.startswith(endpoint)
    store.close()


@pytest.mark.parametrize(
    "text",
    [
        "UseDevelopmentStorage=true",
        "AccountName=mine;AccountKey=no base64",
        "AccountName=mine",
        "AccountName=mine;AccountKey=a2V5;SharedAccessSignature=sv=1",
        "BlobEndpoint=https://mine.example/?sv=1;AccountName=mine;AccountKey=a2V5",
        "AccountName=mine; AccountKey=a2V5",
        "rubbish",
        "",
    ],
)
def test_what_only_the_sdk_can_read_is_left_to_it(text: str) -> None:
    assert azurelean.told("bucket", text) is None


def test_a_proxy_is_the_sdks_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "")
    assert azurelean.told("bucket", connection_string("http://store.example")) is None


@pytest.mark.parametrize("asked", ["put", "put_each", "read_each", "head"])
def test_what_is_strange_is_asked_of_the_sdk(container: Bucket, asked: str) -> None:
    store = cast("AzureStore", container.open())
    store.put("a", b"content")

    def strange(*_: object, **__: object) -> Any:
        raise Strange("of another form")

    with (
        mock.patch.object(azurelean, "_stamp", strange),
        mock.patch.object(
            azurelean, "_judge", strange if asked in ("read_each", "head") else azurelean._judge
        ),
    ):
        if asked == "put":
            assert store.put("b", b"x").size == 1
        elif asked == "put_each":
            assert [i.size for i in store.put_each([Body("b", b"x"), Body("c", b"xx")])] == [1, 2]  # type: ignore[union-attr]
        elif asked == "read_each":
            assert list(store.read_each([("a", 3)])) == [b"con"]
        else:
            assert store.head("a").size == 7
    store.close()


@pytest.mark.parametrize("only_sdk", [False, True])
def test_name_that_no_object_can_have_spoils_none_of_the_others(
    container: Bucket, only_sdk: bool
) -> None:
    store = cast("AzureStore", container.open())
    if only_sdk:
        store._only_sdk()
    outcomes = list(store.put_each([Body("a", b"x"), Body("b" * 2000, b"x"), Body("c", b"x")]))
    assert [type(outcome) for outcome in outcomes] == [ObjectInfo, Permanent, ObjectInfo]
    wanted = [("a", 1), ("b" * 2000, 1), ("c", 1)]
    assert [type(i) for i in store.read_each(wanted)] == [bytes, Permanent, bytes]
    store.close()


def test_half_a_listing_is_begun_again(container: Bucket) -> None:
    store = cast("AzureStore", container.open())
    store.put("a", b"x")
    store.put("b", b"x")
    real = azurelean._listed

    def second(blob: Any) -> Any:
        if blob.findtext("Name") == "b":
            raise Strange("of another form")
        return real(blob)

    with mock.patch.object(azurelean, "_listed", second):
        with pytest.raises(Transient):
            list(store.list(""))
        assert [info.key for info in store.list("")] == ["a", "b"]
    store.close()


def test_an_account_shows_no_secret() -> None:
    assert "key" not in repr(Account("mine", "https://mine.example", b"key", "token"))
