"""The rig's own eyes: a judge that sees nothing would make every trial a success."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.disks import Content, RealDisk, Rehearsal
from tests.faults.judge import loss
from tests.faults.ledger import Ledger, files_below
from tests.faults.plans import Plan
from tests.faults.writers import WRITERS, Writer


def save_all(writer: Writer, root: Path, saves: int) -> Ledger:
    """Some saves on a real disk, and what the writer tells of them."""
    rehearsal, disk = Rehearsal(), RealDisk(root, random.Random(1))
    lines = []
    for save in range(1, saves + 1):
        content = Content(7, save, 20_000)
        units = writer.save(rehearsal, content)
        expected = [{path: rehearsal.files[path] for path in unit} for unit in units]
        lines.append({"begin": save, "at": time.monotonic(), "units": expected})
        writer.save(disk, content)
        lines.append({"done": save, "at": time.monotonic(), "gap": 0.0})
    log = root.with_suffix(".jsonl")
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"begin": 99, "at"')
    return Ledger.read(log)


@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_leaves_what_it_has_told(name: str, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    ledger = save_all(WRITERS[name], root, 4)
    found = files_below(root)
    finding = ledger.judge(found)
    assert (finding.verdict, finding.save) == ("intact", 4), finding.words
    assert ledger.judge_plain(found).save == 4


@pytest.mark.parametrize("name", WRITERS)
def test_one_changed_byte_is_torn(name: str, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    ledger = save_all(WRITERS[name], root, 2)
    unit = ledger.saves[2].units[0]
    path = root / max(unit, key=lambda path: unit[path][0])
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert ledger.judge(files_below(root)).verdict == "torn"
    assert ledger.judge_plain(files_below(root)).verdict == "torn"


@pytest.mark.parametrize("name", [n for n in WRITERS if n not in ("lone_in_place", "never_quiet")])
def test_a_missing_file_and_one_of_another_save_are_seen(name: str, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    ledger = save_all(WRITERS[name], root, 3)
    unit = next(u for u in ledger.saves[3].units)
    if len(unit) < 2:
        return
    largest = max(unit, key=lambda path: unit[path][0])
    shutil.copytree(root, tmp_path / "without", symlinks=True)
    (tmp_path / "without" / largest).unlink()
    missing = ledger.judge(files_below(tmp_path / "without"))
    assert missing.verdict in ("torn", "mixed")
    if largest in ledger.saves[2].units[0]:
        older = tmp_path / "older"
        save_all(WRITERS[name], older, 2)
        shutil.copyfile(older / largest, root / largest)
        assert ledger.judge(files_below(root)).verdict == "mixed"
        assert ledger.judge_plain(files_below(root)).verdict == "mixed"


def test_time_lost_counts_from_the_oldest_save_and_the_last_life_of_the_daemon(
    tmp_path: Path,
) -> None:
    ledger = save_all(WRITERS["lone_in_place"], tmp_path / "checkpoints", 3)
    for number, save in ledger.saves.items():
        save.done = 100.0 + number
    assert loss(ledger, [[90.0, 120.0]], 3, 120.0).seconds == 0.0
    assert loss(ledger, [[90.0, 120.0]], 1, 120.0).seconds == 18.0
    assert loss(ledger, [[90.0, 110.0], [110.0, 120.0]], 1, 120.0).seconds == 10.0
    assert loss(ledger, [[90.0, 120.0]], 0, 120.0).late


def test_same_seed_plans_the_same_trial() -> None:
    for writer in WRITERS.values():
        plans = [Plan.draw(seed, writer) for seed in range(200)]
        assert plans == [Plan.draw(seed, writer) for seed in range(200)]
        assert any(plan.second for plan in plans)
        assert any(plan.storm is not None for plan in plans)
        assert any(plan.restores_killed for plan in plans)
        assert writer.proven == any(plan.writer_dies for plan in plans)
