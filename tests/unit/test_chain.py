"""SHA-256 that is taken up in the middle, and what a block is told to be the same by."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import syncd.chain
from syncd.chain import Chain
from syncd.delta import Base, mark_of
from syncd.errors import Conflict, StoreError
from syncd.stores.directory import DirectoryStore
from syncd.uploadrows import Arrived, Whole

PART = 64 * 200


@given(st.lists(st.binary(max_size=300)))
def test_digest_is_that_of_hashlib(pieces: list[bytes]) -> None:
    chain = Chain()
    for number, piece in enumerate(pieces, start=1):
        chain.update(piece)
        assert chain.hexdigest() == hashlib.sha256(b"".join(pieces[:number])).hexdigest()


@given(st.integers(0, 40), st.binary(max_size=300))
def test_digest_goes_on_from_a_state(blocks: int, rest: bytes) -> None:
    first = os.urandom(64 * blocks)
    begun = Chain()
    begun.update(first)
    again = Chain(begun.state(), len(first)) if blocks else Chain()
    again.update(rest)
    assert again.hexdigest() == hashlib.sha256(first + rest).hexdigest()


def test_digest_of_more_bits_than_32_can_count() -> None:
    piece, plain, chain = bytes(8 * 1024 * 1024), hashlib.sha256(), Chain()
    for _ in range(65):
        plain.update(piece)
        chain.update(piece)
    again = Chain(chain.state(), 65 * len(piece))
    for each in (chain, again, plain):
        each.update(b"the end")
    assert chain.hexdigest() == again.hexdigest() == plain.hexdigest()


def test_state_is_told_between_blocks_only() -> None:
    chain = Chain()
    chain.update(b"x" * 65)
    assert chain.state() == ""
    chain.update(b"x" * 63)
    assert len(chain.state()) == 64


@pytest.fixture
def no_openssl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syncd.chain, "_openssl", lambda: None)


@pytest.mark.usefixtures("no_openssl")
def test_without_openssl_there_is_the_digest_alone() -> None:
    chain = Chain()
    chain.update(b"x" * 64)
    assert chain.hexdigest() == hashlib.sha256(b"x" * 64).hexdigest()
    assert chain.state() == ""
    with pytest.raises(ValueError, match="taken up"):
        Chain("0" * 64, 64)


# -- blocks


def parts_of(content: bytes) -> list[Arrived]:
    chain, found = Chain(), []
    for at in range(0, len(content), PART):
        data = content[at : at + PART]
        chain.update(data)
        number = at // PART + 1
        found.append(Arrived(number, chain.hexdigest(), "", chain.state(), mark_of(data)))
    return found


def same(old: bytes, new: bytes, tmp_path: Path) -> list[int]:
    """Numbers of the blocks of the new content that are told to be the old one's."""
    whole = Whole(1, "key", "w.bin", len(old), PART, "v1")
    parts = {part.number: part for part in parts_of(old)}
    base = Base(whole, parts, DirectoryStore(tmp_path), lambda _whole, _error: None)
    blocks = [new[at : at + PART] for at in range(0, len(new), PART)]
    found = zip(parts_of(new), blocks, strict=True)
    return [part.number for part, data in found if base.has(part, data)]


OLD = os.urandom(4 * PART + 77)


def test_block_is_the_same_whatever_comes_before_it(tmp_path: Path) -> None:
    assert same(OLD, OLD, tmp_path) == [1, 2, 3, 4, 5]
    assert same(OLD, bytes(PART) + OLD[PART:], tmp_path) == [2, 3, 4, 5]
    middle = bytearray(OLD)
    middle[2 * PART + PART // 2] ^= 1  # not where the mark is made
    assert same(OLD, bytes(middle), tmp_path) == [1, 2, 4, 5]
    assert same(OLD, OLD[:-1], tmp_path) == [1, 2, 3, 4]
    assert same(OLD, OLD + b"x", tmp_path) == [1, 2, 3, 4]
    assert same(OLD, OLD[PART:], tmp_path) == []
    assert same(OLD, b"x" + OLD, tmp_path) == []


@pytest.mark.usefixtures("no_openssl")
def test_without_openssl_what_comes_before_the_first_change_is_the_same(tmp_path: Path) -> None:
    middle = bytearray(OLD)
    middle[2 * PART + 7] ^= 1
    assert same(OLD, bytes(middle), tmp_path) == [1, 2]
    assert same(OLD, OLD + b"x", tmp_path) == [1, 2, 3, 4]


def test_state_of_a_journal_that_came_from_elsewhere_is_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {part.number: part for part in parts_of(OLD)}
    monkeypatch.setattr(syncd.chain, "_openssl", lambda: None)
    base = Base(
        Whole(1, "key", "w.bin", len(OLD), PART, "v1"),
        parts,
        DirectoryStore(tmp_path),
        lambda _whole, _error: None,
    )
    assert not base.is_block(2, OLD[PART : 2 * PART])


def test_object_that_is_another_one_is_refused_once(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    told: list[StoreError] = []
    version = store.put("key", OLD).version
    whole = Whole(1, "key", "w.bin", len(OLD), PART, version)
    base = Base(whole, {}, store, lambda _whole, error: told.append(error))
    base.check()
    store.put("key", OLD[::-1])
    with pytest.raises(Conflict) as met:
        base.check()
    base.refused(met.value)
    base.refused(met.value)
    assert base.given_up
    assert told == [met.value]
