"""Two stores of two providers: each commit is in both, and either of them may be lost."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine, wait_until
from tests.servers.azure import Azurite
from tests.servers.fixtures import Bucket, azure_bucket, s3_bucket
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire
from tests.workbench import tree

pytestmark = pytest.mark.first

MIB = 1024 * 1024


@pytest.fixture
def s3(seaweedfs: SeaweedFS) -> Iterator[Bucket]:
    yield from s3_bucket("s3-seaweedfs", seaweedfs, frozenset())


@pytest.fixture
def second(seaweedfs: SeaweedFS) -> Iterator[Bucket]:
    yield from s3_bucket("s3-seaweedfs", seaweedfs, frozenset())


@pytest.fixture
def azure(azurite: Azurite) -> Iterator[Bucket]:
    yield from azure_bucket("azure", azurite, frozenset())


@pytest.fixture
def wire(s3: Bucket) -> Iterator[Wire]:
    line = Wire(s3.port)
    yield line
    line.close()


def both(s3: Bucket, azure: Bucket) -> dict[str, str]:
    return {**s3.settings(), **azure.env, "CLOUD_MIRROR": f"azure://{azure.bucket}/copy"}


def in_mirror(machine: Machine, name: str) -> bool:
    mirror = (machine.status() or {}).get("mirror") or {}
    return bool(mirror) and ((mirror["recovery_point"] or {}).get("checkpoint") == name)


def save(machine: Machine, step: int, size: int = 100_000) -> str:
    name = f"run/gen-{step:06}"
    machine.write_checkpoint(name, {"w.bin": os.urandom(size), "state.json": b"{}"})
    return name


def commit_both(machine: Machine, step: int) -> str:
    name = save(machine, step)
    wait_until(machine.has_committed(name), f"{name} in the store; {machine.log()}")
    wait_until(lambda: in_mirror(machine, name), f"{name} in the mirror; {machine.log()}")
    return name


def rows(machine: Machine, *options: str) -> list[str]:
    listed = machine.syncd("ls", "--json", *options)
    assert listed.returncode == 0, listed.stderr
    return [row["checkpoint"] for row in json.loads(listed.stdout)]


def test_each_commit_is_in_both_and_either_brings_it_back(
    build: Build, s3: Bucket, azure: Bucket
) -> None:
    one = build("one", **both(s3, azure))
    one.start()
    for step in (5, 10):
        name = commit_both(one, step)
    once = one.syncd("--once", "--json")
    assert json.loads(once.stdout)["mirror"]["safe"]
    assert one.stop() == 0
    assert rows(one) == rows(one, "--mirror") == ["run/gen-000010", "run/gen-000005"]
    assert one.syncd("verify", "--mirror").returncode == 0
    checked = one.syncd("check")
    assert checked.returncode == 0, checked.stdout
    assert checked.stdout.count("conditional put  ok") == 2
    one.syncd("prune", "--mirror", "--keep", "1")
    assert (rows(one)[1:], rows(one, "--mirror")) == (["run/gen-000005"], [name])

    alone = build("alone", **both(s3, azure))
    assert alone.syncd("restore", "--mirror").returncode == 0
    gone = build("gone", **{**both(s3, azure), "CLOUD_BUCKET": f"{s3.bucket}-gone"})
    restored = gone.syncd("restore", "--retry-for", "2")
    assert restored.returncode == 0, restored.stderr
    assert "the first store cannot help" in restored.stderr
    assert "of the mirror" in restored.stderr
    expected = tree(one.checkpoints / name)
    assert tree(alone.checkpoints / name) == tree(gone.checkpoints / name) == expected
    for machine in (one, alone, gone):
        said = "".join(file.read_text() for file in machine.disk.glob("*.log"))
        for secret in (*s3.secrets, *azure.secrets):
            assert secret not in said + restored.stderr + checked.stdout + once.stdout


def test_two_buckets_of_one_provider_with_keys_of_their_own(
    build: Build, s3: Bucket, second: Bucket
) -> None:
    own = {f"CLOUD_MIRROR_{name}": value for name, value in second.env.items()}
    broken = {**s3.settings(), "CLOUD_MIRROR": f"s3://{second.bucket}", **own}
    broken["CLOUD_MIRROR_AWS_SECRET_ACCESS_KEY"] = "a-wrong-secret"
    one = build("one", **broken, SYNCD_MAX_LAG="2")
    one.start()
    name = save(one, 5)
    wait_until(one.has_committed(name), f"a commit; {one.log()}")
    wait_until(lambda: "the mirror: " in one.reasons(), f"the reason; {one.log()}")
    assert "SignatureDoesNotMatch" in one.reasons()
    assert "a-wrong-secret" not in one.log() + one.reasons()
    once = one.syncd("--once", "--timeout", "10")
    assert once.returncode == 0, once.stderr
    assert "WARNING: not in the mirror" in once.stderr
    secret = second.env["AWS_SECRET_ACCESS_KEY"]
    (one.disk / ".env").write_text(f"CLOUD_MIRROR_AWS_SECRET_ACCESS_KEY={secret}\n")
    wait_until(lambda: in_mirror(one, name), f"a mirror with the right key; {one.log()}")
    wait_until(lambda: one.reasons() == "[]", f"green; {one.reasons()}")


def test_mirror_that_is_down_for_the_whole_run_costs_the_first_store_nothing(
    build: Build, s3: Bucket, azure: Bucket, wire: Wire, tmp_path: Path
) -> None:
    nowhere = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{wire.port}", "CLOUD_PROVIDER": "azure"}
    settings = {**s3.settings(), **azure.settings(), **nowhere}
    settings["CLOUD_MIRROR"] = f"s3://{s3.bucket}"
    wire.flows.clear()
    one = build("one", **settings)
    one.start()
    for step in (5, 10):
        name = save(one, step)
        wait_until(one.has_committed(name), f"{name}; {one.log()}", 20)
    assert one.stop() == 0
    assert "mirror: not everything is there" in one.log()
    two = build("two", **settings)
    restored = two.syncd("restore", "--retry-for", "3")
    assert restored.returncode == 0, restored.stderr
    assert "it is not known whether the mirror is ahead" in restored.stderr
    assert tree(two.checkpoints / name) == tree(one.checkpoints / name)


def test_first_store_that_is_lost_in_mid_way_is_gone_on_without_and_caught_up(
    build: Build, s3: Bucket, azure: Bucket, wire: Wire
) -> None:
    settings = {**both(s3, azure), **s3.at_port(wire.port)}
    one = build("one", **settings, SYNCD_SHUTDOWN_GRACE="30")
    one.start()
    commit_both(one, 5)
    wire.flows.clear()
    for step in (10, 15):
        name = save(one, step, 10 * MIB)
    wait_until(lambda: in_mirror(one, name), f"{name} in the mirror; {one.log()}", 90)
    assert one.point() == "run/gen-000005"
    one.kill()

    two = build("two", **settings)
    restored = two.syncd("restore", "--retry-for", "3", timeout=200)
    assert "the first store cannot help" in restored.stderr, restored.stderr
    assert tree(two.checkpoints / name) == tree(one.checkpoints / name)
    shutil.rmtree(two.checkpoints)
    wire.flows.set()
    ahead = two.syncd("restore")
    assert "MIRROR IS AHEAD: run/gen-000015" in ahead.stderr, ahead.stderr
    assert tree(two.checkpoints / name) == tree(one.checkpoints / name)

    two.start()
    wait_until(two.has_committed(name), f"the store has what the mirror had; {two.log()}")
    last = commit_both(two, 20)
    assert two.stop() == 0
    assert rows(two) == [last, name, "run/gen-000005"]
    assert rows(two, "--mirror")[:2] == [last, name]
    assert two.syncd("verify").returncode == two.syncd("verify", "--mirror").returncode == 0
    three = build("three", **settings)
    quiet = three.syncd("restore")
    assert f"restored {last}" in quiet.stderr
    assert "mirror" not in quiet.stderr.lower()


def test_daemon_that_is_killed_between_the_two_commits_ends_the_second(
    build: Build, s3: Bucket, azure: Bucket, wire: Wire
) -> None:
    settings = {**azure.settings(), **s3.env, "CLOUD_MIRROR": f"s3://{s3.bucket}"}
    settings |= s3.at_port(wire.port)
    one = build("one", **settings)
    one.start()
    commit_both(one, 5)
    wire.flows.clear()
    name = save(one, 10)
    wait_until(one.has_committed(name), f"{name} in the first; {one.log()}")
    one.kill()
    assert rows(one) == [name, "run/gen-000005"]
    wire.flows.set()
    assert rows(one, "--mirror") == ["run/gen-000005"]
    one.start()
    wait_until(lambda: in_mirror(one, name), f"{name} in the mirror; {one.log()}")
    assert one.stop() == 0
    assert rows(one) == rows(one, "--mirror")


def test_last_flush_serves_a_mirror_whose_first_store_is_silent(
    build: Build, s3: Bucket, azure: Bucket, wire: Wire
) -> None:
    one = build("one", **{**both(s3, azure), **s3.at_port(wire.port)}, SYNCD_SETTLE="1")
    one.start()
    commit_both(one, 5)
    wire.flows.clear()
    name = save(one, 10)
    assert one.stop() == 1, "the first store has not got it"
    wire.flows.set()
    assert rows(one, "--mirror")[0] == name


def test_checkpoints_of_both_that_cannot_be_compared_leave_the_first_store_in_place(
    build: Build, tmp_path: Path
) -> None:
    mirror = {"CLOUD_MIRROR": f"file://{tmp_path}/mirror"}
    (tmp_path / "mirror").mkdir()
    other = build("other", CLOUD_BUCKET=str(tmp_path / "mirror"))
    other.write_checkpoint("another/gen-000100", {"state.json": b"{}"})
    (tmp_path / "bucket").mkdir()
    one = build("one")
    one.write_checkpoint("run/gen-000005", {"state.json": b"{}"})
    assert other.syncd("--once").returncode == one.syncd("--once").returncode == 0
    two = build("two", **mirror)
    restored = two.syncd("restore")
    assert restored.returncode == 0
    assert "which of the two is newer cannot be told" in restored.stderr
    assert "restored run/gen-000005" in restored.stderr


def test_damaged_first_store_is_made_good_by_the_mirror(build: Build, tmp_path: Path) -> None:
    settings = {"CLOUD_MIRROR": f"file://{tmp_path}/mirror"}
    for name in ("bucket", "mirror"):
        (tmp_path / name).mkdir()
    one = build("one", **settings)
    name = save(one, 5)
    assert one.syncd("--once").returncode == 0
    for damaged in (tmp_path / "bucket").rglob("w.bin"):
        damaged.write_bytes(b"rot")
    two = build("two", **settings)
    restored = two.syncd("restore")
    assert restored.returncode == 0, restored.stderr
    assert f"NOT INTACT in the first store: {name}" in restored.stderr
    assert "(commit 1 of the mirror of" in restored.stderr
    assert tree(two.checkpoints / name) == tree(one.checkpoints / name)
    without = build("without").syncd("ls", "--mirror")
    assert without.returncode == 2
    assert "CLOUD_MIRROR: not set, and --mirror is about it" in without.stderr
