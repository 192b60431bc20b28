"""Compression and encryption through real processes, on every store."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from tests.e2e.processes import Machine, wait_until
from tests.servers.fixtures import Bucket
from tests.workbench import tree

MIB = 1024 * 1024
SECRET = b"nobody else may read this"

Build = Callable[..., Machine]


@pytest.fixture
def build(tmp_path: Path, bucket: Bucket) -> Iterator[Build]:
    """Machines that share one bucket, with settings of their own."""
    made: list[Machine] = []

    def make(name: str, **settings: str) -> Machine:
        made.append(Machine(tmp_path / name, {**bucket.settings(), **settings}))
        return made[-1]

    yield make
    for machine in made:
        machine.kill()


def text(size: int) -> bytes:
    """What becomes half as long, and is not the same twice."""
    return SECRET + os.urandom(size // 2).hex().encode()


def fresh_key(folder: Path) -> str:
    path = folder / "key"
    made = Machine(folder, {}).syncd("key", "new", str(path))
    assert made.returncode == 0, made.stderr
    assert path.read_text().strip() not in made.stdout + made.stderr
    return str(path)


def parts_sent(machine: Machine) -> int:
    """Parts that a daemon has written down as arrived."""
    path = f"file:{machine.state / 'journal.sqlite'}?mode=ro"
    try:
        with closing(sqlite3.connect(path, uri=True)) as journal:
            return int(journal.execute("SELECT COUNT(*) FROM parts").fetchone()[0])
    except sqlite3.Error:
        return 0


def objects(bucket: Bucket) -> dict[str, bytes]:
    store = bucket.open()
    found = {info.key: b"".join(store.read(info.key)) for info in store.list("eigen2/")}
    store.close()
    return found


@pytest.mark.parametrize("ways", ["zstd", "key", "zstd and key"])
def test_a_whole_life(build: Build, bucket: Bucket, tmp_path: Path, ways: str) -> None:
    if ways != "zstd and key" and bucket.kind != "local":
        pytest.skip("each way alone is the same on every store")
    settings: dict[str, str] = {}
    if "zstd" in ways:
        settings["SYNCD_COMPRESS"] = "zstd"
    if "key" in ways:
        settings["SYNCD_ENCRYPT_KEY_FILE"] = fresh_key(tmp_path)
    one = build("one", **settings)
    (one.disk / "logs").mkdir()
    (one.disk / "logs/train.log").write_bytes(SECRET + b"\n")
    one.start()
    elite = text(200_000)
    for generation in (5, 10, 15):
        one.write_checkpoint(
            f"run/gen-{generation:06}",
            {
                "state.json": json.dumps({"generation": generation, "x": [0] * 500}).encode(),
                "agents/agent 00.bin": elite,
                "table.csv": text(12_000_000),
                "noise=50%+ü.bin": SECRET + os.urandom(9_000_000),
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
    assert one.stop() == 0, one.log()

    stored = objects(bucket)
    place = "eigen2/checkpoints/run/gen-000015/"
    if ways == "zstd":
        packed = stored[f"{place}table.csv.zst"]
        opened = zstandard.ZstdDecompressor().decompress(packed)
        assert opened == (one.checkpoints / "run/gen-000015/table.csv").read_bytes()
        assert len(packed) < 0.6 * len(opened)
        assert f"{place}noise=50%+ü.bin" in stored, "what gains nothing stays as it is"
    else:
        assert all(SECRET not in content for content in stored.values())
        end = ".zst.enc" if "zstd" in ways else ".enc"
        assert f"{place}table.csv{end}" in stored
        assert "eigen2/logs/train.log.enc" in stored

    two = build("two", **{k: v for k, v in settings.items() if "KEY" in k})
    restored = two.syncd("restore")
    assert restored.returncode == 0, restored.stderr
    assert tree(two.checkpoints / "run") == tree(one.checkpoints / "run/gen-000015", "gen-000015/")
    everything = two.syncd("restore", "--to", "all", "--all")
    assert everything.returncode == 0, everything.stderr
    assert tree(two.disk / "all") == tree(one.checkpoints)
    pruned = two.syncd("prune", "--keep", "1")
    assert pruned.returncode == 0, pruned.stderr
    assert two.syncd("verify").returncode == 0
    assert not [key for key in objects(bucket) if "gen-000005" in key]
    checked = two.syncd("check")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("way", ["zstd", "key"])
def test_upload_that_was_killed_goes_on_where_it_was(
    build: Build, bucket: Bucket, tmp_path: Path, way: str
) -> None:
    if way == "zstd" and bucket.kind not in ("local", "s3-seaweedfs"):
        pytest.skip("what is compressed goes on from its spool, the same on every store")
    settings = {
        "zstd": {"SYNCD_COMPRESS": "zstd"},
        "key": {"SYNCD_ENCRYPT_KEY_FILE": fresh_key(tmp_path)},
    }[way]
    one = build("one", **settings, SYNCD_BWLIMIT="10M", SYNCD_CONCURRENCY="1")
    one.write_checkpoint("run/gen-000005", {"w.bin": text(60 * MIB)})
    one.start()
    wait_until(lambda: parts_sent(one) >= 2, one.log)
    one.kill()
    before = parts_sent(one)
    again = build("one", **settings)
    again.start()
    wait_until(again.has_committed("run/gen-000005"), again.log)
    assert f"goes on: {before} parts are there" in again.log()
    assert again.stop() == 0
    two = build("two", **settings)
    restored = two.syncd("restore")
    assert restored.returncode == 0, restored.stderr
    assert tree(two.checkpoints) == tree(one.checkpoints)
    assert not (one.state / "packing").exists() or not list((one.state / "packing").iterdir())


def test_key_is_in_no_word_that_is_said(tmp_path: Path) -> None:
    words = Path(fresh_key(tmp_path)).read_text().strip()
    settings = {
        "CLOUD_PROVIDER": "local",
        "CLOUD_BUCKET": str(tmp_path / "bucket"),
        "SYNCD_ENCRYPT_KEY": words,
    }
    one = Machine(tmp_path / "one", settings)
    one.write_checkpoint("run/gen-000005", {"w.bin": os.urandom(1000)})
    one.start()
    wait_until(one.has_committed("run/gen-000005"), one.log)
    said = [one.log(), json.dumps(one.status())]
    assert one.stop() == 0
    for command in ("check", "-v ls --json", "-v verify", "-v restore --to two", "-v --once"):
        done = one.syncd(*command.split())
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    said.append((one.disk / "daemon.log").read_text())
    for kept in [*(tmp_path / "bucket").rglob("*"), *one.state.rglob("*")]:
        if kept.is_file():
            assert words.encode() not in kept.read_bytes()
    assert all(words not in text for text in said)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"SYNCD_COMPRESS": "gzip"}, "SYNCD_COMPRESS: 'gzip' is neither 'off' nor 'zstd'"),
        ({"SYNCD_ENCRYPT_KEY": "hunter2"}, "SYNCD_ENCRYPT_KEY: holds no key: 44 characters"),
        ({"SYNCD_ENCRYPT_KEY_FILE": "no/file"}, "SYNCD_ENCRYPT_KEY_FILE: no/file cannot be read"),
    ],
)
def test_setting_that_cannot_be_used_is_named_with_its_remedy(
    tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    one = Machine(tmp_path / "one", {"CLOUD_BUCKET": str(tmp_path / "bucket"), **settings})
    done = one.syncd("--once")
    assert done.returncode == 2
    assert words in done.stderr
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize(
    ("package", "settings", "remedy"),
    [
        ("zstandard", {"SYNCD_COMPRESS": "zstd"}, "pip install 'syncd[zstd]'"),
        ("cryptography", {"SYNCD_ENCRYPT_KEY": "made below"}, "pip install 'syncd[encrypt]'"),
    ],
)
def test_package_that_is_missing_is_named_with_its_remedy(
    tmp_path: Path, package: str, settings: dict[str, str], remedy: str
) -> None:
    blocker = tmp_path / "without"
    blocker.mkdir()
    (blocker / f"{package}.py").write_text(f"raise ImportError('no {package}')\n")
    if "SYNCD_ENCRYPT_KEY" in settings:
        settings = {"SYNCD_ENCRYPT_KEY_FILE": fresh_key(tmp_path)}
    one = Machine(tmp_path / "one", {"CLOUD_BUCKET": str(tmp_path / "bucket"), **settings})
    one.environ["PYTHONPATH"] = f"{blocker}{os.pathsep}{one.environ['PYTHONPATH']}"
    one.write_checkpoint("run/gen-000005", {"w.bin": b"content"})
    done = one.syncd("--once")
    assert done.returncode == 1, done.stderr
    assert remedy in done.stderr
    assert one.syncd("check").returncode == 1
    assert not list((tmp_path / "bucket").rglob("*.bin"))


def test_data_file_is_encoded_too(tmp_path: Path) -> None:
    settings = {
        "CLOUD_BUCKET": str(tmp_path / "bucket"),
        "SYNCD_COMPRESS": "zstd",
        "SYNCD_ENCRYPT_KEY_FILE": fresh_key(tmp_path),
    }
    one = Machine(tmp_path / "one", settings)
    for content in (text(20_000_000), os.urandom(20_000_000), text(1000)):
        (one.disk / "market.csv").write_bytes(content)
        assert one.syncd("data", "put", "market.csv").returncode == 0
        done = one.syncd("data", "get", "market.csv")
        assert done.returncode == 0, done.stderr
        assert "verified" in done.stderr
        assert (one.disk / "data/market.csv").read_bytes() == content
        for path in (tmp_path / "bucket/eigen2/data").iterdir():
            assert SECRET not in path.read_bytes()
