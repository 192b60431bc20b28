"""A sealed store: nothing plain leaves, and who has no key cannot change what comes back."""

from __future__ import annotations

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from syncd.clock import SystemClock
from syncd.errors import Corrupt, Fenced, NeedsOperator, Permanent
from syncd.pace import RateLimit
from syncd.records import CommitRecord
from syncd.restore import Restorer
from syncd.retention import Retention
from syncd.sealed import Sealed
from syncd.sealing import PLAIN, Sealer
from syncd.stores.base import IfAbsent, ObjectStore
from syncd.stores.directory import DirectoryStore
from syncd.transfer import Transfer
from tests.workbench import LAYOUT, CountingStore, Died, Machine, tree

KEY = bytes(range(32))
SECRET = b"the weights that nobody may read"


def sealed(bucket: Path, key: bytes = KEY) -> Sealed:
    return Sealed(DirectoryStore(bucket), Sealer(key), LAYOUT)


def restorer(bucket: Path, key: bytes = KEY) -> Restorer:
    return Restorer(sealed(bucket, key), LAYOUT, ThreadPoolExecutor(2))


def machine_at(tmp_path: Path, name: str = "one", store: ObjectStore | None = None) -> Machine:
    bucket = tmp_path / "bucket"
    return Machine(tmp_path / name, bucket, store=store or sealed(bucket))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = machine_at(tmp_path).start()
    for number in (5, 10, 15):
        save(machine, number)
        machine.commit_all()
    return machine


def save(machine: Machine, number: int) -> None:
    machine.write(f"run/gen-{number:06}/a.bin", SECRET + os.urandom(100))
    machine.write(f"run/gen-{number:06}/b.bin", SECRET + os.urandom(100))
    machine.write(f"run/gen-{number:06}/state.json", f'{{"generation": {number}}}')


def newest(bucket: Path, to: Path) -> tuple[str, list[str]]:
    """Which checkpoint came back, and what was said of others."""
    back = restorer(bucket)
    result = back.restore_newest(back.commits(), to)
    return result.record.checkpoint if result.record else "", result.rejected


def keys(bucket: Path) -> list[str]:
    return sorted(str(p.relative_to(bucket)) for p in bucket.rglob("*") if p.is_file())


def test_nothing_plain_is_in_the_bucket_and_all_comes_back(
    machine: Machine, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    for key in keys(bucket):
        content = (bucket / key).read_bytes()
        assert SECRET not in content
        assert b"generation" not in content
        assert key.endswith(".enc") or "/.syncd/commits/" in key
    assert newest(bucket, tmp_path / "two") == ("run/gen-000015", [])
    assert tree(tmp_path / "two/run/gen-000015") == tree(machine.root / "run/gen-000015")
    for commit in restorer(bucket).commits():
        assert isinstance(commit, CommitRecord)
        restorer(bucket).verify(commit)


def test_damaged_or_missing_object_is_named_and_the_commit_before_comes_back(
    machine: Machine, tmp_path: Path
) -> None:
    victim = tmp_path / "bucket/eigen2/checkpoints/run/gen-000015/a.bin.enc"
    whole = victim.read_bytes()
    older = (victim.parent.parent / "gen-000010/a.bin.enc").read_bytes()
    beside = (victim.parent / "b.bin.enc").read_bytes()
    damages = {
        "flipped": whole[:50] + bytes([whole[50] ^ 1]) + whole[51:],
        "cut": whole[:-1],
        "swapped with the one beside it": beside,
        "rolled back": older,
        "plain": SECRET,
    }
    for number, data in enumerate(damages.values()):
        victim.write_bytes(data)
        checkpoint, rejected = newest(tmp_path / "bucket", tmp_path / f"to-{number}")
        assert checkpoint == "run/gen-000010"
        assert "run/gen-000015" in rejected[0]
    victim.unlink()
    assert newest(tmp_path / "bucket", tmp_path / "gone")[0] == "run/gen-000010"


def test_record_cannot_be_changed_moved_or_made_without_the_key(
    machine: Machine, tmp_path: Path
) -> None:
    log = tmp_path / "bucket" / LAYOUT.commits
    first, second, third = sorted(log.iterdir())
    whole = third.read_bytes()
    forged = CommitRecord(3, "", "w", "2026-11-23T20:00:00Z", "claim").to_json()
    other = Sealer(os.urandom(32)).seal_record(forged, f"key {LAYOUT.commit(3)}")
    for number, data in enumerate(
        (whole.replace(b"A", b"B", 1), second.read_bytes(), first.read_bytes(), forged, other)
    ):
        third.write_bytes(data)
        checkpoint, rejected = newest(tmp_path / "bucket", tmp_path / f"to-{number}")
        assert checkpoint == "run/gen-000010"
        assert "commit 3" in rejected[0]
    third.write_bytes(whole)
    shutil.copy(third, log / f"{4:020}.json")  # the newest once more, as if it came later
    assert newest(tmp_path / "bucket", tmp_path / "again")[0] == "run/gen-000015"


def test_record_of_another_prefix_does_not_count_here(machine: Machine, tmp_path: Path) -> None:
    other = Sealed(DirectoryStore(tmp_path / "bucket"), Sealer(KEY), type(LAYOUT)("other"))
    source = tmp_path / "bucket" / LAYOUT.commit(1)
    target = tmp_path / "bucket/other/.syncd/commits" / source.name
    target.parent.mkdir(parents=True)
    shutil.copy(source, target)
    with pytest.raises(Corrupt):
        list(other.read(f"other/.syncd/commits/{source.name}"))


def test_commit_that_somebody_removed_is_missed(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "bucket" / LAYOUT.commit(2)).unlink()
    checkpoint, rejected = newest(tmp_path / "bucket", tmp_path / "two")
    assert checkpoint == "run/gen-000015"
    assert rejected == ["1 commits were removed, and by nobody who has the key: 2"]


def test_commits_that_were_pruned_with_the_key_are_not_missed(
    machine: Machine, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    for number in range(20, 60, 5):
        save(machine, number)
        machine.commit_all()
        Retention(sealed(bucket), LAYOUT, SystemClock()).prune(2)
        assert newest(bucket, tmp_path / f"to-{number}") == (f"run/gen-{number:06}", [])
    assert len(list((bucket / LAYOUT.commits).iterdir())) == 4  # the first, one for all, two
    (bucket / LAYOUT.commit(9)).unlink()  # the claim that stands for all that were pruned
    assert "were removed" in newest(bucket, tmp_path / "two")[1][0]


def test_machine_that_has_seen_more_refuses_a_log_that_was_rolled_back(
    machine: Machine, tmp_path: Path
) -> None:
    (tmp_path / "bucket" / LAYOUT.commit(3)).unlink()
    save(machine, 20)
    with pytest.raises(NeedsOperator, match="has seen commit 3, which is gone; it ends with 2"):
        machine.commit_all()
    with pytest.raises(NeedsOperator, match="rolled back"):
        machine_at(tmp_path).start()
    fresh = machine_at(tmp_path, "fresh").start()  # without a memory nobody can tell
    assert fresh.publisher.recovery_point()


def test_rubbish_in_the_place_of_the_newest_hides_no_roll_back(
    machine: Machine, tmp_path: Path
) -> None:
    log = tmp_path / "bucket" / LAYOUT.commits
    (log / f"{3:020}.json").unlink()
    (log / f"{10**18:020}.json").write_text("rubbish")
    back = restorer(tmp_path / "bucket")
    commits = back.commits()
    assert [c.seq for c in commits if isinstance(c, CommitRecord)] == [2, 1]
    with pytest.raises(NeedsOperator, match="rolled back"):
        back.check_memory(3)
    with pytest.raises(NeedsOperator, match="rolled back"):
        machine_at(tmp_path).start()


def test_machine_that_slept_while_what_it_knew_was_pruned_is_fenced_and_no_more(
    machine: Machine, tmp_path: Path
) -> None:
    bucket = tmp_path / "bucket"
    other = Machine(tmp_path / "other", bucket, "writer-b", store=sealed(bucket)).start()
    for number in range(20, 50, 5):
        save(other, number)
        other.commit_all()
        Retention(sealed(tmp_path / "bucket"), LAYOUT, SystemClock()).prune(2)
    back = restorer(tmp_path / "bucket")
    assert not [c for c in back.commits() if isinstance(c, Corrupt)]
    back.check_memory(3)
    save(machine, 50)
    with pytest.raises(Fenced):
        machine.commit_all()
    assert machine_at(tmp_path).start().publisher.took_over


@pytest.mark.parametrize("key", [None, bytes(reversed(range(32)))], ids=["none", "another"])
def test_without_the_key_nothing_is_written_and_the_remedy_is_said(
    machine: Machine, tmp_path: Path, key: bytes | None
) -> None:
    bucket = tmp_path / "bucket"
    before = keys(bucket)
    store = sealed(bucket, key) if key else DirectoryStore(bucket)
    with pytest.raises(NeedsOperator) as caught:
        Restorer(store, LAYOUT, ThreadPoolExecutor(2)).commits()
    assert "SYNCD_ENCRYPT_KEY_FILE" in caught.value.hint
    stranger = machine_at(tmp_path, "two", store)
    stranger.write("run/gen-000020/state.json", "{}")
    for _ in range(2):
        with pytest.raises(NeedsOperator, match="no commit can be opened"):
            stranger.start()
    assert keys(bucket) == before


def test_prefix_that_was_used_without_a_key_is_not_mixed_with_it(tmp_path: Path) -> None:
    plain = Machine(tmp_path / "one", tmp_path / "bucket").start()
    plain.write("run/gen-000005/state.json", "{}")
    plain.commit_all()
    with pytest.raises(NeedsOperator, match="not encrypted") as caught:
        machine_at(tmp_path, "two").start()
    assert "CLOUD_PREFIX" in caught.value.hint


def test_unchanged_and_copied_content_is_not_sent_again(tmp_path: Path) -> None:
    store = CountingStore(sealed(tmp_path / "bucket"))
    machine = machine_at(tmp_path, store=store).start()
    elite = os.urandom(5000)
    machine.write("run/gen-000005/agents/agent-07.bin", elite)
    machine.write("run/gen-000005/state.json", "{}")
    machine.commit_all()
    before = store.sent_bytes
    machine.write("run/gen-000010/agents/agent-00.bin", elite)
    machine.write("run/gen-000010/state.json", '{"generation": 10}')
    machine.commit_all()
    assert store.sent_bytes - before == len('{"generation": 10}')
    assert newest(tmp_path / "bucket", tmp_path / "two")[0] == "run/gen-000010"
    assert tree(tmp_path / "two/run/gen-000010") == tree(machine.root / "run/gen-000010")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_machine_that_dies_at_any_request_leaves_the_old_or_the_new_set(
    tmp_path: Path, after: bool
) -> None:
    old = {"a.bin": b"old a" * 100, "state.json": b'{"gen": 1}'}
    new = {"a.bin": b"new a" * 100, "state.json": b'{"gen": 2}'}
    for die_at in range(50):
        home = tmp_path / f"{die_at}"
        machine = machine_at(home).start()
        for name, data in old.items():
            machine.write(f"run/model/{name}", data)
        machine.commit_all()
        inner = CountingStore(DirectoryStore(home / "bucket"), die_at, after)
        second = machine_at(home, store=Sealed(inner, Sealer(KEY), LAYOUT))
        for name, data in new.items():
            second.write(f"run/model/{name}", data)
        try:
            second.start().commit_all()
            died = False
        except Died:
            died = True
        newest(home / "bucket", home / "two")
        assert tree(home / "two/run/model") in (old, new)
        machine_at(home).start().commit_all()
        newest(home / "bucket", home / "three")
        assert tree(home / "three/run/model") == new
        if not died:
            break
    assert not died


def test_large_object_goes_in_parts_and_any_range_of_it_is_read(tmp_path: Path) -> None:
    store, data = sealed(tmp_path), os.urandom(5 * PLAIN + 17)
    upload = store.start_upload("eigen2/checkpoints/x", len(data))
    upload.part = 2 * PLAIN  # type: ignore[attr-defined]
    for number, start in ((2, 2 * PLAIN), (1, 0), (3, 4 * PLAIN)):
        upload.send(number, data[start : start + 2 * PLAIN])
    info = upload.finish(IfAbsent())
    assert (info.key, info.size) == ("eigen2/checkpoints/x", len(data))
    assert store.head(info.key) == info
    assert b"".join(store.read(info.key)) == data
    for start, length in ((0, 1), (PLAIN - 1, 2), (PLAIN, PLAIN), (3 * PLAIN + 5, 2 * PLAIN)):
        got = b"".join(store.read(info.key, start, length, info.version))
        assert got == data[start : start + length]


def test_parts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    upload = sealed(tmp_path).start_upload("eigen2/checkpoints/x", 5 * PLAIN)
    upload.part = 2 * PLAIN  # type: ignore[attr-defined]
    for number, size in ((1, PLAIN), (2, 2 * PLAIN + 1), (3, 2 * PLAIN), (9, PLAIN)):
        with pytest.raises(Permanent):
            upload.send(number, bytes(size))


def test_all_threads_may_use_it_at_once(tmp_path: Path) -> None:
    store = sealed(tmp_path)
    faults: list[str] = []

    def work(number: int) -> None:
        for turn in range(20):
            key, data = f"eigen2/checkpoints/{number}-{turn}", os.urandom(1000)
            store.put(key, data)
            if b"".join(store.read(key)) != data:
                faults.append(key)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


@pytest.mark.parametrize("encrypted", [False, True])
def test_parts_of_a_very_large_file_are_whole_steps_of_the_store(
    tmp_path: Path, encrypted: bool
) -> None:
    plain = DirectoryStore(tmp_path)
    plain.capabilities = replace(plain.capabilities, max_parts=10_000, max_part_size=5 * 1024**3)
    store = Sealed(plain, Sealer(KEY), LAYOUT) if encrypted else plain
    can, clock = store.capabilities, SystemClock()
    transfer = Transfer(store, 1, RateLimit(None, clock, threading.Event()))
    for size in (200 * 1024**3, 200 * 1024**3 + 12345, 4 * 1024**4):
        part = transfer.part_size(size)
        assert part % can.part_multiple == 0
        assert part * can.max_parts >= size
    assert len({transfer.part_size(200 * 1024**3 + n * 1024**2) for n in range(20)}) == 1
    transfer.close()
