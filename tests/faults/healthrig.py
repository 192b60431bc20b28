"""One machine with a daemon, and all around it that can be broken: disks, lines, stores."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.e2e.processes import Machine, wait_until
from tests.servers.fixtures import fresh_name
from tests.servers.process import free_port
from tests.servers.s3 import SeaweedFS
from tests.servers.wires import Wire


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
        wait_until(machine.has_committed(self.write(machine=machine)), machine.log)

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
        except urllib.error.URLError:
            return 0, "nobody listens yet"

    def close(self) -> None:
        for machine in self.machines:
            machine.kill()
        for wire in self.wires:
            wire.flows.set()
            wire.close()
        for folder in self.mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
