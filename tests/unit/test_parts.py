"""Parts of several machines: what makes a whole, what is never mixed, what is refused."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from syncd.errors import Corrupt, Permanent
from syncd.parts import (
    MARGIN,
    Part,
    StoreClock,
    files_of,
    missing,
    newest,
    of_rank,
    parse_part,
    whole,
)
from syncd.records import CommitRecord, FileEntry, parse_record
from syncd.stores.directory import DirectoryStore
from tests.clocks import FakeClock

NOW = 1_800_000_000.0


def part(
    rank: int,
    *,
    written: float = 0.0,
    looked: float = 10.0,
    marked: bool = False,
    claim: int = 1,
    name: str = "",
    content: str = "a",
) -> Part:
    path = name or f"__{rank}_0.distcp"
    entry = FileEntry(path, f"eigen2/.syncd/versions/{path}", 1, content * 64, 0o644, 1)
    record = CommitRecord(1, "run/step_10", "w", "2027-01-15T08:00:00.000Z", "dcp", (entry,))
    return Part(rank, 2, claim, NOW + written, NOW + looked, marked, record)


def both(one: Part, two: Part) -> dict[int, Part]:
    return {0: one, 1: two}


def test_parts_of_all_that_were_looked_at_after_all_were_written_are_a_whole() -> None:
    assert missing(both(part(0), part(1)), 2) == ""
    assert missing({0: part(0)}, 2) == "the part of machine 1 is not there yet"
    assert missing({}, 3) == "the part of machine 0, 1, 2 is not there yet"


def test_old_part_of_one_machine_is_not_joined_with_a_new_one_of_another() -> None:
    """It was looked at before the other was written: its files may be of another save."""
    old, new = part(0, written=0, looked=5), part(1, written=20, looked=25)
    assert missing(both(old, new), 2) == "machine 0 has to look again whether its part still stands"
    short = replace(old, looked=new.written + MARGIN - 0.1)
    assert missing(both(short, new), 2) != ""
    again = replace(old, looked=new.written + MARGIN)
    assert missing(both(again, new), 2) == ""


def test_mark_that_is_older_than_a_part_speaks_for_another_save() -> None:
    """DCP's coordinator writes it when all have written: that cannot be before them."""
    mark = part(0, written=0, looked=100, marked=True)
    assert missing(both(mark, part(1, written=1, looked=100)), 2) == ""
    late = missing(both(mark, part(1, written=60, looked=100)), 2)
    assert late == "a part is younger than the mark that speaks for all: it is being saved again"


def test_part_that_nobody_has_looked_at_for_hours_does_not_count() -> None:
    parts = both(part(0, looked=10), part(1, looked=10 + 7 * 3600))
    assert missing(parts, 2) == "a part was looked at too long ago"


def test_newest_word_of_who_holds_the_rank_counts() -> None:
    old, new = part(0, looked=5), part(0, looked=9)
    assert newest([new, old], {0: 1}) == {0: new}
    replaced = part(0, looked=99, claim=1)
    assert newest([replaced], {0: 2}) == {}, "another machine has this rank by now"
    assert newest([replace(new, claim=2), replaced], {0: 2}) == {0: replace(new, claim=2)}


def test_shards_are_counted_over_all_machines() -> None:
    one = part(0, name="model-00001-of-00003.safetensors")
    two = part(1, name="model-00002-of-00003.safetensors")
    assert missing(both(one, two), 2) == "model-00003-of-00003.safetensors is not there yet"


def test_one_record_names_all_and_who_sent_what() -> None:
    record = replace(whole(both(part(0), part(1))), seq=7)
    assert [entry.path for entry in record.files] == ["__0_0.distcp", "__1_0.distcp"]
    assert record.ranks == (1, 1)
    again = parse_record(record.to_json(), 7, "eigen2")
    assert again == record
    assert [entry.path for entry in files_of(again, 1)] == ["__1_0.distcp"]
    assert [entry.path for entry in of_rank(again, 1).files] == ["__0_0.distcp", "__1_0.distcp"]
    assert [entry.path for entry in of_rank(again, 0).files] == ["__0_0.distcp"]
    assert of_rank(again, 5) == again, "a machine that was not there then gets everything"


def test_same_file_of_two_machines_is_named_once_and_another_is_a_contradiction() -> None:
    same = whole(both(part(0, name="config.json"), part(1, name="config.json")))
    assert (len(same.files), same.ranks) == (1, (1, 0))
    with pytest.raises(Permanent, match="machines 0 and 1 have different files"):
        whole(both(part(0, name="rng.pth"), part(1, name="rng.pth", content="b")))


def test_part_comes_back_as_it_was_and_a_tampered_one_is_refused() -> None:
    one = part(0, written=1.25, marked=True)
    assert parse_part(one.to_json(), "eigen2") == one
    with pytest.raises(Corrupt):
        parse_part(one.to_json(), "another-prefix")
    damages: list[dict[str, object]] = [{"rank": "x"}, {"record": {}}, {"looked": None}]
    for damage in damages:
        document = {**json.loads(one.to_json()), **damage}
        with pytest.raises(Corrupt):
            parse_part(json.dumps(document).encode(), "eigen2")
    with pytest.raises(Corrupt):
        parse_part(b"[]", "eigen2")


def test_ranks_that_do_not_add_up_are_refused() -> None:
    record = replace(whole(both(part(0), part(1))), seq=7, ranks=(1, 2))
    with pytest.raises(Corrupt, match="which machine sent which file"):
        parse_record(record.to_json(), 7, "eigen2")


def test_time_of_the_store_has_bounds_and_a_clock_that_was_set_proves_nothing(
    tmp_path: Path,
) -> None:
    class Local(FakeClock):
        """A wall clock of its own, an hour behind the store's."""

        off = -3600.0

        def now(self) -> float:
            return super().now() + self.off

    clock = Local(now=time.time())
    store = StoreClock(clock)
    store.set_by(DirectoryStore(tmp_path), "clock")
    real = time.time()
    assert real - 2 < store.earliest() < real + 1
    written = int((clock.now() - 100) * 1e9)
    assert real - 102 < store.latest_of(written) < real - 97
    clock.off = 0.0  # somebody has set it: what the kernel dated before means nothing any more
    assert store.latest_of(written) > real - 1
    assert store.latest_of(written) < real - 3000
