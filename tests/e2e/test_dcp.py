"""torch.distributed.checkpoint itself, on two machines that share no disk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.processes import Build, Machine, wait_until
from tests.e2e.test_several_machines import all_have, member, team

pytestmark = pytest.mark.slow

SAVE = """
import sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

rank, meeting, *folders = sys.argv[1:]
dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=int(rank), world_size=2)
for step, folder in enumerate(folders, 1):
    dcp.save({f"layer{n}": torch.full((64, 64), step + n / 10) for n in range(6)},
             checkpoint_id=folder)
dist.destroy_process_group()
"""

LOAD = """
import sys
import torch
import torch.distributed.checkpoint as dcp

state = {f"layer{n}": torch.zeros(64, 64) for n in range(6)}
dcp.load(state, checkpoint_id=sys.argv[1])
for n in range(6):
    assert torch.equal(state[f"layer{n}"], torch.full((64, 64), 2 + n / 10)), n
"""


def save(machines: list[Machine], meeting: Path) -> None:
    """Two steps by two ranks, each to its own disk: the first one writes the metadata."""
    ranks = []
    for rank, machine in enumerate(machines):
        folders = [str(machine.checkpoints / f"run/step_{step}") for step in (1, 2)]
        command = [sys.executable, "-W", "ignore", "-c", SAVE, str(rank), str(meeting), *folders]
        ranks.append(subprocess.Popen(command))
    assert [rank.wait(120) for rank in ranks] == [0, 0]


def test_what_two_ranks_saved_on_their_own_disks_is_loaded_from_one(
    build: Build, tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    machines = team(build, 2)
    for machine in machines:
        machine.start()
    save(machines, tmp_path / "meeting")
    all_have(machines, "run/step_2")
    log = tmp_path / "bucket/eigen2/.syncd/commits"
    # the first step may be committed after the second one, and then stands behind it
    wait_until(lambda: len(list(log.glob("*.json"))) == 2, "both steps are committed")
    for rank, machine in enumerate(machines):
        assert (machine.checkpoints / f"run/step_2/__{rank}_0.distcp").exists()
        assert not (machine.checkpoints / f"run/step_2/__{1 - rank}_0.distcp").exists()
        assert machine.stop() == 0
    fresh = member(build, 0, 2, "fresh")
    assert fresh.syncd("restore").returncode == 0
    folder = fresh.checkpoints / "run/step_2"
    command = [sys.executable, "-W", "ignore", "-c", LOAD, str(folder)]
    loaded = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert loaded.returncode == 0, loaded.stderr
