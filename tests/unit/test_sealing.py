"""The encrypted form: every byte is proven, and nothing can be changed, moved, cut or put in."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syncd.errors import Corrupt, Locked, SettingsError
from syncd.keys import key_name, new_key, parse_key, read_key
from syncd.sealing import (
    BLOCK,
    PLAIN,
    Place,
    Sealer,
    content_size,
    record_size,
    sealed_size,
    sealed_with,
)

KEY = bytes(range(32))
SEALER = Sealer(KEY)
ROLE = "eigen2 file"
THREE = os.urandom(2 * PLAIN + 1000)
EDGES = [0, 1, PLAIN - 1, PLAIN, PLAIN + 1, 2 * PLAIN, 2 * PLAIN + 1]


def seal(data: bytes, role: str = ROLE) -> bytes:
    return bytes(SEALER.seal(data, role, SEALER.fresh(len(data))))


def opened(stored: bytes, role: str = ROLE, sealer: Sealer = SEALER) -> bytes:
    return b"".join(sealer.open([stored], role))


@pytest.mark.parametrize("size", EDGES)
def test_what_was_sealed_is_opened_at_every_edge_of_a_block(size: int) -> None:
    data = os.urandom(size)
    stored = seal(data)
    assert len(stored) == sealed_size(size)
    assert content_size(len(stored)) == size
    assert opened(stored) == data
    assert data[:64] not in stored or size < 8


@settings(max_examples=40, deadline=None)
@given(
    size=st.sampled_from(EDGES) | st.integers(0, 3 * PLAIN),
    cut=st.integers(1, 2 * BLOCK),
)
def test_bytes_come_back_however_they_are_cut_on_their_way(size: int, cut: int) -> None:
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    stored = seal(data)
    chunks = [stored[at : at + cut] for at in range(0, len(stored), cut)]
    assert b"".join(SEALER.open(chunks, ROLE)) == data


@given(size=st.integers(0, 10 * BLOCK))
def test_size_in_the_store_tells_the_size_of_the_content(size: int) -> None:
    assert content_size(sealed_size(size)) == size


@given(data=st.binary(max_size=2000))
def test_record_is_json_around_it_and_its_length_tells_that_of_the_record(data: bytes) -> None:
    stored = SEALER.seal_record(data, "key a")
    assert json.loads(stored)["format"] == 2
    assert record_size(len(stored)) == len(data)
    assert SEALER.open_record(stored, "key a") == data


@pytest.mark.parametrize("at", [0, 3, 4, 19, 20, 35, 36, 43, 44, 500, BLOCK - 16, BLOCK - 1])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_flipped_byte_of_any_kind_is_refused(at: int, block: int) -> None:
    stored = bytearray(seal(THREE))
    if block == 2:
        at = min(at, len(stored) - 2 * BLOCK - 1)
    stored[block * BLOCK + at] ^= 1
    with pytest.raises(Corrupt):
        opened(bytes(stored))


@pytest.mark.parametrize(
    "end", [0, 1, 43, 60, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 60, -1]
)
def test_cut_is_refused_at_every_edge_of_a_block(end: int) -> None:
    with pytest.raises(Corrupt):
        opened(seal(THREE)[:end])


def test_bytes_behind_the_end_are_refused() -> None:
    stored = seal(THREE)
    for more in (b"\0", stored[:BLOCK], stored[2 * BLOCK :]):
        with pytest.raises(Corrupt):
            opened(stored + more)


def test_blocks_cannot_change_places_or_come_twice() -> None:
    stored = seal(THREE)
    one, two, three = stored[:BLOCK], stored[BLOCK : 2 * BLOCK], stored[2 * BLOCK :]
    for order in ((two, one, three), (one, one, three), (one, three), (two, three), (one, two)):
        with pytest.raises(Corrupt):
            opened(b"".join(order))


def test_block_of_another_object_of_the_same_length_is_refused() -> None:
    stored, other = seal(THREE), seal(os.urandom(len(THREE)))
    for number in range(3):
        mixed = bytearray(stored)
        mixed[number * BLOCK : (number + 1) * BLOCK] = other[number * BLOCK : (number + 1) * BLOCK]
        with pytest.raises(Corrupt):
            opened(bytes(mixed))


def test_object_of_one_kind_does_not_pass_for_another() -> None:
    with pytest.raises(Locked):
        opened(seal(b"a log"), "eigen2 log")
    with pytest.raises(Locked):
        SEALER.open_record(SEALER.seal_record(b"{}", "key 1"), "key 2")


def test_record_of_another_key_is_told_by_name_and_no_key_is_shown() -> None:
    other = Sealer(bytes(reversed(range(32))))
    with pytest.raises(Locked) as caught:
        other.open_record(SEALER.seal_record(b"{}", "key 1"), "key 1")
    assert SEALER.name in caught.value.message
    assert base64.b64encode(KEY).decode() not in repr(caught.value) + repr(vars(other))
    with pytest.raises(Locked, match="not what was encrypted with key"):
        opened(seal(b"content"), sealer=other)


@pytest.mark.parametrize("data", [b"", b"{}", b'{"format": 1}', b"\xff", b"[]", b'{"key": 1}'])
def test_what_was_not_sealed_is_no_record(data: bytes) -> None:
    assert sealed_with(data) is None
    with pytest.raises(Locked, match="not encrypted"):
        SEALER.open_record(data, "key 1")


def test_same_part_is_sealed_to_the_same_bytes_and_another_one_under_another_key() -> None:
    place = SEALER.part_of("upload 1", "digest a", 9, 20 * PLAIN)
    assert place == SEALER.part_of("upload 1", "digest a", 9, 20 * PLAIN)
    assert SEALER.seal(b"x" * PLAIN, ROLE, place) == SEALER.seal(b"x" * PLAIN, ROLE, place)
    others = [
        SEALER.part_of("upload 1", "digest b", 9, 20 * PLAIN),
        SEALER.part_of("upload 1", "digest a", 18, 20 * PLAIN),
        SEALER.part_of("upload 2", "digest a", 9, 20 * PLAIN),
        Sealer(os.urandom(32)).part_of("upload 1", "digest a", 9, 20 * PLAIN),
    ]
    assert len({place.salt, *(other.salt for other in others)}) == 5
    assert len({place.object, others[0].object, others[1].object}) == 1


def test_parts_of_one_upload_make_one_object() -> None:
    total = len(THREE)
    first = SEALER.part_of("upload", "a", 0, total)
    rest = SEALER.part_of("upload", "b", 1, total)
    stored = bytes(SEALER.seal(THREE[:PLAIN], ROLE, first) + SEALER.seal(THREE[PLAIN:], ROLE, rest))
    assert opened(stored) == THREE


def test_beginning_of_a_range_is_any_block() -> None:
    stored = seal(THREE)
    some = SEALER.open([stored[BLOCK:]], ROLE, first=1)
    assert b"".join(some) == THREE[PLAIN:]


def test_form_is_frozen() -> None:
    """Made by this version: a change that cannot open it is another format."""
    place = Place(b"o" * 16, b"s" * 16, 0, 5)
    stored = bytes.fromhex((Path(__file__).parent / "golden" / "sealed-1.hex").read_text().strip())
    assert SEALER.seal(b"hello", ROLE, place) == stored
    assert opened(stored) == b"hello"


def test_key_file_is_made_for_its_owner_alone_and_never_replaced(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "key"
    new_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    key = read_key(path)
    assert len(key) == 32
    assert key_name(key) not in path.read_text()
    with pytest.raises(SettingsError, match="is there already"):
        new_key(path)
    assert read_key(path) == key


@pytest.mark.parametrize(
    "text", ["", "secret-words", "A" * 44, base64.b64encode(KEY[:31]).decode()]
)
def test_text_that_is_no_key_is_refused_and_not_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="python -m syncd key new") as caught:
        parse_key(text)
    assert not text or text not in str(caught.value)
