"""Every block of commands in the guides is run, or says above itself what runs it or why not.

    <!-- not run: REASON -->          needs an account, a GPU machine, a container engine, …
    <!-- run by: FILE[::TEST] -->     a test does just this
    <!-- save: PATH -->               the block is a file that the following ones need

All else is run as it stands, in the order of the guide, in one shell in an empty home.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.e2e.guides import Block, Command, blocks, commands, missing
from tests.e2e.processes import ROOT
from tests.servers.process import HOME as SERVERS
from tests.servers.process import free_port
from tests.servers.s3 import KEY, SECRET, SeaweedFS

GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MARKS = ("not run: ", "run by: ", "save: ")
RUN = [ROOT / "docs" / "quickstart.md"]


def to_run(guide: Path) -> list[Block]:
    return [b for b in blocks(guide) if b.kind != "python" and not b.mark.startswith(MARKS)]


@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: guide.name)
def test_every_block_is_run_or_says_why_not(guide: Path) -> None:
    for block in blocks(guide):
        if block.mark.startswith("run by: "):
            file, _, test = block.mark.removeprefix("run by: ").partition("::")
            assert (ROOT / file).is_file(), f"{block.name}: there is no {file}"
            assert f"def {test}" in (ROOT / file).read_text(), f"{block.name}: no {test} in {file}"
        if block.mark.startswith("not run: "):
            assert len(block.mark.split()) > 4, f"{block.name}: a reason in words"
    if guide not in RUN:
        assert [block.name for block in to_run(guide)] == [], "neither run nor marked"


class Shell:
    """A shell that types the commands of a guide and keeps what each has said."""

    def __init__(self, home: Path, environ: Mapping[str, str]) -> None:
        self.home = home
        self._environ = dict(environ)

    def type(self, typed: list[Command]) -> list[str]:
        """What each command said."""
        # the mark between two commands must not change what `$?` is
        script = ["set -m", "mark() { local code=$?; printf '\\n@@%s\\n' \"$1\"; return $code; }"]
        for number, command in enumerate(typed):
            script += [f"mark {number}", command.text]
        shell = subprocess.Popen(
            ["bash"],
            cwd=self.home,
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            said, _ = shell.communicate("\n".join(script) + "\n", timeout=240)
        finally:
            if shell.poll() is None:
                os.killpg(shell.pid, signal.SIGKILL)
                shell.wait()
        parts = [part.partition("\n")[2] for part in said.split("\n@@")[1:]]
        assert len(parts) == len(typed), said[-2000:]
        return parts


@pytest.mark.slow
def test_the_quick_start_reaches_a_restored_run_on_a_second_machine(
    tmp_path: Path, seaweedfs: SeaweedFS
) -> None:
    """Word for word, with what it shows; only ports and keys are this machine's."""
    guide = RUN[0]
    port = free_port()
    ours = {
        "AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…": (
            f"AWS_ACCESS_KEY_ID={KEY} AWS_SECRET_ACCESS_KEY={SECRET}"
        ),
        "http://127.0.0.1:8333": seaweedfs.url,
        "127.0.0.1:8377": f"127.0.0.1:{port}",
    }
    typed: list[Command] = []
    for block in blocks(guide):
        if block.mark.startswith("save: "):
            target = tmp_path / block.mark.removeprefix("save: ").removeprefix("~/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(block.text)
    for block in to_run(guide):
        for command in commands(block):
            text = command.text
            for theirs, here in ours.items():
                text = text.replace(theirs, here)
            typed.append(Command(command.where, text, command.shown))
    environ = {
        "PATH": f"{Path(sys.executable).parent}:{SERVERS / 'bin'}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "AWS_EC2_METADATA_DISABLED": "true",
        "SYNCD_HTTP": f"127.0.0.1:{port}",
    }
    said = Shell(tmp_path, environ).type(typed)
    faults = [
        f"{command.where}: $ {command.text}\n  shown: {line}\n  said: {answer}"
        for command, answer in zip(typed, said, strict=True)
        if (line := missing(command.shown, answer)) is not None
    ]
    assert not faults, "\n".join(faults)
