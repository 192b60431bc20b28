"""Real trainer processes: killed, stopped, resumed, refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.trainer.worlds import (
    FLAGS,
    REPO,
    Process,
    checkpoints,
    run,
    state_of,
)
from trainer import checkpoint, synthetic

pytestmark = pytest.mark.first


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "toy.csv"
    synthetic.write_market(path, days=160, tickers=5, seed=3)
    return str(path)


@pytest.fixture(scope="module")
def uninterrupted(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    # a process of its own: what comes of another seed of strings' hashes must be the same
    code, out, err = Process(folder, "--data", data, "--run", "r", *FLAGS).wait()
    assert code == 0, err
    assert "state_digest" in out
    return folder


def whole(folder: Path) -> str:
    """The digest of the last checkpoint, which must be the end's."""
    last = checkpoints(folder)[-1]
    assert last.name == "gen-000009"
    assert checkpoint.read(last).state["generation"] == 9
    return str(state_of(last)["state_digest"])


def test_a_run_leaves_checkpoints_logs_and_no_half_written_thing(uninterrupted: Path) -> None:
    names = [path.name for path in checkpoints(uninterrupted)]
    assert names[-1] == "gen-000009"
    assert set(names) <= {f"gen-{g:06d}" for g in (1, 2, 3, 4, 5, 6, 7, 8, 9)}
    assert not list(uninterrupted.glob("checkpoints/r/.*"))
    lines = (uninterrupted / "logs/r/generations.jsonl").read_text().splitlines()
    assert [json.loads(line)["generation"] for line in lines] == list(range(1, 10))
    assert list(uninterrupted.glob("logs/r/events.out.tfevents.*"))
    assert not list(uninterrupted.glob("**/*.pt")), "no pickle anywhere"


def test_an_unchanged_elite_is_the_same_file_again(uninterrupted: Path) -> None:
    found = checkpoints(uninterrupted)
    state = state_of(found[-1])
    champion = f"agents/agent-{state['champion']:02d}.safetensors"
    assert champion in state["files"]
    loaded = checkpoint.read(found[-1])
    assert loaded.files[champion].keys() == loaded.files["agents/agent-00.safetensors"].keys()


@pytest.mark.parametrize("kill", ["first", "in a save", "late"])
def test_killed_at_any_moment_and_resumed_the_end_is_the_same(
    data: str, uninterrupted: Path, tmp_path: Path, kill: str
) -> None:
    child = Process(tmp_path, "--data", data, "--run", "r", *FLAGS)
    points: dict[str, Callable[[], bool]] = {
        "first": lambda: child.generations() >= 1,
        "in a save": lambda: bool(list(tmp_path.glob("checkpoints/r/.tmp-gen-*/agents"))),
        "late": lambda: child.generations() >= 7,
    }
    child.until(points[kill])
    child.kill()
    loaded, refused = checkpoint.newest(tmp_path / "checkpoints", None)
    assert refused == [], "what has its name is whole"
    code, out, err = run(tmp_path, "--resume", "--data", data, "--run", "r", *FLAGS)
    assert code == 0, err
    assert ("resumed run r" in out) == (loaded is not None and loaded.state["generation"] < 9) or (
        "is finished" in out
    )
    assert whole(tmp_path) == whole(uninterrupted)
    assert not list(tmp_path.glob("checkpoints/r/.*"))


def test_killed_again_and_again_the_end_is_the_same(
    data: str, uninterrupted: Path, tmp_path: Path
) -> None:
    draw, flags = random.Random(11), [*FLAGS, "--data", data, "--run", "r"]
    for life in range(3):
        child = Process(tmp_path, "--resume", *flags, "--checkpoint-every", "1")
        goal = child.generations() + draw.randint(1, 3)
        half_written = life % 2 == 0
        child.until(
            lambda c=child, g=goal, h=half_written: (  # type: ignore[misc]
                c.generations() >= g and (not h or bool(list(tmp_path.glob("checkpoints/r/.tmp*"))))
            )
        )
        child.kill()
        _, refused = checkpoint.newest(tmp_path / "checkpoints", None)
        assert refused == [], "what has its name is whole"
    code, _, err = run(tmp_path, "--resume", *flags)
    assert code == 0, err
    assert whole(tmp_path) == whole(uninterrupted)


def test_sigterm_saves_exits_143_and_resumes_exactly(
    data: str, uninterrupted: Path, tmp_path: Path
) -> None:
    child = Process(tmp_path, "--data", data, "--run", "r", *FLAGS)
    assert child.until(lambda: child.generations() >= 3)
    child.child.send_signal(signal.SIGTERM)
    child.child.send_signal(signal.SIGTERM)  # an impatient supervisor changes nothing
    code, out, _ = child.wait()
    assert code == 143
    last = checkpoints(tmp_path)[-1]
    assert f"saved {last.relative_to(tmp_path)}" in out
    assert checkpoint.read(last).state["generation"] >= 3
    code, out, err = run(tmp_path, "--resume", "--data", data, *FLAGS)
    assert code == 0, err
    assert whole(tmp_path) == whole(uninterrupted)
    code, out, _ = run(tmp_path, "--resume")
    assert code == 0
    assert "is finished" in out


def test_sigterm_while_torch_is_imported_ends_cleanly(data: str, tmp_path: Path) -> None:
    child = Process(tmp_path, "--data", data, *FLAGS, python=["-X", "importtime"])
    assert child.child.stderr is not None
    for line in child.child.stderr:
        if "| " in line and line.rsplit("|", 1)[1].strip().startswith("torch."):
            break
    child.child.send_signal(signal.SIGTERM)
    code, out, err = child.wait()
    assert code == 143
    assert "Traceback" not in err
    assert checkpoints(tmp_path) == [] or "saved" in out


def test_a_damaged_checkpoint_is_refused_by_name_and_the_one_before_it_taken(
    data: str, uninterrupted: Path, tmp_path: Path
) -> None:
    flags = [*FLAGS, "--data", data, "--run", "r"]
    run(tmp_path, *flags, "--generations", "4", "--checkpoint-every", "1")
    found = checkpoints(tmp_path)
    assert len(found) >= 2
    with (found[-1] / "replay.safetensors").open("r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"\x55")
    code, out, err = run(tmp_path, "--resume", *flags)
    assert code == 0, err
    assert f"{found[-1].relative_to(tmp_path)}: replay.safetensors has another SHA-256" in out
    assert f"from {found[-2].relative_to(tmp_path)}" in out
    assert whole(tmp_path) == whole(uninterrupted)


def test_what_cannot_be_resumed_is_refused_with_both_sides_named(
    data: str, uninterrupted: Path, tmp_path: Path
) -> None:
    code, _, err = run(uninterrupted, "--resume", "--seed", "5", "--horizon", "9")
    assert code == 2
    assert "--seed is 5, but the run was started with 0" in err
    assert "--horizon is 9, but the run was started with 10" in err
    other = tmp_path / "other.csv"
    synthetic.write_market(other, days=160, tickers=5, seed=4)
    code, _, err = run(uninterrupted, "--resume", "--data", str(other), "--generations", "20")
    assert code == 2
    assert str(other) in err
    assert data in err
    code, _, err = run(uninterrupted, "--run", "r", "--data", data)
    assert code == 2
    assert "--resume" in err


def test_bad_usage_settings_and_data_end_in_2(tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("date,ticker,open,high,low,close,volume\n2024-01-02,A,x,1,1,1,1\n")
    code, _, err = run(tmp_path, "--data", str(bad))
    assert (code, err) == (2, f"trainer: {bad}, line 2, column open: 'x' is not a number\n")
    code, _, err = run(tmp_path, "--population", "few", "--seed", "x")
    assert code == 2
    assert err.count("trainer: --") == 2
    code, _, err = run(tmp_path, "--no-such-thing")
    assert code == 2
    code, _, err = run(tmp_path)
    assert code == 2
    assert "make-data" in err


def test_help_teaches_and_needs_no_torch(tmp_path: Path) -> None:
    code, out, _ = Process(tmp_path, "--help").wait()
    assert code == 0
    for word in ("--resume", "--demo", "--checkpoint-every", "CHECKPOINT_DIR", "143", "make-data"):
        assert word in out


def test_the_demo_needs_nothing_and_goes_on_when_it_is_finished(tmp_path: Path) -> None:
    code, first, err = run(tmp_path, "--demo", "--resume", "--threads", "1")
    assert code == 0, err
    assert "starting fresh" in first
    assert "generation 12/12" in first
    assert "buy-and-hold" in first
    code, second, err = run(tmp_path, "--demo", "--resume")
    assert code == 0, err
    assert "resumed run" in second
    assert "generation 24/24" in second
    assert (tmp_path / "data/demo.csv").exists()


def test_logs_that_cannot_be_written_stop_nothing(data: str, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    code, out, err = run(tmp_path, "--data", data, *FLAGS, "--generations", "2")
    assert code == 0, err
    assert "training goes on" in out
    assert len(checkpoints(tmp_path)) == 1


def test_weights_and_biases_is_never_needed(data: str, tmp_path: Path) -> None:
    (tmp_path / "wandb.py").write_text("raise ImportError('wandb is not here')")
    code, out, err = run(
        tmp_path, "--data", data, *FLAGS, "--generations", "2", "--wandb", "offline"
    )
    assert code == 0, err
    assert out.count("Weights & Biases in logs/") == 1, "told once"
    assert "wandb is not here; training goes on" in out


def test_importing_the_trainer_imports_no_sidecar_no_cloud_and_no_torch() -> None:
    code = (
        "import sys, trainer.cli; light = set(sys.modules); "
        "import trainer.session, trainer.telemetry; "
        "print([m for m in light if m == 'torch'], [m for m in sys.modules if "
        "m.split('.')[0] in ('syncd', 'boto3', 'botocore', 'google', 'azure')])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "[] []"
