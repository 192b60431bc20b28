"""What is Google's own: interrupted sessions, one write per second, answers that are lost.

gcp-storage-emulator answers the status query of a session as Google does, fake-gcs-server would
commit the truncated object; conditions are proven on the strict layer, which has sessions too.
Two roads lead to one bucket, the lean one and the SDK's: what they say must be the same.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import requests
from google.auth.exceptions import RefreshError, TransportError

from syncd.errors import Corrupt, NeedsOperator, NotFound, Permanent, Refused, StoreError, Transient
from syncd.stores import gcslean, gcsobjects, open_store
from syncd.stores.base import Body, IfAbsent, ObjectStore
from syncd.stores.gcs import GCSStore
from syncd.stores.gcserrors import translate
from syncd.stores.gcsobjects import Told, seconds
from tests.servers.azure import connection_string
from tests.servers.fixtures import Bucket, gcs_bucket
from tests.servers.gcs import GcpEmulator, service_account
from tests.servers.strict_gcs import StrictGcs
from tests.servers.wires import Wire
from tests.stores.roads import everything

MIB = 1024 * 1024
NOTHING: frozenset[str] = frozenset()


@pytest.fixture
def emulated(gcp_emulator: GcpEmulator) -> Iterator[Bucket]:
    yield from gcs_bucket("gcp-emulator", gcp_emulator.url, gcp_emulator.port, NOTHING)


@pytest.fixture
def strict(strict_gcs: StrictGcs) -> Iterator[Bucket]:
    yield from gcs_bucket("gcs-strict", strict_gcs.url, strict_gcs.port, NOTHING)


def test_an_interrupted_session_goes_on_where_it_was(emulated: Bucket) -> None:
    store = emulated.open()
    parts = [os.urandom(MIB), os.urandom(MIB), os.urandom(100)]
    upload = store.start_upload("a", 2 * MIB + 100)
    upload.send(1, parts[0])
    upload._uncertain = True  # type: ignore[attr-defined]  # as after a lost answer
    upload.send(2, parts[1])
    with pytest.raises(NotFound):
        store.head("a")
    upload.send(3, parts[2])
    upload._uncertain = True  # type: ignore[attr-defined]
    upload.finish()
    assert b"".join(store.read("a")) == b"".join(parts)


@pytest.mark.parametrize("reach", [600_000, 1_400_000, 2 * MIB + 200_000])
def test_a_cut_session_sends_only_what_is_missing(strict: Bucket, reach: int) -> None:
    wire = Wire(strict.port)
    store = strict.through(wire)
    parts = [os.urandom(MIB), os.urandom(MIB), os.urandom(MIB)]
    upload = store.start_upload("a", 3 * MIB)
    wire.cut_after = reach
    steps: list[Callable[[], object]] = [upload.finish]
    steps[:0] = [partial(upload.send, number, data) for number, data in enumerate(parts, start=1)]
    for step in steps:
        try:
            step()
        except Transient:
            wire.cut_after = None
            step()
    assert wire.cuts == 1
    assert b"".join(strict.open().read("a")) == b"".join(parts)
    wire.close()


def test_the_lost_answer_to_the_last_chunk_is_no_failure(
    strict: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = strict.open()
    upload = store.start_upload("a", 5)
    upload.send(1, b"hello")
    monkeypatch.setattr(upload, "_note", _lost)
    with pytest.raises(Transient):
        upload.finish()
    monkeypatch.undo()
    upload._uncertain = True  # type: ignore[attr-defined]
    assert upload.finish().version == store.head("a").version


def _lost(_answer: object) -> None:
    raise Transient("the answer was lost")


def test_parts_out_of_order_are_refused(strict: Bucket) -> None:
    upload = strict.open().start_upload("a", 2 * MIB)
    with pytest.raises(Permanent):
        upload.send(2, bytes(MIB))
    upload.abort()


def test_an_aborted_session_is_gone(strict: Bucket, strict_gcs: StrictGcs) -> None:
    upload = strict.open().start_upload("a", 2 * MIB)
    upload.send(1, bytes(MIB))
    upload.abort()
    assert strict_gcs.sessions == {}
    upload.send(2, bytes(MIB))
    with pytest.raises(NotFound):
        upload.finish()


def test_an_empty_upload_makes_an_empty_object(strict: Bucket) -> None:
    store = strict.open()
    assert store.start_upload("a", 0).finish().size == 0
    assert store.head("a").size == 0


def test_two_writes_within_a_second_to_one_name_are_transient(
    strict: Bucket, strict_gcs: StrictGcs
) -> None:
    strict_gcs.one_write_per_second = True
    store = strict.open()
    store.put("log", b"1")
    store.put("other", b"1")
    with pytest.raises(Transient):
        store.put("log", b"2")


def test_another_content_of_a_part_that_is_there_is_corrupt(strict: Bucket) -> None:
    """A session keeps what it has: a part that comes again with other bytes is noticed."""
    store = strict.open()
    upload = store.start_upload("a", MIB + 1)
    upload.send(1, b"a" * MIB)
    upload.send(1, b"b" * MIB)
    upload.send(2, b"c")
    with pytest.raises(Corrupt):
        upload.finish()


def in_parts(store: ObjectStore, name: str, odd: str) -> list[Any]:
    del odd
    upload = store.start_upload(f"{name}/parts", 256 * 1024 + 3)
    upload.send(1, memoryview(bytes(256 * 1024)))
    upload.send(2, b"end")
    store.start_upload(f"{name}/aborted", MIB).abort()
    return [upload.finish(IfAbsent()).size, b"".join(store.read(f"{name}/parts"))[-4:]]


def test_both_roads_give_the_same_answers(strict: Bucket) -> None:
    lean, sdk = (cast("GCSStore", strict.open()) for _ in range(2))
    sdk._only_sdk()
    assert everything(lean, "a", in_parts) == everything(sdk, "b", in_parts)
    assert lean._lean is not None, "nothing was strange on the way"
    assert lean._sdk is None
    for store in (lean, sdk):
        store.close()


@pytest.mark.parametrize("road", ["lean", "sdk"])
def test_an_identity_that_is_held_to_a_prefix_does_for_all(
    strict: Bucket, strict_gcs: StrictGcs, road: str
) -> None:
    strict_gcs.prefix = "a/"
    for first in ("head", "upload", "everything"):
        store = cast("GCSStore", strict.open())
        if road == "sdk":
            store._only_sdk()
        if first == "head":
            with pytest.raises(NotFound):
                store.head("a/none")
            with pytest.raises(Refused):
                store.head("b/none")
        elif first == "upload":
            assert store.start_upload("a/large", 0).finish().size == 0
        else:
            everything(store, "a", in_parts)
        store.close()


def test_who_may_not_list_has_met_a_bucket_all_the_same(
    strict: Bucket, strict_gcs: StrictGcs
) -> None:
    strict_gcs.lists = False
    store = strict.open()
    with pytest.raises(NotFound):
        store.head("a")
    with pytest.raises(Refused):
        list(store.list(""))
    store.close()


@pytest.fixture
def by_token(
    strict: Bucket, strict_gcs: StrictGcs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> GCSStore:
    """The bucket as by a key file: the server asks for a token that the login server gives."""
    monkeypatch.setattr(gcsobjects, "_SERVER", strict_gcs.url)
    strict_gcs.tokens = set()
    path = tmp_path / "key.json"
    path.write_text(json.dumps(service_account(f"{strict_gcs.url}/token")))
    env = {"GOOGLE_APPLICATION_CREDENTIALS": str(path)}
    return cast("GCSStore", open_store("gcs", strict.bucket, env))


def test_one_token_does_for_all_requests(by_token: GCSStore, strict_gcs: StrictGcs) -> None:
    everything(by_token, "a", in_parts)
    assert by_token._sdk is None
    assert strict_gcs.given_out == 1
    by_token.close()


def test_a_token_that_is_not_taken_any_more_is_renewed(
    by_token: GCSStore, strict_gcs: StrictGcs
) -> None:
    store = by_token
    store.put("a", b"content")
    upload = store.start_upload("parts", MIB + 3)
    asks: list[Callable[[], object]] = [
        lambda: store.put("a", b"content"),
        lambda: store.head("a"),
        lambda: _all_good(store.put_each([Body("c", b"content")])),
        lambda: b"".join(store.read("a")),
        lambda: _all_good(store.read_each([("c", 7)])),
        lambda: list(store.list("")),
        lambda: upload.send(1, bytes(MIB)),
        lambda: store.copy("a", "b"),
        lambda: store.delete(["b"]),
    ]
    for number, ask in enumerate(asks, start=2):
        strict_gcs.tokens = set()
        ask()
        assert strict_gcs.given_out == number
    store.close()


def _all_good(answers: Iterator[object]) -> None:
    assert not [answer for answer in answers if isinstance(answer, Exception)]


def test_credentials_that_are_refused_again_need_an_operator(
    by_token: GCSStore, strict_gcs: StrictGcs
) -> None:
    strict_gcs.takes_none = True
    for answer in (*by_token.put_each([Body("a", b"x")]), *by_token.read_each([("a", 1)])):
        assert isinstance(answer, NeedsOperator)
        assert "GOOGLE_APPLICATION_CREDENTIALS" in answer.hint
    by_token.close()


def test_a_login_server_that_is_down_is_waited_for(
    by_token: GCSStore, strict_gcs: StrictGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _seconds: None)  # google-auth's own retries
    by_token.put("a", b"x")
    strict_gcs.tokens, strict_gcs.gives_none = set(), True
    with pytest.raises(Transient):
        by_token.head("a")
    assert [type(answer) for answer in by_token.put_each([Body("b", b"x")])] == [Transient]
    by_token.close()


def _side_by_side(action: Callable[[], object], count: int) -> list[object]:
    together = threading.Barrier(count)

    def one(_: int) -> object:
        together.wait()
        try:
            return action()
        except StoreError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def test_one_thread_renews_a_token_for_all(by_token: GCSStore, strict_gcs: StrictGcs) -> None:
    info = by_token.put("a", b"x")
    strict_gcs.tokens = set()
    assert _side_by_side(lambda: by_token.head("a"), 8) == [info] * 8
    assert strict_gcs.given_out == 2
    by_token.close()


class _Noting:
    """A lock that tells when so many wait for it."""

    def __init__(self, lock: Any, count: int, all_wait: threading.Event) -> None:
        self.lock, self.count, self.all_wait = lock, count, all_wait

    def __enter__(self) -> None:
        self.count -= 1
        if self.count == 0:
            self.all_wait.set()
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


def test_those_who_wait_for_a_login_share_its_failure(
    by_token: GCSStore, strict_gcs: StrictGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict_gcs.gives_none = True
    reached, go_on = threading.Event(), threading.Event()
    send = requests.Session.send

    def slow(*args: Any, **kwargs: Any) -> Any:
        reached.set()
        assert go_on.wait(20)
        return send(*args, **kwargs)

    monkeypatch.setattr(requests.Session, "send", slow)
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    login = cast("Any", by_token._lean)._login
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(by_token.head, "a")
        assert reached.wait(20)
        login._lock = _Noting(login._lock, 3, go_on)
        others = [pool.submit(by_token.head, "a") for _ in range(3)]
        for job in (first, *others):
            assert isinstance(job.exception(), Transient)
    asked = strict_gcs.given_out
    with pytest.raises(Transient):
        by_token.head("a")
    assert strict_gcs.given_out == 2 * asked, "who comes later asks again"
    by_token.close()


@pytest.mark.parametrize("value", ["p\r\nevil: 1", "p\n\n"])
def test_no_setting_adds_a_header(by_token: GCSStore, value: str) -> None:
    cast("Any", by_token._lean)._login._open()[0]._quota_project_id = value
    with pytest.raises(NeedsOperator) as caught:
        by_token.put("a", b"x")
    assert "evil" not in caught.value.explain()
    by_token.close()


def test_credentials_of_another_universe_are_told(by_token: GCSStore, tmp_path: Path) -> None:
    path = tmp_path / "key.json"
    key = json.loads(path.read_text())
    path.write_text(json.dumps({**key, "universe_domain": "cloud.example"}))
    with pytest.raises(NeedsOperator) as caught:
        by_token.head("a")
    assert "GOOGLE_CLOUD_UNIVERSE_DOMAIN=cloud.example" in caught.value.hint
    by_token.close()


@pytest.mark.parametrize("provider", ["gcs", "azure"])
@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_authorities_that_are_not_there_need_an_operator(
    provider: str, variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "none.pem"))
    env = {"AZURE_STORAGE_CONNECTION_STRING": connection_string("https://127.0.0.1:1")}
    with pytest.raises(NeedsOperator) as caught:
        open_store(provider, "bucket", env)
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint


def test_a_login_that_was_not_answered_is_told_from_one_that_was() -> None:
    refused, silent = cast("Any", RefreshError), cast("Any", TransportError)
    for error in (silent("down"), refused(silent("down"))):
        assert isinstance(translate(error, "x"), Transient)
    assert isinstance(translate(refused("no", ""), "x"), NeedsOperator)


def test_a_last_chunk_that_makes_no_object_is_asked_about(
    strict: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = cast("GCSStore", strict.open())
    upload = store.start_upload("a", 5)
    upload.send(1, b"hello")
    send = upload._request

    def goes_on(headers: dict[str, str], body: bytes = b"") -> Told:
        send(headers, body)
        return Told(308, {"range": "bytes=0-4"}, b"")

    monkeypatch.setattr(upload, "_request", goes_on)
    with pytest.raises(Transient):
        upload.finish()
    monkeypatch.undo()
    assert upload.finish() == store.head("a")
    store.close()


def test_more_than_was_asked_for_is_no_answer(strict: Bucket) -> None:
    store = cast("GCSStore", strict.open())
    store.put("a", b"content")
    lean = cast("Any", store._lean)
    lean._get = lambda key, *_: type(lean)._get(lean, key, 0, None, None)
    assert list(store.read_each([("a", 3)])) == [b"con"], "by the SDK, which looks"
    store.close()


def test_a_session_at_another_address_is_the_sdks(strict: Bucket) -> None:
    """A token must go to no other server than the one that it was made for."""
    lean = cast("GCSStore", strict.open())
    upload = lean.start_upload("a", MIB + 1)
    upload._url = upload._url.replace("127.0.0.1", "localhost")
    upload.send(1, bytes(MIB))
    assert lean._lean is None
    upload.send(2, b"x")
    assert upload.finish() == lean.head("a")
    lean.close()


@pytest.mark.parametrize(
    "env",
    [
        {"GOOGLE_API_USE_CLIENT_CERTIFICATE": "true"},
        {"GOOGLE_CLOUD_UNIVERSE_DOMAIN": "cloud.example"},
        {"STORAGE_EMULATOR_HOST": "http://user@127.0.0.1:1"},
        {"STORAGE_EMULATOR_HOST": "127.0.0.1:none"},
    ],
)
def test_what_only_the_sdk_knows_is_left_to_it(env: dict[str, str]) -> None:
    assert gcslean.told("bucket", env) is None


def test_a_proxy_is_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert gcslean.told("bucket", {}) is None


@pytest.mark.parametrize("fraction", ["", ".5", ".123456789"])
def test_a_date_has_any_number_of_digits(fraction: str) -> None:
    assert seconds(f"1970-01-01T00:01:00{fraction}Z") == pytest.approx(60 + float(fraction or 0))
