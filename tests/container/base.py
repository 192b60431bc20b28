"""The stand-in for the base image of the Dockerfile.

It has the traits of the real one (``pytorch/pytorch``) that the Dockerfile meets: a system Python
with PEP 668's marker and without its venv module, and torch in dist-packages. It stands under the
real one's name, so that the Dockerfile is built as it is.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.container.engine import Engine

ROOT = Path(__file__).parents[2]
_RELEASE = "bookworm"
_PYTHON = "3.11"


def base_name() -> str:
    """The image that the Dockerfile's FROM names by default."""
    found = re.search(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert found, "the Dockerfile names its base in ARG BASE_IMAGE"
    return found[1]


def ensure_base(engine: Engine) -> None:
    """Make the stand-in, unless one of this very recipe is here."""
    recipe = hashlib.sha256(Path(__file__).read_bytes() + version("torch").encode()).hexdigest()
    name, stamp = base_name(), engine.home / "base.txt"
    if stamp.is_file() and stamp.read_text() == recipe and engine.has(name):
        return
    rootfs = engine.home / "base"
    shutil.rmtree(rootfs, ignore_errors=True)
    _system(engine, rootfs)
    _torch(rootfs)
    into = 'tar -C "$1" -c . | podman import --change WORKDIR=/workspace - "$2"'
    engine.run("bash", "-o", "pipefail", "-c", into, "base", str(rootfs), name)
    shutil.rmtree(rootfs)
    stamp.write_text(recipe)


def _system(engine: Engine, rootfs: Path) -> None:
    parts = "--include=ca-certificates,python3,python3-pip"
    engine.run(
        *("debootstrap", "--variant=minbase", parts, _RELEASE, str(rootfs), *_mirror()),
        timeout=900,
    )
    for waste in ("var/cache/apt/archives", "var/lib/apt/lists"):
        shutil.rmtree(rootfs / waste)
        (rootfs / waste).mkdir()
    assert not list((rootfs / f"usr/lib/python{_PYTHON}").glob("ensurepip")), "venv must be absent"
    assert (rootfs / f"usr/lib/python{_PYTHON}/EXTERNALLY-MANAGED").is_file()


def _mirror() -> list[str]:
    """The mirror that this machine uses itself, if it is one of Debian."""
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(ORIGIN) $(CODENAME)"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = (line.rsplit(" ", 2) for line in done.stdout.splitlines())
    return [uri for uri, origin, name in rows if (origin, name) == ("Debian", _RELEASE)][:1]


def _torch(rootfs: Path) -> None:
    """The torch of the tests' own environment, where the real base has its own."""
    place = rootfs / f"usr/local/lib/python{_PYTHON}/dist-packages"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-compile"),
            *("--target", str(place), "--python-version", _PYTHON, "--only-binary=:all:"),
            *(f"torch=={version('torch')}", "numpy"),
        ],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
