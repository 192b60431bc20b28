"""Every fault turns ``/healthz`` red with the right reason within seconds; a clean day never does.

The faults are injected into real daemons: real stores, real disks, a line in between that does to
connections what networks do.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from syncd.config import Environment, load_settings
from syncd.engine import Engine, open_journal
from syncd.health import Health
from syncd.lag import Lag
from tests.clocks import FakeClock
from tests.e2e.processes import Machine, wait_until
from tests.e2e.test_disk_and_clock import clock as wrong_clock
from tests.servers.fixtures import fresh_name
from tests.servers.process import free_port
from tests.servers.s3 import Rclone, SeaweedFS
from tests.servers.wires import Wire

BOUND = 10.0
"""Seconds from the fault to the red answer."""

MIB = 2**20


def refusal(status: str, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


@dataclass
class Rig:
    """One machine with a daemon, and all that can be broken around it."""

    folder: Path
    request: pytest.FixtureRequest
    machines: list[Machine] = field(default_factory=list)
    wires: list[Wire] = field(default_factory=list)
    mounted: list[Path] = field(default_factory=list)
    generation: int = 0
    since: float = 0.0
    """When the fault began."""

    @property
    def one(self) -> Machine:
        return self.machines[0]

    @property
    def bucket(self) -> Path:
        return self.folder / "bucket"

    @property
    def wire(self) -> Wire:
        return self.wires[0]

    def build(self, **settings: str) -> Machine:
        self.bucket.mkdir(exist_ok=True)
        given = {
            "CLOUD_PROVIDER": "local",
            "CLOUD_BUCKET": str(self.bucket),
            "SYNCD_HTTP": f"127.0.0.1:{free_port()}",
            "SYNCD_SETTLE": "0.1",
            **settings,
        }
        self.machines.append(Machine(self.folder / f"machine-{len(self.machines)}", given))
        return self.machines[-1]

    def begin(self, **settings: str) -> None:
        """A daemon on a directory, well, with its first commit."""
        self.build(**settings)
        self.one.start()
        self.commit()

    def s3(self, **settings: str) -> dict[str, str]:
        """The settings for a bucket behind a wire."""
        server: SeaweedFS = self.request.getfixturevalue("seaweedfs")
        name = fresh_name()
        client = server.client()
        client.create_bucket(Bucket=name)
        client.close()
        self.wires.append(Wire(server.port))
        url = server.url.replace(str(server.port), str(self.wire.port))
        cloud = {**server.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": name}
        return {**cloud, "AWS_ENDPOINT_URL": url, **settings}

    def start_broken(self, **settings: str) -> None:
        """A daemon that meets its fault at once."""
        self.build(**settings)
        self.write()
        self.one.start()
        self.since = time.monotonic()

    def write(self, size: int = 10, machine: Machine | None = None) -> str:
        """A checkpoint."""
        self.generation += 5
        name = f"run/gen-{self.generation:06}"
        files = {"w.bin": b"weights---" * (size // 10), "state.json": b"{}"}
        (machine or self.one).write_checkpoint(name, files)
        return name

    def commit(self, machine: Machine | None = None) -> None:
        """A checkpoint that arrives."""
        machine = machine or self.one
        wait_until(machine.has_committed(self.write(machine=machine)), machine.log())

    def now(self) -> None:
        self.since = time.monotonic()

    def small_disk(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
        if subprocess.run(command, check=False).returncode:
            pytest.skip("only root can mount a small disk")
        self.mounted.append(folder)
        return folder

    def without_roots_rights(self) -> list[str]:
        if shutil.which("setpriv") is None or os.getuid():
            pytest.skip("needs setpriv, and root to give rights up")
        caps = "-dac_override,-dac_read_search"
        return ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"]

    def healthz(self) -> tuple[int, str]:
        try:
            url = f"http://{self.one.environ['SYNCD_HTTP']}/healthz"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def close(self) -> None:
        for machine in self.machines:
            machine.kill()
        for wire in self.wires:
            wire.flows.set()
            wire.close()
        for folder in self.mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(tmp_path, request)
    yield rig
    rig.close()


# -- the faults: each begins one, and says which words the reason must hold


def fill(folder: Path) -> None:
    with (folder / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def bucket_is_not_there(rig: Rig) -> str:
    rig.start_broken(CLOUD_BUCKET=str(rig.folder / "not/mounted"))
    return "does not exist"


def volume_goes_away(rig: Rig) -> str:
    volume = rig.folder / "volume"
    volume.mkdir()
    rig.begin(CLOUD_BUCKET=str(volume / "bucket"))
    volume.rename(rig.folder / "gone")
    rig.now()
    rig.write()
    return str(volume)


def bucket_is_full(rig: Rig) -> str:
    rig.begin(CLOUD_BUCKET=str(rig.small_disk("small")))
    rig.now()
    rig.write(2 * MIB)
    return "No space left"


def bucket_turns_read_only(rig: Rig) -> str:
    small = rig.small_disk("small")
    rig.begin(CLOUD_BUCKET=str(small))
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    rig.now()
    rig.write()
    return "Read-only file system"


def bucket_may_not_be_written(rig: Rig) -> str:
    rig.build()
    through = rig.without_roots_rights()
    rig.bucket.chmod(0o500)
    rig.write()
    rig.one.start(*through)
    rig.now()
    return "Permission denied"


def name_is_not_utf8(rig: Rig) -> str:
    rig.begin()
    rig.now()
    (rig.one.checkpoints / os.fsdecode(b"best-\xff.bin")).write_bytes(b"weights")
    return "not UTF-8"


def name_is_too_long(rig: Rig) -> str:
    rig.begin()
    rig.now()
    path = rig.one.checkpoints / "/".join("d" * 240 for _ in range(5)) / "w.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return "stores take 1024"


def file_may_not_be_read(rig: Rig) -> str:
    rig.build()
    rig.one.start(*rig.without_roots_rights())
    rig.commit()
    rig.now()
    path = rig.one.checkpoints / "other/w.bin"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    path.chmod(0)
    return "cannot be read"


def log_name_is_not_utf8(rig: Rig) -> str:
    rig.begin()
    (rig.one.disk / "logs").mkdir(exist_ok=True)
    rig.now()
    (rig.one.disk / "logs" / os.fsdecode(b"train-\xff.log")).write_text("a line\n")
    return "a log's name is not UTF-8"


def journals_disk_turns_read_only(rig: Rig) -> str:
    small = rig.small_disk("small")
    rig.build(SYNCD_STATE_DIR=str(small))
    rig.one.state = small
    rig.one.start()
    rig.commit()
    fill(small)
    rig.now()
    for _ in range(3):
        rig.write()
    return "the journal cannot be written"


def another_machine_takes_over(rig: Rig) -> str:
    rig.begin()
    two = rig.build()
    assert two.syncd("restore").returncode == 0
    two.start()
    rig.commit(two)
    rig.now()
    rig.write()
    return "another machine"


def two_machines_on_a_store_that_cannot_fence(rig: Rig) -> str:
    server: Rclone = rig.request.getfixturevalue("rclone")
    name = fresh_name()
    client = server.client()
    client.create_bucket(Bucket=name)
    client.close()
    cloud = {**server.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": name}
    rig.begin(**cloud)
    two = rig.build(**cloud)
    two.start()
    rig.commit(two)
    rig.now()
    rig.write()
    return "written side by side"


def settings_file_is_spoilt(rig: Rig) -> str:
    rig.start_broken(CLOUD_BUCKET=str(rig.folder / "not/mounted"))
    wait_until(lambda: rig.healthz()[0] == 503, "the first fault")
    rig.now()
    (rig.one.disk / ".env").write_text("SYNCD_BWLIMIT=fast\n")
    return "SYNCD_BWLIMIT"


def commit_is_damaged_in_the_store(rig: Rig) -> str:
    rig.begin()
    (path,) = rig.bucket.glob("eigen2/checkpoints/run/*/w.bin")
    path.write_bytes(b"other words")
    rig.now()
    assert rig.one.syncd("verify").returncode == 3
    return "is not intact in the store"


def bucket_was_never_made(rig: Rig) -> str:
    rig.start_broken(**rig.s3(CLOUD_BUCKET="never-made"))
    return "never-made"


def bucket_is_deleted(rig: Rig) -> str:
    settings = rig.s3()
    rig.begin(**settings)
    client = rig.request.getfixturevalue("seaweedfs").client()
    name = settings["CLOUD_BUCKET"]
    for item in client.list_objects_v2(Bucket=name)["Contents"]:
        client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)
    client.close()
    rig.now()
    rig.write()
    return "NoSuchBucket"


def secret_is_wrong(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_SECRET_ACCESS_KEY="not-the-secret"))
    return "AWS_SECRET_ACCESS_KEY"


def key_is_unknown(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_ACCESS_KEY_ID="AKNOBODY"))
    return "AWS_ACCESS_KEY_ID"


def half_of_the_credentials(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_SECRET_ACCESS_KEY=""))
    return "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def nobody_listens(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_ENDPOINT_URL="http://127.0.0.1:9"))
    return "cannot be reached"


def endpoint_speaks_no_tls(rig: Rig) -> str:
    settings = rig.s3()
    url = settings["AWS_ENDPOINT_URL"].replace("http:", "https:")
    rig.start_broken(**{**settings, "AWS_ENDPOINT_URL": url})
    return "TLS"


def endpoint_is_no_address(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_ENDPOINT_URL="not an address"))
    return "the endpoint cannot be used"


def sdk_is_not_installed(rig: Rig) -> str:
    hidden = rig.folder / "hidden"
    hidden.mkdir()
    for name in ("boto3", "botocore"):
        words = f"raise ModuleNotFoundError({name!r}, name={name!r})\n"
        (hidden / f"{name}.py").write_text(words)
    path = os.pathsep.join((str(hidden), str(Path(__file__).parents[2])))
    rig.start_broken(**rig.s3(PYTHONPATH=path))
    return "pip install"


def clock_is_wrong(rig: Rig) -> str:
    moment = rig.folder / "clock"
    moment.write_text("+0")
    rig.begin(**rig.s3(**wrong_clock(file=moment)))
    moment.write_text("+20m")
    rig.now()
    rig.write()
    return "the clock of this machine"


def line_breaks(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.cut_after = 0
    rig.now()
    rig.write()
    return "cannot be reached"


def store_is_overloaded(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.refuse = refusal("503 Service Unavailable", "SlowDown")
    rig.now()
    rig.write()
    return "SlowDown"


def rights_are_taken(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.refuse = refusal("403 Forbidden", "AccessDenied")
    rig.now()
    rig.write()
    return "AccessDenied"


def session_ends(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.refuse = refusal("400 Bad Request", "ExpiredToken")
    rig.now()
    rig.write()
    return "ExpiredToken"


def quota_is_used_up(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.refuse = refusal("403 Forbidden", "QuotaExceeded")
    rig.now()
    rig.write()
    return "QuotaExceeded"


def bytes_change_on_their_way(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.replace = (b"weights---", b"weights-+-")
    rig.now()
    rig.write(1000)
    return "changed on its way"


def black_hole(rig: Rig) -> str:
    rig.begin(**rig.s3(SYNCD_MAX_LAG="5"))
    rig.wire.flows.clear()
    rig.now()
    rig.write()
    return "SYNCD_MAX_LAG=5"


def line_is_too_thin_for_the_users_bound(rig: Rig) -> str:
    rig.begin(**rig.s3(SYNCD_MAX_LAG="5"))
    rig.wire.rate = 50_000
    rig.now()
    rig.write(4 * MIB)
    return "SYNCD_MAX_LAG=5"


def google_key_file_is_missing(rig: Rig) -> str:
    rig.start_broken(
        CLOUD_PROVIDER="gcs",
        CLOUD_BUCKET="b",
        GOOGLE_APPLICATION_CREDENTIALS=str(rig.folder / "no.json"),
    )
    return "GOOGLE_APPLICATION_CREDENTIALS"


def azure_connection_string_is_cut(rig: Rig) -> str:
    rig.start_broken(
        CLOUD_PROVIDER="azure", CLOUD_BUCKET="b", AZURE_STORAGE_CONNECTION_STRING="AccountNam"
    )
    return "AZURE_STORAGE_CONNECTION_STRING"


FAULTS: tuple[Callable[[Rig], str], ...] = (
    bucket_is_not_there,
    volume_goes_away,
    bucket_is_full,
    bucket_turns_read_only,
    bucket_may_not_be_written,
    name_is_not_utf8,
    name_is_too_long,
    file_may_not_be_read,
    log_name_is_not_utf8,
    journals_disk_turns_read_only,
    another_machine_takes_over,
    two_machines_on_a_store_that_cannot_fence,
    settings_file_is_spoilt,
    commit_is_damaged_in_the_store,
    bucket_was_never_made,
    bucket_is_deleted,
    secret_is_wrong,
    key_is_unknown,
    half_of_the_credentials,
    nobody_listens,
    endpoint_speaks_no_tls,
    endpoint_is_no_address,
    sdk_is_not_installed,
    clock_is_wrong,
    line_breaks,
    store_is_overloaded,
    rights_are_taken,
    session_ends,
    quota_is_used_up,
    bytes_change_on_their_way,
    black_hole,
    line_is_too_thin_for_the_users_bound,
    google_key_file_is_missing,
    azure_connection_string_is_cut,
)


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_red_with_its_reason_in_time(rig: Rig, fault: Callable[[Rig], str]) -> None:
    words = fault(rig)

    def is_red() -> bool:
        status, text = rig.healthz()
        return status == 503 and words in text

    try:
        wait_until(is_red, repr(words), patience=15)
    except AssertionError:
        pytest.fail(f"not red for {words!r} but {rig.one.reasons()}; {rig.one.log()}")
    took = time.monotonic() - rig.since
    print(f"{fault.__name__}: red after {took:.1f} s")
    assert took <= BOUND, rig.one.log()
    remedies = [reason["hint"] for reason in json.loads(rig.one.reasons())]
    assert all(remedies), "every reason has a remedy"


def test_there_are_enough_faults() -> None:
    assert len(FAULTS) >= 25


# -- a clean day


class Day(FakeClock):
    """A trainer saves every five minutes; health is asked each second that passes."""

    def __init__(self, root: Path, every: float, size: int) -> None:
        super().__init__()
        self._root, self._every, self._size = root, every, size
        self._next = self.now()
        self._busy = threading.RLock()
        self.ends = self.now() + 24 * 3600.0
        self.health: Health | None = None
        self.red: list[str] = []
        self.saves = self.beats = 0

    def sleep(self, seconds: float) -> None:
        until = self.now() + seconds
        while (step := min(1.0, until - self.now())) > 0:
            super().sleep(step)
            del self.waits[:]
            with self._busy:
                if self.now() >= self._next and self.now() < self.ends:
                    self._next += self._every
                    self._save()
                if self.health:
                    self.health.beat()
                    self.beats += 1
                    self.red += [reason.message for reason in self.health.reasons()]

    def _save(self) -> None:
        self.saves += 1
        target = self._root / f"run/gen-{self.saves:06}"
        aside = target.with_name(f".tmp-{target.name}")
        aside.mkdir(parents=True)
        (aside / "w.bin").write_bytes(self.saves.to_bytes(4, "big") * (self._size // 4))
        (aside / "state.json").write_text("{}")
        for path in (*aside.iterdir(), aside):
            os.utime(path, (self.now(), self.now()))
        aside.rename(target)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("every", "size", "bwlimit"),
    [(300.0, 40_000, ""), (1800.0, 6 * MIB, "5K")],
    ids=["a save in five minutes", "each save takes 20 minutes to send"],
)
def test_clean_day_is_never_red(tmp_path: Path, every: float, size: int, bwlimit: str) -> None:
    root = tmp_path / "checkpoints"
    root.mkdir()
    (tmp_path / "bucket").mkdir()
    environ = {
        "CLOUD_BUCKET": str(tmp_path / "bucket"),
        "CHECKPOINT_DIR": str(root),
        "LOG_DIR": str(tmp_path / "logs"),
        "SYNCD_STATE_DIR": str(tmp_path / "state"),
        "SYNCD_KEEP_LAST": "5",
        "SYNCD_KEEP_LAST_LOCAL": "5",
        "SYNCD_BWLIMIT": bwlimit,
    }
    settings = load_settings(Environment(environ, tmp_path / "no-file"))
    day = Day(root, every, size)
    health = day.health = Health(day, lag=Lag(settings.max_lag, settings.bwlimit))
    engine = Engine(settings, open_journal(settings), health, day, threading.Event())
    engine.connect(settings)
    while day.now() < day.ends:
        look = engine.step(lambda: False)
        day.sleep(look.next_interval(5.0))
    engine.disconnect()
    state = health.snapshot()
    print(f"{day.saves} saves, {state['commits']} commits, {day.beats} looks, {len(day.red)} red")
    assert day.red == []
    assert day.beats > 80_000
    assert state["commits"] >= day.saves - 2
