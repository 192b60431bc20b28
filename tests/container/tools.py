"""What building and running the image needs on this machine, and whether it is here."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PROGRAMS = ("buildah", "podman", "runc", "debootstrap")
MAY_INSTALL = "SYNCD_CONTAINER_INSTALL"
"""Set by tests/container/run.sh and tests/run.sh --heavy: system packages may be installed."""


def missing() -> list[str]:
    """The programs that are not here."""
    places = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    return [name for name in PROGRAMS if shutil.which(name, path=places) is None]


def prepare() -> str | None:
    """See to the programs; the reason, in words, where the image cannot be built here."""
    if os.geteuid() != 0:
        return "building the image without a container engine needs root"
    if not _kernel_has("overlay"):
        return "this kernel has no overlay file system"
    try:
        version("torch")
    except PackageNotFoundError:
        return "torch is not installed here: the stand-in base is made with the same one"
    if not missing():
        return None
    if shutil.which("apt-get") is None:
        return f"no {', '.join(missing())} here, and no apt-get to install them with"
    if not os.environ.get(MAY_INSTALL):
        return f"no {', '.join(missing())} here: bash tests/container/run.sh installs them"
    return _install()


def _kernel_has(kind: str) -> bool:
    try:
        known = Path("/proc/filesystems").read_text().split()
    except OSError:
        return False
    return kind in known or subprocess.run(["modprobe", kind], check=False).returncode == 0


def _install() -> str | None:
    apt = ["apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Acquire::Retries=3"]
    for words in (["update"], ["install", "-y", "--no-install-recommends", *PROGRAMS]):
        done = subprocess.run(
            [*apt, *words],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            return f"apt-get {words[0]} failed, is there a network? {' '.join(last)}"
    return f"{', '.join(missing())} is not here after its installation" if missing() else None
