"""The project's own image: what it is built from, and by which way to the packages."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.container.base import ROOT
from tests.container.engine import Engine

IMAGE = "localhost/syncd-under-test"
DECOY = "decoy-b7f1c2e09a"
"""Stands in every file that must not enter the image."""

_CA_BUNDLE = Path("/etc/ssl/certs/ca-certificates.crt")
_DECOYS = (
    ".env",
    ".env.production",
    "key.json.key",
    "my-credentials.json",
    "gcp-service-account.json",
    ".aws/credentials",
    ".azure/accessTokens.json",
    "private.pem",
    "data/market.csv",
    "checkpoints/run/gen-000001/state.json",
    "logs/train.log",
    ".syncd/journal.sqlite",
)


def context(folder: Path) -> Path:
    """The project as a person has it who works with it: with keys and data in its folder."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
    for name in _DECOYS:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f"AWS_SECRET_ACCESS_KEY={DECOY}\n")
    return folder


def build_binds(engine: Engine) -> list[str]:
    """This machine's certificates and its way to the packages, for the time of the build."""
    binds = []
    if _CA_BUNDLE.is_file():
        binds.append(f"{_CA_BUNDLE}:{_CA_BUNDLE}:ro")
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    lines = ["[global]", f"cert = {_CA_BUNDLE}"]
    found = re.search(r"^(?:global|:env:)\.index-url='(.*)'$", listed.stdout, re.MULTILINE)
    if found:
        lines.append(f"index-url = {found[1]}")
    conf = engine.home / "pip.conf"
    conf.write_text("\n".join(lines) + "\n")
    return [f"{conf}:/etc/pip.conf:ro", *binds]
