"""Each recipe of docs/recipes, as it stands there: its machine is lost, and the next one resumes.

The frameworks are installed on demand, beside the CPU build of torch (tests/recipes/install.sh);
one that cannot be had is skipped, with the installer's words.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import ROOT, Machine, wait_until

RECIPES = ROOT / "docs/recipes"
PYTHON = ROOT / "tests/.recipes/bin/python"

LAUNCH = {
    "plain_pytorch": ("", ()),
    "lightning_trainer": ("lightning", ()),
    "hf_trainer": ("transformers", ()),
    "accelerate_loop": ("accelerate", ()),
    "deepspeed_zero": (
        "deepspeed",
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"),
    ),
    "sb3_ppo": ("sb3", ()),
    "jax_orbax": ("orbax", ()),
}
"""Recipe: the framework to install, and how its processes are launched on one CPU."""


def python_of(framework: str) -> str:
    """The interpreter that has the framework; skips where it cannot be installed."""
    try:
        importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torch is not installed")
    if not framework:
        return sys.executable
    installed = subprocess.run(
        ["bash", str(ROOT / "tests/recipes/install.sh"), framework],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    if installed.returncode:
        pytest.skip(f"cannot be installed here: {installed.stdout}{installed.stderr}".strip())
    return str(PYTHON)


class Training:
    """A recipe under the exec mode, on a machine that can be lost."""

    def __init__(self, machine: Machine, recipe: str) -> None:
        framework, launch = LAUNCH[recipe]
        self.machine = machine
        self.out = machine.disk.parent / f"{machine.disk.name}.out"
        command = [python_of(framework), *launch, str(RECIPES / f"{recipe}.py")]
        # the tree under test is found by the daemon alone; the recipe imports nothing of it
        with self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "syncd", "--", *command],
                cwd=machine.disk,
                env={
                    **machine.environ,
                    "CUDA_VISIBLE_DEVICES": "",
                    "OMP_NUM_THREADS": "1",
                    "TORCH_EXTENSIONS_DIR": str(ROOT / "tests/.recipes/torch_extensions"),
                },
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def said(self) -> str:
        return self.out.read_text(errors="replace")

    def lose(self) -> None:
        """Everything on the machine ends at once: SIGKILL for all that works on its disk."""
        for _ in range(2):  # some may be starting others just then
            for pid in working_on(self.machine.disk):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.machine.disk)


def working_on(disk: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cwd").readlink() == disk:
                    yield int(entry.name)
            except OSError:
                continue  # it has just ended, or is somebody else's


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    cloud = {"CLOUD_PROVIDER": "local", "CLOUD_BUCKET": str(tmp_path / "bucket")}
    made = [Machine(tmp_path / name, {**cloud, "SYNCD_KEEP_LAST": "3"}) for name in ("one", "two")]
    yield made
    for machine in made:
        for pid in working_on(machine.disk):
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):  # a child of ours, where a test failed
                os.waitpid(pid, 0)


def commits(machine: Machine) -> list[str]:
    """What the store has, newest first."""
    listed = machine.syncd("ls", "--json")
    assert listed.returncode == 0, listed.stderr
    return [row["checkpoint"] for row in json.loads(listed.stdout)]


def steps(text: str) -> set[int]:
    return {int(number) for number in re.findall(r"\d+", text)}


@pytest.mark.heavy
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("recipe", LAUNCH)
def test_recipe_resumes_on_another_machine(machines: list[Machine], recipe: str) -> None:
    one, two = machines
    first = Training(one, recipe)

    def has_committed() -> bool:
        assert first.process.poll() is None, first.said()
        return ((one.status() or {}).get("commits") or 0) >= 2

    try:
        wait_until(has_committed, "two commits", patience=240)
    except AssertionError:
        pytest.fail(first.said())
    finally:
        first.lose()
    newest = commits(two)[0]
    second = Training(two, recipe)

    def has_resumed() -> bool:
        assert second.process.poll() is None, second.said()
        return "resumed at step" in second.said()

    try:
        wait_until(has_resumed, "the restored step", patience=240)
    except AssertionError:
        pytest.fail(second.said())
    resumed = re.search(r"resumed at step (\d+)", second.said())
    assert resumed
    assert int(resumed[1]) in steps(newest), second.said()
    assert int(resumed[1]) > 0
    seen = set(commits(two))
    wait_until(lambda: bool(set(commits(two)) - seen), "training that goes on", patience=240)
    second.lose()


def test_every_recipe_is_run() -> None:
    assert {path.stem for path in RECIPES.glob("*.py")} == set(LAUNCH)
