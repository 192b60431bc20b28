"""Against each store: commit, die, go on, verify, restore, and home again by plain tools."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from syncd.errors import NotFound
from tests.e2e.processes import Machine, wait_until
from tests.servers.fixtures import KINDS, Bucket, fresh_bucket
from tests.workbench import tree

Build = Callable[[str], Machine]


@pytest.fixture(params=KINDS)
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    """A fresh bucket, once on every kind of store."""
    yield from fresh_bucket(request, tmp_path)


@pytest.fixture
def build(tmp_path: Path, bucket: Bucket) -> Iterator[Build]:
    """Machines that share one bucket."""
    made: list[Machine] = []

    def make(name: str) -> Machine:
        made.append(Machine(tmp_path / name, bucket.settings()))
        return made[-1]

    yield make
    for machine in made:
        machine.kill()


def test_three_checkpoints_two_lives_and_the_way_home(
    build: Build, bucket: Bucket, tmp_path: Path
) -> None:
    one = build("one")
    one.start()
    elite = os.urandom(300_000)
    for generation in (5, 10, 15):
        one.write_checkpoint(
            f"run/gen-{generation:06}",
            {
                "state.json": json.dumps({"generation": generation}).encode(),
                "agents/agent 00.bin": elite,
                "replay=50%+ü.bin": os.urandom(9_000_000),  # more than one part
            },
        )
        name = f"run/gen-{generation:06}"
        wait_until(one.has_committed(name), f"commit of {name}; {one.log()}")
        if generation == 10:
            one.kill()
            one.start()
    verified = one.syncd("verify", "--json")
    assert verified.returncode == 0, verified.stderr
    assert len(json.loads(verified.stdout)["intact"]) == 3
    listed = json.loads(one.syncd("ls", "--json").stdout)
    assert [row["checkpoint"] for row in listed] == [
        "run/gen-000015",
        "run/gen-000010",
        "run/gen-000005",
    ]
    assert one.stop() == 0

    two = build("two")
    restored = two.syncd("restore")
    assert restored.returncode == 0, restored.stderr
    assert "every byte verified" in restored.stderr
    assert tree(two.checkpoints / "run") == tree(one.checkpoints / "run/gen-000015", "gen-000015/")
    everything = two.syncd("restore", "--to", "all", "--all")
    assert everything.returncode == 0, everything.stderr
    assert tree(two.disk / "all") == tree(one.checkpoints)

    assert plain_tool(bucket, tmp_path / "home") == tree(one.checkpoints)


def plain_tool(bucket: Bucket, home: Path) -> dict[str, bytes]:
    """Bring the plain keys home without syncd, by what users of that store have."""
    prefix = "eigen2/checkpoints/"
    if bucket.provider == "local":
        return tree(Path(bucket.bucket) / prefix)
    if bucket.provider == "s3":
        aws = Path(__file__).parents[1] / ".servers/bin/aws"
        if not aws.exists():
            pytest.fail("the aws command is missing: run tests/servers/install.sh")
        subprocess.run(
            [aws, "s3", "sync", f"s3://{bucket.bucket}/{prefix}", home, "--only-show-errors"],
            env={**os.environ, **bucket.env},
            check=True,
            timeout=120,
        )
        return tree(home)
    if bucket.provider == "gcs":
        blobs = bucket.raw.bucket(bucket.bucket).list_blobs(prefix=prefix)
        return {b.name.removeprefix(prefix): b.download_as_bytes() for b in blobs}
    container = bucket.raw.get_container_client(bucket.bucket)
    return {
        name.removeprefix(prefix): container.download_blob(name).readall()
        for name in container.list_blob_names(name_starts_with=prefix)
    }


def test_checkpoint_overwritten_in_place_is_whole_at_every_commit(
    build: Build, bucket: Bucket, tmp_path: Path
) -> None:
    one = build("one")
    one.start()
    for generation in range(1, 4):
        for name in ("agent_0.pth", "agent_1.pth"):
            path = one.checkpoints / "eigen/population" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x80\x02" + bytes([generation]) * 1000 + b".")
        (one.checkpoints / "eigen/trainer_state.json").write_text(f'{{"g": {generation}}}')
        wait_until(
            lambda: (
                one.syncd("--once").returncode == 0
                and (one.status() or {}).get("recovery_point", {}) is not None
                and not (one.status() or {"incomplete": [1]})["incomplete"]
            ),
            one.log(),
        )
    listed = json.loads(one.syncd("ls", "--json").stdout)
    assert {row["checkpoint"] for row in listed} == {"eigen"}
    assert one.syncd("verify").returncode == 0
    assert plain_tool(bucket, tmp_path / "home") == tree(one.checkpoints)
    two = build("two")
    for row in listed:
        target = f"at-{row['seq']}"
        assert two.syncd("restore", "--at", f"#{row['seq']}", "--to", target).returncode == 0
        got = tree(two.disk / target / "eigen")
        generation = json.loads(got["trainer_state.json"])["g"]
        assert all(
            data == b"\x80\x02" + bytes([generation]) * 1000 + b"."
            for name, data in got.items()
            if name.endswith(".pth")
        )


def test_check_proves_the_settings(build: Build) -> None:
    checked = build("one").syncd("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "everything works" in checked.stdout


def test_prune_keeps_the_newest(build: Build, bucket: Bucket) -> None:
    one = build("one")
    for generation in (5, 10, 15):
        one.write_checkpoint(f"run/gen-{generation:06}", {"state.json": b"{}"})
    assert one.syncd("--once").returncode == 0
    assert one.syncd("prune", "--keep", "1").returncode == 0
    rows = json.loads(one.syncd("ls", "--json").stdout)
    assert [row["checkpoint"] for row in rows] == ["run/gen-000015"]
    assert one.syncd("verify").returncode == 0
    assert set(plain_tool(bucket, one.disk / "home")) == {"run/gen-000015/state.json"}


def test_put_there_without_syncd_comes_back_unproven(build: Build, bucket: Bucket) -> None:
    store = bucket.open()
    store.put("eigen2/checkpoints/run/gen-000005/state.json", b'{"generation": 5}')
    store.put("eigen2/checkpoints/run/gen-000005/weights.bin", b"weights")
    store.put("eigen2/checkpoints/run/gen-000010/state.json", b'{"generation": ')
    store.close()
    two = build("two")
    restored = two.syncd("restore")
    assert restored.returncode == 0, restored.stderr
    assert "UNPROVEN" in restored.stderr
    assert "refused run/gen-000010" in restored.stderr
    assert tree(two.checkpoints) == {
        "run/gen-000005/state.json": b'{"generation": 5}',
        "run/gen-000005/weights.bin": b"weights",
    }
    assert two.syncd("--once").returncode == 0
    assert two.syncd("verify").returncode == 0


def test_half_of_a_first_checkpoint_never_comes_back(build: Build, bucket: Bucket) -> None:
    one = build("one")
    one.start()
    store = bucket.open()
    wait_until(lambda: bool([*store.list("eigen2/.syncd/began")]), f"a mark; {one.log()}")
    one.kill()
    store.put("eigen2/checkpoints/mine/model.bin", b"as the daemon did until its machine was lost")
    store.close()
    two = build("two")
    restored = two.syncd("restore")
    assert restored.returncode == 0, restored.stderr
    assert "passed over 1 files that were being sent" in restored.stderr
    assert tree(two.checkpoints) == {}


def test_logs_survive_a_kill_and_are_whole_at_the_end(build: Build, bucket: Bucket) -> None:
    one, store = build("one"), bucket.open()
    log, database = one.disk / "logs/run/train.jsonl", one.disk / "logs/run/runs.db"
    log.parent.mkdir(parents=True)
    one.start()

    def there(path: str = "run/train.jsonl") -> bytes:
        try:
            return b"".join(store.read(f"eigen2/logs/{path}"))
        except NotFound:
            return b""

    with log.open("ab", buffering=0) as file:
        for life in range(2):
            file.write(b'{"life": %d}\n{"li' % life)
            wait_until(lambda: there().endswith(b'{"life": %d}\n' % life), one.log())  # noqa: B023
            one.kill()
            file.write(b'fe": "after the kill"}\n')
            one.start()
        with closing(sqlite3.connect(database, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE t (n)")
            db.execute("INSERT INTO t VALUES (7)")
            file.write(b"the last words, without an end")
            assert one.stop() == 0
    assert there() == log.read_bytes()
    (one.disk / "copy.db").write_bytes(there("run/runs.db"))
    with closing(sqlite3.connect(one.disk / "copy.db")) as db:
        assert db.execute("SELECT n FROM t").fetchall() == [(7,)]
    assert {info.key for info in store.list("eigen2/logs/")} == {
        "eigen2/logs/run/train.jsonl",
        "eigen2/logs/run/runs.db",
    }
    store.close()
