"""Released like a package: installed into an empty environment, by its own metadata alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.container.image import context
from tests.e2e.processes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.first]


def test_it_installs_into_an_empty_environment(tmp_path: Path) -> None:
    source = context(tmp_path / "source")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True, timeout=120)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", f"{source}[s3]"]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=400, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("no package index can be reached")
    assert done.returncode == 0, done.stderr
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        program = str(venv / "bin" / words[0])
        return subprocess.run(
            [program, *words[1:]],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    for name in ("syncd", "trainer"):
        done = run(name, "--help")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("Usage:")
    assert run("syncd", "--version").stdout.startswith("syncd, version ")
    (tmp_path / "bucket").mkdir()
    environ |= {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": "bucket"}
    done = run("syncd", "check")
    assert done.returncode == 0, done.stdout + done.stderr
    for package in ("syncd", "trainer"):
        assert list(venv.rglob(f"site-packages/{package}/py.typed")), (
            "typed for those who import it"
        )
    words = "import boto3, importlib.util as u, sys; sys.exit(bool(u.find_spec('torch')))"
    assert run("python", "-c", words).returncode == 0, "S3 and no torch"


def test_changelog_and_reference_have_the_version_of_the_package() -> None:
    version = next(
        line.split('"')[1]
        for line in (ROOT / "pyproject.toml").read_text().splitlines()
        if line.startswith("version = ")
    )
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    for page in ("reference/commands.md", "reference/settings.md", "licences.md"):
        assert f"Version {version}. " in (ROOT / "docs" / page).read_text()
