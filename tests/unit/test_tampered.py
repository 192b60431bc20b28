"""Whoever can write to the bucket can not reach beyond the folder that is restored into."""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from syncd.errors import Corrupt, Permanent
from syncd.journal import Journal
from syncd.pathrules import link_stays_inside
from syncd.records import CommitRecord, parse_record
from syncd.restored import Replace
from tests.workbench import LAYOUT, Machine, restorer

Document = dict[str, Any]


def seen(root: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below a folder, without following a link: kind and mode, time, content."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            content = b""
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif path.is_symlink():
                content = os.fsencode(path.readlink())
            when = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            found[str(path.relative_to(root))] = (status.st_mode, when, content)
    return found


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A bucket with two good commits, and around the target all that one could wish to reach."""
    folder = Path(tempfile.mkdtemp())
    machine = Machine(folder / "one", folder / "bucket").start()
    for number in (5, 10):
        machine.write(f"run/gen-{number:06}/agents/a.bin", os.urandom(100))
        machine.write(f"run/gen-{number:06}/state.json", "{}")
        (machine.root / f"run/gen-{number:06}/best").symlink_to("agents/a.bin")
        machine.commit_all()
    machine.journal.close()
    yield folder
    shutil.rmtree(folder)


def bed(home: Path, folder: Path) -> Path:
    """A fresh target in the midst of what must not be touched."""
    folder.mkdir()
    for name in ("secret", "etc/passwd", ".syncd/journal.sqlite"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("outside")
    os.mkfifo(folder / "fifo")
    target = folder / "target"
    (target / "run").mkdir(parents=True)
    (target / "away").symlink_to(folder / "etc")
    (target / "mine").hardlink_to(folder / "secret")
    os.mkfifo(target / "run/gen-000010")  # as a device would be: no place to write through
    (target / "file").write_text("inside")
    return target


def restore(home: Path, change: Callable[[Document], None], replace: Replace) -> int:
    """Restore after the newest record was changed; the number of the commit that came back."""
    with tempfile.TemporaryDirectory() as name:
        target = bed(home, Path(name) / "bed")
        bucket = Path(name) / "bucket"
        shutil.copytree(home / "bucket", bucket)
        path = bucket / LAYOUT.commit(2)
        document: Document = json.loads(path.read_bytes())
        change(document)
        path.write_text(json.dumps(document))
        around = {k: v for k, v in seen(target.parent).items() if not k.startswith("target")}
        back = restorer(bucket)
        number, refusal = 0, "in the way"
        try:
            result = back.restore_newest(back.commits(), target, replace)
            number = result.record.seq if result.record else 0
        except Permanent as error:
            refusal = error.message
        assert any(words in refusal for words in ("in the way", "there already"))
        after = seen(target.parent)
        assert {k: v for k, v in after.items() if not k.startswith("target")} == around
        for inside, (mode, _, content) in after.items():
            assert not mode & (stat.S_ISUID | stat.S_ISGID | stat.S_ISVTX)
            if stat.S_ISLNK(mode) and inside != "target/away":
                landed = (target.parent / inside).resolve()
                assert landed.is_relative_to(target.resolve()), (inside, content)
        assert not list(target.glob(".syncd-restore-*"))
        return number


PARTS = st.sampled_from(
    ["a", "agents", "best", "run", "gen-000010", "away", "file", "mine", "..", ".", "", "/", "A",
     "etc", "passwd", ".syncd", ".syncd-replaced", ".syncd-restore-1", "CON", "x\ny", "\x1b[2J",
     "nul\0", "é", "e\u0301", "\u202e", "\ud800", "n" * 300, "latest", "-rf"]
)  # fmt: skip
PATHS = st.lists(PARTS, max_size=6).map("/".join) | st.text(max_size=8)
NUMBERS = st.sampled_from([0, 1, -1, 100, 2**31, 2**62, 2**63, 10**40, True, None, "1", 0.5])
MODES = st.sampled_from([0, 0o777, 0o4755, 0o2755, 0o1777, 0o120777, 0o60666, 2**40])
KEYS = st.one_of(
    PATHS.map(lambda path: f"eigen2/{path}"),
    st.sampled_from(
        ["other/x", "eigen2/../other", "/etc/passwd", LAYOUT.commit(1), "eigen2/.syncd", "k" * 2000]
    ),
)
FILE = st.fixed_dictionaries(
    {"path": PATHS, "key": KEYS, "size": NUMBERS, "sha256": st.just("0" * 64), "mode": MODES,
     "mtime_ns": NUMBERS}
)  # fmt: skip
LINK = st.fixed_dictionaries({"path": PATHS, "target": PATHS | st.just("/etc/passwd")})


@st.composite
def changes(draw: st.DrawFn) -> Callable[[Document], None]:
    """A few of the ways to lie in a record whose content can still be proven."""
    top = draw(st.dictionaries(
        st.sampled_from(["checkpoint", "profile", "writer", "committed_at", "behind", "seq"]),
        PATHS | NUMBERS | st.sampled_from(["deepspeed", "lerobot", "megatron", "companion"]),
        max_size=2,
    ))  # fmt: skip
    each = draw(st.dictionaries(st.sampled_from(["path", "key", "mode", "mtime_ns", "size"]),
                                st.none(), max_size=2))  # fmt: skip
    values = {"path": PATHS, "key": KEYS, "mode": MODES, "mtime_ns": NUMBERS, "size": NUMBERS}
    drawn = {name: draw(values[name]) for name in each}
    files, links = draw(st.lists(FILE, max_size=2)), draw(st.lists(LINK, max_size=4))
    nest = draw(st.booleans())

    def change(document: Document) -> None:
        document.update(top)
        document["files"][0].update(drawn)
        document["files"] += files
        document["links"] += links
        if nest:  # a file, and one below it
            document["files"].append({**document["files"][1], "path": "state.json/below"})

    return change


@given(change=changes(), replace=st.sampled_from(list(Replace)))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_outside_the_target_is_ever_touched(
    home: Path, change: Callable[[Document], None], replace: Replace
) -> None:
    assert restore(home, change, replace) in (0, 1, 2)


def put(document: Document, *, place: str = "files", number: int = 0, **values: Any) -> None:
    document[place][number].update(values)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.update(checkpoint="/etc/cron.d"),
        lambda d: d.update(checkpoint="../../etc"),
        lambda d: d.update(checkpoint=".syncd"),
        lambda d: d.update(checkpoint="run/.syncd-replaced/x"),
        lambda d: d.update(checkpoint="n" * 300),
        lambda d: d.update(checkpoint="x\ud800"),
        lambda d: put(d, path="/etc/passwd"),
        lambda d: put(d, path="a/../../../x"),
        lambda d: put(d, path="nul\0"),
        lambda d: put(d, path="n" * 256),
        lambda d: put(d, path="\udcff"),
        lambda d: put(d, path="state.json/below"),
        lambda d: put(d, path="best/below"),
        lambda d: put(d, key="other-prefix/checkpoints/x"),
        lambda d: put(d, key="eigen2/../bucket-of-another/x"),
        lambda d: put(d, size=2**62),
        lambda d: put(d, size=-1),
        lambda d: put(d, size=2**70),
        lambda d: put(d, mtime_ns=2**63),
        lambda d: put(d, place="links", target="/etc/passwd"),
        lambda d: put(d, place="links", target="../../../etc/passwd"),
        lambda d: put(d, place="links", target="agents/up/../../x"),
        lambda d: put(d, place="links", target="x" * 5000),
        lambda d: d.update(format=2),
        lambda d: d.update(behind=2),
        lambda d: d.update(files={"a": 1}),
    ],
)
def test_what_cannot_be_trusted_is_passed_over(
    home: Path, change: Callable[[Document], None]
) -> None:
    """Not a crash, and no refusal of everything: the older commit comes back."""
    assert restore(home, change, Replace.KEEP) == 1


@pytest.mark.parametrize("mode", [0o4755, 0o2777, 0o1777, 0o104755])
def test_special_bits_of_a_mode_are_not_taken(home: Path, mode: int) -> None:
    assert restore(home, lambda d: put(d, mode=mode), Replace.KEEP) == 2


@pytest.mark.parametrize("name", ["x\ny", "\x1b[2J", "é", "e\u0301", "\u202e", "-rf", " "])
def test_odd_names_are_only_names(home: Path, name: str) -> None:
    assert restore(home, lambda d: put(d, path=name), Replace.KEEP) == 2


def test_link_through_a_link_cannot_climb_out() -> None:
    assert link_stays_inside("a/b/c/up", "../../..")
    assert not link_stays_inside("esc", "a/b/c/up/../../x")
    assert not link_stays_inside("esc", "./up/../x")
    assert link_stays_inside("a/b", "../c/./d")


@pytest.mark.parametrize(
    "data",
    [b"[" * 1_000_000, b'{"a":' * 200_000, b"9" * 100_000, b"\xff\xfe", b"null", b"[]", b"",
     b'{"format": 1, "files": ' + b"9" * 5000 + b"}"],
)  # fmt: skip
def test_json_that_is_a_bomb_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        parse_record(data, 1, "eigen2")


def test_record_that_is_accepted_can_be_kept_in_the_journal(home: Path) -> None:
    """A name that no database takes must be refused at the edge, not met by the daemon."""
    data = json.loads((home / "bucket" / LAYOUT.commit(2)).read_bytes())
    data["files"][0]["path"] = "\ud800"
    with pytest.raises(Corrupt, match="Unicode"):
        parse_record(json.dumps(data).encode(), 2, "eigen2")
    data["files"][0]["path"] = "fine"
    record = parse_record(json.dumps(data).encode(), 2, "eigen2")
    assert isinstance(record, CommitRecord)
    Journal(None, "test").add_commit(record)
