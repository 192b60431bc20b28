"""buildah and podman with all that they keep in one folder, tests/.container.

No daemon, no registry: what an image is built from has to be in the folder already.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent.parent / ".container"

_STORAGE = """
[storage]
driver = "overlay"
graphroot = "{home}/storage"
runroot = "{home}/run"
"""

# Programs are started by runc without systemd; a container sees the network of this machine, so
# that it reaches the servers of the tests on 127.0.0.1.
_CONTAINERS = """
[containers]
netns = "host"
log_driver = "k8s-file"
pids_limit = 0
default_ulimits = ["nofile=4096:4096", "nproc=8192:8192"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "{home}/run/libpod"
"""


class Engine:
    """One folder of images and containers."""

    def __init__(self, home: Path = HOME) -> None:
        self.home = home
        home.mkdir(exist_ok=True, mode=0o700)
        files = {"storage.conf": _STORAGE, "containers.conf": _CONTAINERS}
        for name, text in files.items():
            (home / name).write_text(text.format(home=home))
        self._environ = {
            "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "HOME": str(home),
            "TMPDIR": str(home),
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        }

    def run(
        self, *words: str, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[str]:
        """One command of buildah or podman; its words are the error's where it has to work."""
        done = subprocess.run(
            words,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            said = (done.stdout + done.stderr)[-4000:]
            raise AssertionError(f"{' '.join(words[:3])} ended with {done.returncode}:\n{said}")
        return done

    def has(self, image: str) -> bool:
        """Whether the image is here."""
        return self.run("podman", "image", "exists", image, check=False).returncode == 0

    def build(self, context: Path, tag: str, binds: Sequence[str]) -> str:
        """Build the context's Dockerfile; what was printed. The binds do not enter the image."""
        volumes = [word for bind in binds for word in ("-v", bind)]
        done = self.run(
            *("buildah", "bud", "--isolation", "chroot", "--network", "host", "--pull-never"),
            *("--format", "docker", "--layers", *volumes, "-t", tag, str(context)),
        )
        return done.stdout + done.stderr

    def inspect(self, image: str) -> dict[str, Any]:
        """What the image says of itself."""
        found = json.loads(self.run("podman", "image", "inspect", image).stdout)[0]
        assert isinstance(found, dict)
        return found

    def layers(self, image: str) -> list[Path]:
        """Where the files of its layers lie, the uppermost first."""
        data = self.inspect(image)["GraphDriver"]["Data"]
        folders = [data["UpperDir"], *data.get("LowerDir", "").split(":")]
        return [Path(folder) for folder in folders if folder]

    def clear(self) -> None:
        """End what runs, and undo the mounts; images stay, for the next time."""
        self.run("podman", "rm", "--all", "--force", "--time", "0", check=False)
        self.run("buildah", "rm", "--all", check=False)
        self.run("podman", "image", "prune", "--force", check=False)
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            place = line.split()[1].replace("\\040", " ")
            if place.startswith(f"{self.home}/"):
                subprocess.run(["umount", "--lazy", place], check=False)

    def forget(self) -> None:
        """Remove everything, also the base."""
        self.clear()
        shutil.rmtree(self.home)


class Container:
    """One container of an image, started in the background."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        image: str,
        arguments: Sequence[str],
        environ: Mapping[str, str],
        options: Sequence[str] = (),
    ) -> None:
        self.engine = engine
        self.name = name
        # values go by a file: what is on a command line is in the list of processes
        settings = engine.home / f"{name}.env"
        settings.touch(mode=0o600)
        settings.write_text("".join(f"{key}={value}\n" for key, value in environ.items()))
        try:
            engine.run(
                *("podman", "run", "--detach", "--pull", "never", "--name", name),
                *("--env-file", str(settings), *options, image, *arguments),
            )
        finally:
            settings.unlink()

    def exec(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command inside, as ``docker exec`` does it."""
        return self.engine.run("podman", "exec", self.name, *words, check=False, timeout=90)

    def logs(self) -> str:
        """All that it has printed."""
        done = self.engine.run("podman", "logs", self.name, check=False)
        return done.stdout + done.stderr

    def running(self) -> bool:
        """Whether it has not ended yet."""
        done = self.engine.run("podman", "inspect", "-f", "{{.State.Running}}", self.name)
        return done.stdout.strip() == "true"

    def wait(self, seconds: float = 180) -> int:
        """Its exit code, once it has ended by itself."""
        return int(self.engine.run("podman", "wait", self.name, timeout=seconds).stdout)

    def stop(self, grace: int = 120) -> int:
        """``docker stop``; its exit code."""
        self.engine.run("podman", "stop", "--time", str(grace), self.name)
        return self.wait()

    def kill(self) -> None:
        """The machine is lost: no signal that anybody could hear."""
        self.engine.run("podman", "rm", "--force", "--time", "0", self.name)
