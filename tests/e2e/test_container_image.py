"""The image itself: the project's own Dockerfile built and run, its bucket outside of it.

What is needed for it and how: tests/container. Where it cannot be built, the reason is printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.container import base, image, tools
from tests.container.engine import Container, Engine
from tests.e2e.processes import wait_until
from tests.servers.fixtures import fresh_name
from tests.servers.s3 import SECRET, SeaweedFS
from trainer.synthetic import write_market

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]

CONFIG = "/workspace/eigen2/supervisord.conf"
SMALL = {
    "TRAINER_POPULATION": "4",
    "TRAINER_UPDATES": "4",
    "TRAINER_EPISODES": "2",
    "TRAINER_HORIZON": "20",
    "TRAINER_CHECKPOINT_EVERY": "2",
    "SYNCD_SETTLE": "0.5",
    "SYNCD_HTTP": "off",
}
TRAIN = ("--cpu", "--resume", "--data", "data/market.csv")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    reason = tools.prepare()
    if reason:
        pytest.skip(reason)
    engine = Engine()
    yield engine
    engine.clear()


@pytest.fixture(scope="module")
def built(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image, built in a folder with keys and data in it."""
    base.ensure_base(engine)
    folder = image.context(tmp_path_factory.mktemp("context"))
    engine.build(folder, image.IMAGE, image.build_binds(engine))
    return image.IMAGE


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    folder.chmod(0o755)  # for any user of the container
    write_market(folder / "market.csv", days=200, tickers=3, seed=1)
    return folder


class Bucket:
    """A bucket on the S3 server outside, seen by boto3."""

    def __init__(self, server: SeaweedFS) -> None:
        self.name = fresh_name()
        self._client = server.client()
        self._client.create_bucket(Bucket=self.name)
        self.settings = {**server.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": self.name}

    def commits(self) -> list[str]:
        """The committed checkpoints, the oldest first; claims are none."""
        listed = self._client.list_objects_v2(Bucket=self.name, Prefix="eigen2/.syncd/commits/")
        records = [self._read(entry["Key"]) for entry in listed.get("Contents", ())]
        return [record["checkpoint"] for record in records if "checkpoint" in record]

    def _read(self, key: str) -> dict[str, Any]:
        found = json.loads(self._client.get_object(Bucket=self.name, Key=key)["Body"].read())
        assert isinstance(found, dict)
        return found

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def bucket(seaweedfs: SeaweedFS) -> Iterator[Bucket]:
    bucket = Bucket(seaweedfs)
    yield bucket
    bucket.close()


Start = Callable[..., Container]


@pytest.fixture
def start(
    engine: Engine, built: str, bucket: Bucket, data: Path, request: pytest.FixtureRequest
) -> Iterator[Start]:
    """Starts a machine with the image, the data and the bucket."""
    made: list[Container] = []

    def run(*words: str, options: tuple[str, ...] = (), **more: str) -> Container:
        name = f"test-{bucket.name}-{len(made)}"
        mount = ("--volume", f"{data}:/workspace/eigen2/data:ro", *options)
        environ = {**bucket.settings, **SMALL, **more}
        made.append(Container(engine, name, built, words or TRAIN, environ, mount))
        return made[-1]

    yield run
    for container in made:
        container.kill()


def test_both_programs_run_and_a_stop_within_the_grace_commits_the_last_checkpoint(
    start: Start, bucket: Bucket, engine: Engine
) -> None:
    one = start(TRAINER_GENERATIONS="100000")
    wait_until(lambda: bool(bucket.commits()) or not one.running(), "a commit", 180)
    assert one.running(), one.logs()

    status = one.exec("supervisorctl", "-c", CONFIG, "status")
    states = {line.split()[0]: line.split()[1] for line in status.stdout.splitlines()}
    assert states == {"keeper": "RUNNING", "syncd": "RUNNING", "trainer": "RUNNING"}
    health = one.exec("supervisorctl", "-c", CONFIG, "sync")
    assert health.returncode == 0, health.stdout
    assert health.stdout.startswith("healthy")
    check = engine.run("podman", "healthcheck", "run", one.name, check=False)
    assert check.returncode == 0, check.stdout + check.stderr

    assert one.stop() == 143
    said = one.logs()
    assert said.index("stopped: trainer") < said.index("stopped: syncd")
    newest = one_line(said, "  checkpoints ").rpartition("newest ")[2]
    assert newest in bucket.commits(), said
    assert f"recovery point  {newest} " in said
    assert SECRET not in said

    # the machine is gone with its disk; another one goes on from the bucket
    one.kill()
    generation = int(newest.rpartition("gen-")[2])
    two = start(TRAINER_GENERATIONS=str(generation + 1))
    assert two.wait() == 0, two.logs()
    assert f"restored {newest} " in two.logs()
    assert f"at generation {generation} " in two.logs()
    assert bucket.commits()[-1].endswith(f"gen-{generation + 1:06}")


def one_line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_a_finished_training_ends_the_container_with_0_and_everything_safe(
    start: Start, bucket: Bucket
) -> None:
    done = start(TRAINER_GENERATIONS="4")
    assert done.wait() == 0, done.logs()
    assert sorted(name.rpartition("gen-")[2] for name in bucket.commits()) == ["000002", "000004"]
    assert "nothing: all that is complete is in the bucket" in done.logs()


def test_a_refusal_ends_the_container_with_2(start: Start) -> None:
    refused = start(TRAINER_POPULATION="-1")
    assert refused.wait() == 2, refused.logs()
    assert "refused its settings" in refused.logs()


def test_a_trainer_that_crashes_again_and_again_ends_it_with_its_code(
    start: Start, tmp_path: Path
) -> None:
    broken = tmp_path / "__main__.py"
    broken.write_text("import sys\nprint('a life', sys.argv[1:], flush=True)\nsys.exit(7)\n")
    place = "/workspace/eigen2/trainer/__main__.py"
    crashed = start(
        options=("--volume", f"{broken}:{place}:ro"),
        TRAINER_RESTARTS="2",
        TRAINER_RESTART_DELAY="0.1",
    )
    assert crashed.wait() == 7, crashed.logs()
    assert crashed.logs().count("a life") == 3
    assert "crashed 3 times in a row" in crashed.logs()


def test_a_machine_without_a_gpu_ends_with_12_and_the_remedy(start: Start) -> None:
    alone = start("--data", "data/market.csv")
    assert alone.wait() == 12, alone.logs()
    assert "--gpus all" in alone.logs()


def test_any_user_may_run_it(start: Start, bucket: Bucket) -> None:
    done = start(options=("--user", "1000:1000"), TRAINER_GENERATIONS="2")
    assert done.wait() == 0, done.logs()
    assert len(bucket.commits()) == 1


def test_the_torch_of_the_base_is_the_torch_that_trains(start: Start) -> None:
    words = "import torch; print('torch', torch.__version__, torch.__file__)"
    asked = start("-c", words, options=("--entrypoint", "/opt/venv/bin/python"))
    assert asked.wait() == 0
    told = re.search(r"^torch (\S+) (\S+)$", asked.logs(), re.MULTILINE)  # it may warn as well
    assert told, asked.logs()
    version, place = told.groups()
    assert "dist-packages" in place
    assert version.startswith(base.base_name().partition(":")[2].partition("-")[0])


def test_no_secret_and_no_data_is_in_any_layer_or_in_the_history(
    engine: Engine, built: str
) -> None:
    needle = image.DECOY.encode()
    below = {layer.parent.name for layer in engine.layers(base.base_name())}
    ours = [layer for layer in engine.layers(built) if layer.parent.name not in below]
    assert len(ours) >= 5, "the layers of the Dockerfile"
    files = [path for layer in ours for path in layer.rglob("*") if path.is_file()]
    assert any(path.name == "start_vast.sh" for path in files)
    found = [path for path in files if not path.is_symlink() and needle in path.read_bytes()]
    assert found == []
    said = json.dumps(engine.inspect(built))
    said += engine.run("podman", "history", "--no-trunc", "--format", "json", built).stdout
    assert image.DECOY not in said
    names = {path.relative_to(layer).as_posix() for layer in ours for path in layer.rglob("*")}
    project = "workspace/eigen2"
    for absent in (".env", "tests", "docs", ".git", "data/market.csv", "checkpoints/run"):
        assert f"{project}/{absent}" not in names


def test_health_stop_signal_and_entry_point_are_part_of_the_image(
    engine: Engine, built: str
) -> None:
    found = engine.inspect(built)
    assert found["Config"]["StopSignal"] == "SIGTERM"
    assert found["Config"]["Entrypoint"] == ["bash", "/workspace/eigen2/start_vast.sh"]
    assert found["Config"]["Cmd"] == ["--resume"]
    assert found["Healthcheck"]["Test"][-1] == "sync"
