"""What a disk may hold and what may happen to it in mid-upload: nothing torn, and all is said."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine, wait_until
from tests.servers.fixtures import Bucket
from tests.workbench import tree

_NO_MIGHT = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
"""Root by name, and bound to the rights of a file like anybody."""

NAMES = (
    "plain", "two words", " leading and trailing ", "new\nline", "tab\tand\rreturn", "-rf", "~",
    "quote\"'`$(x)", "back\\slash", "100%25+&=?#;:,", "<>|*", "\x1b[2J", "CON", "...", "a..b",
    "e\u0301 as two", "\u00e9 as one", "\U0001f525\u200d\U0001f40d", "\u202eright to left",
    "\u4f60\u597d", "\ufeffmark", "n" * 255, "\u00e9" * 127,
)  # fmt: skip
"""As a file system takes them; each is one name for a store, too."""


def committed(machine: Machine) -> set[str]:
    rows = json.loads(machine.syncd("ls", "--json").stdout)
    return {row["checkpoint"] for row in rows}


def test_names_of_every_kind_come_back(tmp_path: Path, bucket: Bucket) -> None:
    """On each store; NFC and NFD stay two files."""
    one = Machine(tmp_path / "one", bucket.settings())
    names = [name for name in NAMES if "\n" not in name or bucket.kind != "s3-moto"]  # its router
    one.write_checkpoint(
        "run/gen-000001",
        {**{name: name.encode() for name in names}, "state.json": b"{}"}
        | {f"deep/{name}/x": b"below " + name.encode() for name in names[:8]},
    )
    flushed = one.syncd("--once")
    assert flushed.returncode == 0, flushed.stderr
    two = Machine(tmp_path / "two", bucket.settings())
    restored = two.syncd("restore")
    assert restored.returncode == 0, restored.stderr
    assert tree(two.checkpoints) == tree(one.checkpoints)
    assert "\x1b" not in flushed.stderr + restored.stderr


def test_what_is_no_file_is_left_out_and_hinders_nothing(build: Build) -> None:
    """A FIFO, a socket, a device, links in a circle, hard links, a sparse file, foreign bytes."""
    one = build()
    one.write_checkpoint("run/gen-000001", {"w.bin": b"weights", "state.json": b"{}"})
    inside = one.checkpoints / "run/gen-000001"
    os.mkfifo(inside / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inside / "socket"))
    if os.getuid() == 0:
        os.mknod(inside / "null", 0o20666, os.makedev(1, 3))
    (inside / "round").symlink_to("about")
    (inside / "about").symlink_to("round")
    (inside / "self").symlink_to("self")
    (inside / "up").symlink_to("..")
    (inside / "nowhere").symlink_to("not-there")
    (inside / "twin.bin").hardlink_to(inside / "w.bin")
    with (inside / "sparse.bin").open("wb") as file:
        file.write(b"head")
        file.seek(40 << 20)
        file.write(b"tail")
    for name in (b"latin-1 \xe9.pt", b"half a surrogate \xed\xa0\x80.pt", b"\xff\xfe.pt"):
        with open(os.fsencode(one.checkpoints) + b"/" + name, "wb") as foreign:  # noqa: PTH123
            foreign.write(b"x")
    (one.checkpoints / "circle").symlink_to("circle")
    one.start()
    wait_until(lambda: "run/gen-000001" in committed(one), one.log)
    wait_until(lambda: one.reasons().count("not UTF-8") == 3, one.reasons())
    assert "latin-1 \\\\udce9.pt" in one.reasons()
    one.write_checkpoint("run/gen-000002", {"state.json": b"{}"})
    wait_until(lambda: "run/gen-000002" in committed(one), one.log)
    for name in (b"latin-1 \xe9.pt", b"half a surrogate \xed\xa0\x80.pt", b"\xff\xfe.pt"):
        os.unlink(os.fsencode(one.checkpoints) + b"/" + name)  # noqa: PTH108
    wait_until(lambda: one.reasons() == "[]", one.reasons())
    assert one.stop() == 0
    two = build("two")
    assert two.syncd("restore", "--to", "back", "--at", "run/gen-000001").returncode == 0
    back = two.disk / "back/run/gen-000001"
    assert tree(back) == tree(inside)
    assert {path.name for path in back.iterdir()} >= {"round", "about", "self", "nowhere"}
    assert not {"fifo", "socket", "null"} & {path.name for path in back.iterdir()}


def vanish(path: Path) -> None:
    path.unlink()


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 1000)


def shrink(path: Path) -> None:
    os.truncate(path, 1_000_000)


def become_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inner").write_bytes(b"now below")


def become_a_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def lose_its_rights(path: Path) -> None:
    path.chmod(0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "happen", [vanish, grow, shrink, become_a_directory, become_a_link, lose_its_rights]
)
def test_what_happens_to_a_file_in_mid_upload(build: Build, happen: Callable[[Path], None]) -> None:
    """Committed is what was there before or what is there after, whole; others do not wait."""
    one = build(SYNCD_BWLIMIT="2M")
    one.write_checkpoint("run/gen-000001", {"w.bin": os.urandom(9_000_000), "state.json": b"{}"})
    before = tree(one.checkpoints)
    one.start(*_NO_MIGHT if os.getuid() == 0 else ())
    wait_until(lambda: bool((one.status() or {}).get("sent_bytes")), one.log)
    happen(one.checkpoints / "run/gen-000001/w.bin")
    one.write_checkpoint("run/gen-000002", {"state.json": b"{}"})
    wait_until(lambda: "run/gen-000002" in committed(one), one.log)
    assert one.daemon
    assert one.daemon.poll() is None
    assert "Traceback" not in one.log()
    if happen is lose_its_rights:
        (one.checkpoints / "run/gen-000001/w.bin").chmod(0o644)
    wait_until(lambda: (one.status() or {}).get("backlog") == [], one.log)
    after = tree(one.checkpoints)
    one.kill()
    assert one.syncd("verify").returncode == 0
    two = build("two")
    assert two.syncd("restore", "--to", "back", "--all").returncode == 0
    found = tree(two.disk / "back")
    rest = {path: data for path, data in found.items() if not path.startswith("run/gen-000002")}
    whole = [{p: d for p, d in t.items() if "gen-000002" not in p} for t in (before, after)]
    assert rest in ({}, *whole)
