"""The search for settings: a study on SQLite, real trials, trials that were broken off."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from tests.unit.trainer.worlds import FLAGS, Process, checkpoints, run, state_of
from trainer import sweep, synthetic
from trainer.cli import main
from trainer.errors import UsageFault

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.first,
]
SPACE = ["--search", "hidden=8,12", "--search", "actor-rate=1e-3:1e-2:log"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "toy.csv"
    synthetic.write_market(path, days=160, tickers=5, seed=3)
    return str(path)


def study_of(folder: Path) -> optuna.Study:
    return optuna.load_study(study_name="sweep", storage=f"sqlite:///{folder}/sweep.db")


@pytest.mark.slow
def test_a_sweep_of_two_workers_ends_with_the_trials_that_were_asked(
    data: str, tmp_path: Path
) -> None:
    code, out, err = run(
        tmp_path, "--data", data, *FLAGS, "--generations", "2", "sweep", "--trials", "3",
        "--workers", "2", *SPACE,
    )  # fmt: skip
    assert code == 0, err
    assert "study sweep: " in out
    trials = study_of(tmp_path).get_trials()
    assert sum(t.state in sweep.OVER for t in trials) >= 3
    for trial in trials:
        found = state_of(tmp_path / f"checkpoints/sweep-{trial.number:04d}/gen-000002")
        assert found["settings"]["hidden"] == trial.params["hidden"]
        assert found["settings"]["actor_rate"] == trial.params["actor_rate"]
        assert found["best"]["validation"] == trial.value


@pytest.mark.slow
def test_a_trial_stopped_by_a_signal_goes_on_where_it_was(data: str, tmp_path: Path) -> None:
    arguments = ["--data", data, *FLAGS, "--checkpoint-every", "1"]
    search = ["sweep", "--trials", "1", *SPACE]
    child = Process(tmp_path, *arguments, "--generations", "400", *search)
    assert child.until(lambda: len(checkpoints(tmp_path)) >= 2)
    child.child.send_signal(signal.SIGTERM)
    code, _, err = child.wait()
    assert code == 143, err
    done = state_of(checkpoints(tmp_path)[-1])["generation"]
    assert [t.state for t in study_of(tmp_path).get_trials()] == [
        TrialState.FAIL, TrialState.WAITING,
    ]  # fmt: skip
    code, _, err = run(tmp_path, *arguments, "--generations", str(done + 2), *search)
    assert code == 0, err
    first, second = study_of(tmp_path).get_trials()
    assert second.state == TrialState.COMPLETE
    assert second.params == first.params
    assert checkpoints(tmp_path)[-1].parent.name == "sweep-0000", "the same run"
    lines = (tmp_path / "logs/sweep-0000/generations.jsonl").read_text().splitlines()
    assert len(lines) == done + 2, "no generation was played twice"


def test_a_trial_whose_machine_is_lost_is_queued_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "HEARTBEAT", 1)
    monkeypatch.setattr(sweep, "GRACE", 1)
    plan = sweep.Plan("s", f"sqlite:///{tmp_path}/sweep.db", 1, ("hidden=8,12",), False, 0)
    sweep.create(plan)
    sweep.create(plan)  # as it was left
    storage = sweep.storage(plan.storage)
    study = optuna.load_study(study_name="s", storage=storage)
    with pytest.warns(UserWarning, match="Heartbeat"):
        lost = study.ask()
    lost.suggest_categorical("hidden", [8, 12])
    lost.report(0.5, 3)
    storage.record_heartbeat(lost._trial_id)  # and then nothing more
    deadline = time.monotonic() + 30
    while len(study.get_trials()) < 2:
        assert time.monotonic() < deadline
        optuna.storages.fail_stale_trials(study)
    again = study.get_trials()[1]
    assert again.state == TrialState.WAITING
    assert again.intermediate_values == {3: 0.5}
    assert sweep._run_name(plan, again) == "s-0000"


@pytest.fixture
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The address of a PostgreSQL of our own; skipped where there is none to start."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install psycopg[binary]")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    programs = found[-1].parent
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # its user must reach it, and its socket's name
    user = "postgres" if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(program: str, *words: str) -> None:
        subprocess.run([str(programs / program), *words], check=True, user=user, cwd=folder,
                       stdout=subprocess.DEVNULL)  # fmt: skip

    call("initdb", "-D", f"{folder}/db", "-U", "sweeper", "-A", "trust", "--no-sync")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call("pg_ctl", "-D", f"{folder}/db", "-w", "-l", f"{folder}/log", "-o", options, "start")
    yield f"postgresql+psycopg://sweeper@127.0.0.1:{port}/postgres"
    call("pg_ctl", "-D", f"{folder}/db", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.slow
def test_a_study_on_postgresql_is_shared_by_two_workers(
    data: str, tmp_path: Path, postgresql: str
) -> None:
    code, out, err = run(
        tmp_path, "--data", data, *FLAGS, "--generations", "2", "sweep", "--trials", "2",
        "--workers", "2", "--storage", postgresql, *SPACE,
    )  # fmt: skip
    assert code == 0, err
    assert "study sweep: " in out
    assert not (tmp_path / "sweep.db").exists()
    storage = sweep.storage(postgresql)
    trials = optuna.load_study(study_name="sweep", storage=storage).get_trials()
    storage.remove_session()
    storage.engine.dispose()
    assert sum(t.state in sweep.OVER for t in trials) >= 2
    for trial in trials:
        found = state_of(tmp_path / f"checkpoints/sweep-{trial.number:04d}/gen-000002")
        assert found["best"]["validation"] == trial.value


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("hiden=8,12", "no setting named hiden"),
        ("generations=8,12", "no setting named generations"),
        ("hidden=8:x", "x"),
        ("hidden=9:8", "LOW must be below HIGH"),
        ("noise=0:8:log", "above zero on a log scale"),
        ("scheme=1:2", "A,B,C"),
        ("hidden=", "A,B,C"),
    ],
)
def test_a_bad_search_is_refused(line: str, words: str) -> None:
    with pytest.raises(UsageFault, match=words):
        sweep.parse_space([line])


def test_every_fault_of_a_search_is_told_before_anything_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--search", "a=1", "--search", "b=2"]) == 2
    assert capsys.readouterr().err.count("trainer: --search") == 2
    assert main(["sweep", "--storage", "nonsense://x"]) == 2
    assert "--storage" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
