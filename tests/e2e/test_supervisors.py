"""The files to copy into a supervisor of one's own, as they stand in docs/recipes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from syncd.programs import Programs
from tests.e2e.processes import ROOT, Machine, wait_until

RECIPES = ROOT / "docs/recipes"


def test_section_runs_in_a_supervisord_and_the_page_knows_its_programs(tmp_path: Path) -> None:
    one = Machine(tmp_path / "one", {"CLOUD_BUCKET": str(tmp_path / "bucket")})
    one.state.mkdir()
    (one.disk / "supervisord.conf").write_text(
        "[supervisord]\nnodaemon=true\nlogfile=/dev/null\nlogfile_maxbytes=0\n"
        "[unix_http_server]\nfile=%(here)s/.syncd/supervisor.sock\n"
        "[rpcinterface:supervisor]\n"
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
        "[supervisorctl]\nserverurl=unix://%(here)s/.syncd/supervisor.sock\n"
        f"[include]\nfiles={RECIPES}/supervisord-program.conf\n"
    )
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with (one.disk / "daemon.log").open("wb") as log:
        running = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", "supervisord.conf"],
            cwd=one.disk,
            env={**one.environ, "PATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        one.write_checkpoint("gen-000005", {"state.json": b"{}"})
        wait_until(one.has_committed("gen-000005"), one.log)
        wait_until(
            lambda: (
                [(p.name, p.state) for p in Programs({}, one.state)._ask()]
                == [("syncd", "RUNNING")]
            ),
            "the state of the program",
        )
        one.write_checkpoint("gen-000010", {"state.json": b"{}"})
        running.send_signal(signal.SIGTERM)
        running.wait(60)
    finally:
        running.kill()
        running.wait()
    assert "gen-000010" in one.syncd("ls", "--json").stdout


def test_without_a_supervisor_there_are_no_programs(tmp_path: Path) -> None:
    assert Programs({}, tmp_path)() == []
    assert Programs({"SUPERVISOR_SERVER_URL": "unix:///nowhere"}, tmp_path)() == []


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="no systemd-analyze here")
def test_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    text = (RECIPES / "syncd.service").read_text()
    # what it names need not be on this machine
    text = text.replace("/srv/training/.venv/bin/python", sys.executable)
    (tmp_path / "syncd.service").write_text(text.replace("/srv/training", str(tmp_path)))
    (tmp_path / ".env").touch()
    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no",
         str(tmp_path / "syncd.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    complaints = [line for line in checked.stderr.splitlines() if "syncd.service" in line]
    assert complaints == []


def test_manifest_keeps_the_sidecar_beside_the_training() -> None:
    (job,) = yaml.safe_load_all((RECIPES / "kubernetes.yaml").read_text())
    pod = job["spec"]["template"]["spec"]
    restore, sidecar = pod["initContainers"]
    assert restore["command"][-1] == "restore"
    assert sidecar["restartPolicy"] == "Always"
    assert {c["workingDir"] for c in (*pod["initContainers"], *pod["containers"])} == {"/work"}
