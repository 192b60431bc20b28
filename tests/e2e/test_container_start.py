"""start_vast.sh: its options, checks and exit codes, with false tools on PATH.

torch, trainer and syncd are stand-ins here, so that each case takes moments; the whole way with
the real ones is in test_container_demo.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from tests.e2e.processes import wait_until

ROOT = Path(__file__).parents[2]

EXTRAS = metadata.metadata("syncd").get_all("Provides-Extra") or []

SMI_4090 = "0, NVIDIA GeForce RTX 4090, 580.65.06, 24564 MiB, 8.9"
SMI_5090 = "0, NVIDIA GeForce RTX 5090, 580.65.06, 32607 MiB, 12.0"
SMI_H100 = "0, NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB, 9.0"
SMI_OLD = "0, NVIDIA GeForce RTX 4090, 550.54.14, 24564 MiB, 8.9"

CUDA_13 = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120 compute_120"
CUDA_12_6 = "sm_50 sm_60 sm_70 sm_75 sm_80 sm_86 sm_90"

TORCH = """
import os
import re
from types import SimpleNamespace
from torch.version import cuda as _cuda

__version__ = "2.13.0"
version = SimpleNamespace(cuda=_cuda)
_capability = tuple(int(n) for n in os.environ.get("STUB_CAPABILITY", "8.9").split("."))


class _Tensor:
    def __matmul__(self, other):
        if os.environ.get("STUB_KERNEL") == "fails":
            raise RuntimeError("CUDA error: no kernel image is available\\nmore")
        return self

    def sum(self):
        return self

    def cpu(self):
        return 1.0 if os.environ.get("STUB_KERNEL") == "wrong" else 64.0**3


def ones(*shape, device):
    return _Tensor()


cuda = SimpleNamespace(
    is_available=lambda: True,
    device_count=lambda: 1,
    get_device_name=lambda index: "a GPU",
    get_device_capability=lambda index: _capability,
    get_arch_list=lambda: os.environ.get("STUB_ARCHS", "").split(),
)
"""

SYNCD = """
import os, sys
from pathlib import Path

word = sys.argv[1]
with Path("calls.txt").open("a") as file:
    print(word, file=file)
sys.exit(int(os.environ.get(f"STUB_{word.upper()}", "0")))
"""

TRAINER = """
import sys
from pathlib import Path

assert sys.argv[1] == "make-data"
Path(sys.argv[2]).write_text("date,close")
"""

CONTAINER = """
import json, os, sys
from pathlib import Path

Path("started.json").write_text(json.dumps({"argv": sys.argv[1:], "environ": dict(os.environ)}))
"""


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tools of this machine, without the NVIDIA ones."""
    folder = tmp_path_factory.mktemp("tools")
    for source in ("/bin", "/usr/bin"):
        for tool in Path(source).iterdir():
            link = folder / tool.name
            if not tool.name.startswith("nvidia") and not link.exists():
                link.symlink_to(tool)
    return folder


class Project:
    """A copy of what start_vast.sh lives beside, with a ready environment of stand-ins."""

    def __init__(self, folder: Path, tools: Path) -> None:
        self.folder = folder / "project"
        self.folder.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.path = f"{self.bin}:{tools}"
        stubs = folder / "stubs"
        for name, text in {
            "torch/__init__.py": TORCH,
            "torch/version.py": 'cuda = "13.0"',
            "trainer/__init__.py": "",
            "trainer/__main__.py": TRAINER,
            "syncd/__init__.py": "",
            "syncd/__main__.py": SYNCD,
            "syncd/container/__init__.py": "",
            "syncd/container/__main__.py": CONTAINER,
        }.items():
            (stubs / name).parent.mkdir(parents=True, exist_ok=True)
            (stubs / name).write_text(text)
        self.stubs = stubs
        parts = [f"syncd/container/{part}.sh" for part in ("gpu", "packages")]
        (self.folder / "syncd/container").mkdir(parents=True)
        for name in ("start_vast.sh", "supervisord.conf", "pyproject.toml", *parts):
            shutil.copy(ROOT / name, self.folder / name)
        venv = self.folder / ".venv"
        (venv / "bin").mkdir(parents=True)
        self.tool(venv / "bin" / "python", f'exec {sys.executable} "$@"')
        digest = hashlib.sha256((self.folder / "pyproject.toml").read_bytes()).hexdigest()
        (venv / ".installed").write_text(
            "".join(f"{digest} {extra} {self.folder}\n" for extra in EXTRAS)
        )
        (self.folder / "market.csv").write_text("date,close\n")

    def tool(self, path: Path, script: str) -> None:
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def smi(self, script: str) -> None:
        self.tool(self.bin / "nvidia-smi", script)

    def environ(self, **more: str) -> dict[str, str]:
        return {
            "PATH": self.path,
            "HOME": str(self.folder),
            "PYTHONPATH": str(self.stubs),
            "PROC_1_ENVIRON": "/nonexistent",
            "PIP_RETRY_DELAY": "0",
            "GPU_CHECK_TIMEOUT": "1",
            "STUB_ARCHS": CUDA_13,
            **more,
        }

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", str(self.folder / "start_vast.sh"), *words],
            cwd=self.folder,
            env=self.environ(**more),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def started(self) -> tuple[list[str], dict[str, str]]:
        """The trainer's arguments, and the environment the container was started with."""
        document = json.loads((self.folder / "started.json").read_text())
        argv = document["argv"]
        return argv[argv.index("--") + 1 :], document["environ"]

    def calls(self) -> list[str]:
        return (self.folder / "calls.txt").read_text().split()


@pytest.fixture
def project(tmp_path: Path, tools: Path) -> Project:
    return Project(tmp_path, tools)


TRAIN = ("--cpu", "--data", "market.csv")


# -- options


def test_help_names_every_option_and_exit_code(project: Project) -> None:
    done = project.run("--help")
    assert done.returncode == 0
    for word in ("--demo", "--resume", "--data", "--cpu", "--check", "--allow-new", "--install"):
        assert word in done.stdout
    for code in ("  2  ", " 10  ", " 11  ", " 12  ", " 13  ", " 14  ", " 15  ", " 70  ", "143  "):
        assert code in done.stdout


@pytest.mark.parametrize("words", [["--fast"], ["data.csv"], ["--data"], ["--install", "pandas"]])
def test_an_unknown_option_is_2(project: Project, words: list[str]) -> None:
    done = project.run(*words)
    assert done.returncode == 2
    assert "ERROR" in done.stderr


@pytest.mark.parametrize("asking", ["Dockerfile", "tests/run.sh", "pyproject.toml"])
def test_every_extra_that_anyone_asks_for_can_be_installed(project: Project, asking: str) -> None:
    asked = re.findall(r"start_vast.sh --install ([a-z0-9,]+)", (ROOT / asking).read_text())
    for extras in asked or [",".join(EXTRAS)]:
        done = project.run("--install", extras)
        assert done.returncode == 0, done.stderr


def test_a_start_on_the_cpu_hands_everything_to_the_trainer(project: Project) -> None:
    done = project.run(*TRAIN, "--resume", "--", "--population", "8")
    assert done.returncode == 0, done.stderr
    arguments, environ = project.started()
    assert arguments == [
        "--resume", "--population", "8", "--data", str(project.folder / "market.csv"),
    ]  # fmt: skip
    assert environ["CUDA_VISIBLE_DEVICES"] == ""
    assert project.calls() == ["check", "restore"]


def test_without_resume_nothing_is_restored(project: Project) -> None:
    assert project.run(*TRAIN).returncode == 0
    assert project.calls() == ["check"]


def test_check_proves_and_starts_nothing(project: Project) -> None:
    done = project.run(*TRAIN, "--check")
    assert done.returncode == 0, done.stderr
    assert "ready" in done.stdout
    table = [line.split()[:2] for line in done.stdout.partition("\nstep ")[2].splitlines()[1:-1]]
    assert table == [
        ["gpu", "skipped"], ["python", "ok"], ["packages", "ok"], ["bucket", "ok"], ["data", "ok"],
    ]  # fmt: skip
    assert not (project.folder / "started.json").exists()
    assert project.run(*TRAIN, "--check", STUB_CHECK="1").returncode == 1


def test_check_ends_its_table_with_what_stands_in_the_way(project: Project) -> None:
    done = project.run("--check", "--data", "market.csv")
    assert done.returncode == 12
    assert done.stdout.splitlines()[-1].split()[:3] == ["gpu", "FAILED", "no"]


# -- the other ways to be started


def test_detached_it_leaves_at_once_and_twice_is_once(project: Project) -> None:
    slow = project.stubs / "syncd" / "container" / "__main__.py"
    slow.write_text(CONTAINER + "\nimport time\nwhile not Path('end').exists(): time.sleep(0.05)\n")
    first = project.run(*TRAIN, "--detach", "--resume", "--", "--population", "8")
    assert first.returncode == 0, first.stderr
    assert "started in the background" in first.stdout
    wait_until((project.folder / "started.json").exists, "the container")
    second = project.run(*TRAIN, "--detach", "--resume")
    assert second.returncode == 0
    assert "already running" in second.stdout
    (project.folder / "end").touch()
    lock = project.folder / ".syncd" / "start.lock"
    wait_until(lambda: free(lock), "the end of the container")
    arguments, environ = project.started()
    assert arguments == [
        "--resume", "--population", "8", "--data", str(project.folder / "market.csv"),
    ]  # fmt: skip
    assert environ["CUDA_VISIBLE_DEVICES"] == ""
    assert "start: machine" in (project.folder / ".syncd" / "start.log").read_text()


def free(lock: Path) -> bool:
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_a_drop_in_is_run_by_another_supervisord(project: Project, tmp_path: Path) -> None:
    (project.folder / "my data.csv").write_text("date,close\n")
    done = project.run("--drop-in", "--cpu", "--data", "my data.csv")
    assert done.returncode == 0, done.stderr
    (project.folder / ".syncd").mkdir(exist_ok=True)
    conf = tmp_path / "supervisord.conf"
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "eigen2.conf").write_text(done.stdout)
    conf.write_text("[supervisord]\n[include]\nfiles = conf.d/*.conf\n")
    words = [sys.executable, "-m", "supervisor.supervisord", "-n", "-c", str(conf)]
    with (tmp_path / "log").open("wb") as log:
        other = subprocess.Popen(
            [*words, "-l", str(tmp_path / "supervisord.log"), "-j", str(tmp_path / "pid")],
            cwd=tmp_path,
            env=project.environ(),
            stdout=log,
            stderr=log,
        )
    try:
        wait_until((project.folder / "started.json").exists, "the container", 60)
    finally:
        other.terminate()
        other.wait(30)
    assert project.started()[0] == ["--data", str(project.folder / "my data.csv")]


def test_a_stop_while_it_prepares_ends_with_143(project: Project) -> None:
    project.smi("touch looking; sleep 5")
    process = subprocess.Popen(
        ["bash", str(project.folder / "start_vast.sh"), "--data", "market.csv"],
        cwd=project.folder,
        env=project.environ(GPU_CHECK_TIMEOUT="5"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    wait_until((project.folder / "looking").exists, "the look for GPUs")
    process.terminate()
    assert process.wait(30) == 143


# -- already running, folders


def test_already_running_is_fine_and_said(project: Project) -> None:
    (project.folder / ".syncd").mkdir()
    with (project.folder / ".syncd" / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = project.run(*TRAIN)
    assert done.returncode == 0
    assert "already running" in done.stdout
    assert not (project.folder / "started.json").exists()


def test_a_folder_that_cannot_be_made_is_15(project: Project) -> None:
    (project.folder / ".syncd").write_text("a file in its place")
    assert project.run(*TRAIN).returncode == 15


# -- GPUs


def test_no_gpu_stops_a_training_with_the_remedy(project: Project) -> None:
    done = project.run("--data", "market.csv")
    assert done.returncode == 12
    assert "no NVIDIA GPU here" in done.stderr
    assert "--cpu" in done.stderr


def test_no_gpu_sends_the_demo_to_the_cpu(project: Project) -> None:
    done = project.run("--demo")
    assert done.returncode == 0, done.stderr
    assert "the demo runs on the CPU" in done.stderr
    arguments, environ = project.started()
    assert arguments[:2] == ["--resume", "--demo"]
    assert environ["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sleep 30", "did not answer in 1 s"),
        ("exit 9", "failed (exit 9)"),
        ("exit 0", "failed"),
        (f'echo "{SMI_OLD}"', "driver 550.54.14 is too old for CUDA 13.0, which needs 580"),
    ],
    ids=["hanging", "failing", "silent", "old driver"],
)
def test_a_gpu_that_cannot_be_used_is_12_with_the_reason(
    project: Project, script: str, words: str
) -> None:
    project.smi(script)
    done = project.run("--data", "market.csv")
    assert done.returncode == 12
    assert words in done.stderr


@pytest.mark.parametrize(
    ("line", "capability"),
    [(SMI_4090, "8.9"), (SMI_5090, "12.0"), (SMI_H100, "9.0")],
    ids=["RTX 4090", "RTX 5090", "H100"],
)
def test_the_gpus_it_is_made_for_pass(project: Project, line: str, capability: str) -> None:
    project.smi(f'echo "{line}"')
    done = project.run("--data", "market.csv", STUB_CAPABILITY=capability)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
    assert "a kernel ran" in done.stdout
    assert "CUDA_VISIBLE_DEVICES" not in project.started()[1]


def test_a_build_without_code_for_the_gpu_is_12(project: Project) -> None:
    project.smi(f'echo "{SMI_5090}"')
    (project.stubs / "torch" / "version.py").write_text('cuda = "12.6"')
    done = project.run("--data", "market.csv", STUB_CAPABILITY="12.0", STUB_ARCHS=CUDA_12_6)
    assert done.returncode == 12
    assert "has no code for a GPU (compute capability 12.0)" in done.stderr
    assert "BASE_IMAGE" in done.stderr


def test_a_4090_is_served_by_code_for_an_older_chip_of_its_family(project: Project) -> None:
    project.smi(f'echo "{SMI_OLD}"')
    (project.stubs / "torch" / "version.py").write_text('cuda = "12.1"')
    done = project.run("--data", "market.csv", STUB_ARCHS=CUDA_12_6)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kernel", "words"), [("fails", "no kernel image"), ("wrong", "computes wrongly")]
)
def test_a_kernel_that_does_not_run_is_12(project: Project, kernel: str, words: str) -> None:
    project.smi(f'echo "{SMI_4090}"')
    done = project.run("--data", "market.csv", STUB_KERNEL=kernel)
    assert done.returncode == 12
    assert words in done.stderr


def test_a_torch_without_cuda_beside_a_gpu_is_12(project: Project) -> None:
    project.smi(f'echo "{SMI_4090}"')
    (project.stubs / "torch" / "version.py").write_text("cuda = None")
    done = project.run("--data", "market.csv")
    assert done.returncode == 12
    assert "built without CUDA" in done.stderr


def test_cpu_does_not_even_look_at_the_gpus(project: Project) -> None:
    project.smi("sleep 30")
    assert project.run(*TRAIN).returncode == 0


# -- data, settings, restore


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data", "missing.csv"], "is not there"),
        (["--data", "empty.csv"], "is empty"),
        ([], "no market data"),
    ],
)
def test_a_missing_or_empty_data_file_is_13(project: Project, words: list[str], said: str) -> None:
    (project.folder / "empty.csv").touch()
    done = project.run("--cpu", *words)
    assert done.returncode == 13
    assert said in done.stderr


def test_a_missing_data_file_is_fetched_from_the_bucket_or_ends_with_13(project: Project) -> None:
    where = {"CLOUD_BUCKET": "b"}
    done = project.run("--cpu", "--data", "far.csv", STUB_DATA="1", **where)
    assert done.returncode == 13
    assert "python -m syncd data put" in done.stderr
    syncd = project.stubs / "syncd" / "__main__.py"
    fetched = 'word == "data" and Path(sys.argv[-1]).write_text(" ".join(sys.argv[2:4]))\n'
    syncd.write_text(SYNCD.replace("sys.exit", fetched + "sys.exit"))
    done = project.run("--cpu", "--data", "far.csv", **where)
    assert done.returncode == 0, done.stderr
    assert (project.folder / "far.csv").read_text() == "get far.csv"


def test_the_data_file_can_come_from_the_settings(project: Project) -> None:
    assert project.run("--cpu", TRAINER_DATA="market.csv").returncode == 0
    assert project.started()[0] == ["--data", "market.csv"]


def test_settings_that_cannot_be_used_are_2(project: Project) -> None:
    assert project.run(*TRAIN, CLOUD_PROVIDER="dropbox").returncode == 2
    assert project.run(*TRAIN, STUB_CHECK="2").returncode == 2
    assert project.run(*TRAIN, "--resume", STUB_RESTORE="2").returncode == 2


def test_a_bucket_that_is_not_ready_does_not_hold_the_training_up(project: Project) -> None:
    done = project.run(*TRAIN, STUB_CHECK="1")
    assert done.returncode == 0
    assert "WARNING: the bucket is not ready" in done.stderr


def test_a_store_out_of_reach_starts_a_new_run_loudly(project: Project) -> None:
    done = project.run(*TRAIN, "--resume", STUB_RESTORE="1")
    assert done.returncode == 0
    assert "A NEW training starts, in a run of its own" in done.stderr
    assert "--resume" not in project.started()[0]


def test_a_store_with_nothing_intact_is_14_unless_allowed(project: Project) -> None:
    done = project.run(*TRAIN, "--resume", STUB_RESTORE="3")
    assert done.returncode == 14
    assert "--allow-new" in done.stderr
    assert project.run(*TRAIN, "--resume", "--allow-new", STUB_RESTORE="3").returncode == 0
    assert "--resume" not in project.started()[0]


def test_the_demo_keeps_to_its_own_folder_whatever_the_file_says(project: Project) -> None:
    (project.folder / ".env").write_text("CLOUD_PROVIDER=s3\nCLOUD_BUCKET=real-work\n")
    assert project.run("--demo", "--cpu").returncode == 0
    environ = project.started()[1]
    demo = project.folder / "demo"
    assert environ["CLOUD_PROVIDER"] == "local"
    assert environ["CLOUD_BUCKET"] == str(demo / "bucket")
    assert environ["CHECKPOINT_DIR"] == "demo/checkpoints"
    assert environ["LOG_DIR"] == "demo/logs"
    assert environ["SYNCD_STATE_DIR"] == "demo/state"
    assert project.calls() == ["check", "restore"]


def test_the_demos_folders_can_be_chosen(project: Project) -> None:
    done = project.run("--demo", "--cpu", CHECKPOINT_DIR="mine", CLOUD_BUCKET="my-bucket")
    assert done.returncode == 0, done.stderr
    assert project.started()[1]["CHECKPOINT_DIR"] == "mine"
    assert project.started()[1]["CLOUD_BUCKET"] == "my-bucket"


# -- the environment


ENV_FILE = (
    "\ufeff# a comment\r\n"
    "\r\n"
    "PLAIN=value\r\n"
    "export EXPORTED=yes\r\n"
    'DOUBLE="two words # no comment"   # a comment\r\n'
    "SINGLE='Account=a;Key=b==$HOME'\r\n"
    'ESCAPED="say \\"hi\\"\\\\"\r\n'
    "COMMENTED=value # a comment\r\n"
    "HASH=a#b\r\n"
    "EMPTY=\r\n"
    "  SPACED  =  around  \r\n"
    "COMMAND=$(touch pwned)`touch pwned`\r\n"
    "TAKEN=from the file\r\n"
    "not a setting secret-1\r\n"
    'OPEN="secret-2\r\n'
    "LAST=no newline"
)


def test_the_env_file_is_parsed_never_run_and_never_printed(project: Project) -> None:
    (project.folder / ".env").write_bytes(ENV_FILE.encode())
    done = project.run(*TRAIN, TAKEN="from the environment", AWS_SECRET_ACCESS_KEY="secret-3")
    assert done.returncode == 0, done.stderr
    environ = project.started()[1]
    expected = {
        "PLAIN": "value",
        "EXPORTED": "yes",
        "DOUBLE": "two words # no comment",
        "SINGLE": "Account=a;Key=b==$HOME",
        "ESCAPED": 'say "hi"\\',
        "COMMENTED": "value",
        "HASH": "a#b",
        "EMPTY": "",
        "SPACED": "around",
        "COMMAND": "$(touch pwned)`touch pwned`",
        "TAKEN": "from the environment",
        "LAST": "no newline",
    }
    assert {name: environ.get(name) for name in expected} == expected
    assert "OPEN" not in environ
    assert not (project.folder / "pwned").exists()
    assert ".env line 14 is not NAME=VALUE" in done.stderr
    assert ".env line 15" in done.stderr
    assert "secret" not in done.stdout + done.stderr


def test_process_1_comes_before_the_file_and_after_ones_own(project: Project) -> None:
    first = project.folder / "environ-of-1"
    pairs = ["CLOUD_PREFIX=one", "RESUME_FROM=newest", "TRAINER_SEED=1", "LD_PRELOAD=/evil.so"]
    pairs += [f"{name}=" for name in settings_in(ROOT / ".env.example") - {"SYNCD_SETTLE"}]
    pairs += ["AWS_x[$(touch made)]=1"]
    first.write_bytes(b"\0".join(pair.encode() for pair in pairs) + b"\0")
    (project.folder / ".env").write_text("RESUME_FROM=local\nSYNCD_SETTLE=5\n")
    done = project.run(*TRAIN, PROC_1_ENVIRON=str(first), CLOUD_PREFIX="own")
    assert done.returncode == 0, done.stderr
    environ = project.started()[1]
    assert environ["CLOUD_PREFIX"] == "own"
    assert environ["RESUME_FROM"] == "newest"
    assert environ["TRAINER_SEED"] == "1"
    assert environ["SYNCD_SETTLE"] == "5"
    assert "LD_PRELOAD" not in environ
    assert settings_in(ROOT / ".env.example") <= environ.keys()
    assert not (project.folder / "made").exists()


def test_an_env_file_that_cannot_be_read_is_2(project: Project) -> None:
    (project.folder / ".env").write_text("CLOUD_BUCKET=b\n")
    (project.folder / ".env").chmod(0)
    mighty = "-dac_override,-dac_read_search"
    done = subprocess.run(
        [*(("setpriv", "--bounding-set", mighty) if os.getuid() == 0 else ()),
         "bash", str(project.folder / "start_vast.sh"), *TRAIN],
        cwd=project.folder, env=project.environ(), capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert ".env cannot be read by this user" in done.stderr
    assert not (project.folder / "started.json").exists()


@pytest.mark.parametrize(("words", "code"), [(TRAIN, 0), (("--cpu",), 13)])
def test_words_that_cannot_be_written_decide_nothing(
    project: Project, words: tuple[str, ...], code: int
) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            ["bash", str(project.folder / "start_vast.sh"), *words],
            cwd=project.folder, env=project.environ(), stdout=full, stderr=full, timeout=60,
            check=False,
        )  # fmt: skip
    assert done.returncode == code
    assert (project.folder / "started.json").exists() == (code == 0)


def settings_in(example: Path) -> set[str]:
    """Names of all settings that are explained."""
    return set(re.findall(r"^#?([A-Z][A-Z0-9_]+)=", example.read_text(), re.MULTILINE))


def test_the_example_file_can_be_used_as_it_is(project: Project) -> None:
    shutil.copy(ROOT / ".env.example", project.folder / ".env")
    done = project.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    assert ".env line" not in done.stderr


# -- Python and packages


def test_no_python_is_10(project: Project) -> None:
    shutil.rmtree(project.folder / ".venv")
    for name in ("python", "python3", "python3.10", "python3.11", "python3.12", "python3.13"):
        project.tool(project.bin / name, "exit 1")
    done = project.run(*TRAIN)
    assert done.returncode == 10
    assert "no Python 3.10 or newer" in done.stderr


def test_packages_are_tried_three_times_then_11(project: Project) -> None:
    (project.folder / ".venv" / ".installed").unlink()
    log = project.folder / "pip.txt"
    project.tool(
        project.folder / ".venv" / "bin" / "python",
        f'if [[ "$*" == "-m pip install"* ]]; then echo "$*" >>{log}; exit 1; fi\n'
        f'exec {sys.executable} "$@"',
    )
    done = project.run(*TRAIN)
    assert done.returncode == 11
    assert len(log.read_text().splitlines()) == 3
    assert "try 2 of 3" in done.stderr


def test_what_a_killed_installation_left_half_there_is_installed_again(project: Project) -> None:
    venv = project.folder / ".venv"
    (venv / ".installed").unlink()
    for name, files in {"whole-1.0": ("METADATA", "RECORD"), "half-1.0": ("METADATA",)}.items():
        (venv / f"lib/{name}.dist-info").mkdir(parents=True)
        for file in files:
            (venv / f"lib/{name}.dist-info/{file}").touch()
    seen = project.folder / "seen.txt"
    project.tool(
        venv / "bin" / "python",
        f'if [[ "$*" == "-m pip install"* ]]; then ls {venv}/lib >{seen}; exit 0; fi\n'
        f'if [[ "$*" == *purelib* ]]; then echo {venv}/lib; exit 0; fi\n'
        f'exec {sys.executable} "$@"',
    )
    assert project.run(*TRAIN).returncode == 0
    assert seen.read_text().split() == ["whole-1.0.dist-info"]


def test_an_environment_over_an_environment_sees_its_torch(tmp_path: Path) -> None:
    """Images that have torch in an environment of their own: it is not installed once more."""
    image, own = tmp_path / "image", tmp_path / "own"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", image], check=True)
    python = image / "bin" / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    packages = subprocess.check_output([python, "-c", ask], text=True).strip()
    Path(packages, "torch.py").write_text("where = 'image'\n")
    script = f"""
        set -Eeuo pipefail
        venv={own} PYTHON={python} EXIT_PYTHON=10
        say() {{ :; }}
        die() {{ echo "$@" >&2; exit 1; }}
        source {ROOT}/syncd/container/packages.sh
        make_environment
        has "$python" torch || die 'no torch'
        "$python" -c 'import sys, torch; print(torch.where, sys.prefix)'
    """
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["image", str(own)], "")


def test_an_environment_over_the_system_is_not_its_own_base(tmp_path: Path) -> None:
    """In the image the new environment comes first on PATH, before there is one."""
    own, system = tmp_path / "own", tmp_path / "system"
    system.mkdir()
    (system / "python3").symlink_to(Path(sys.base_prefix) / "bin" / "python3")
    script = f"""
        set -Eeuo pipefail
        export PATH={own}/bin:{system}:$PATH
        venv={own} EXIT_PYTHON=10
        say() {{ :; }}
        die() {{ echo "$@" >&2; exit 1; }}
        source {ROOT}/syncd/container/packages.sh
        find_python() {{ printf python3; }}
        make_environment
        "$python" -c 'import sys; print(sys.prefix)'
    """
    done = subprocess.run(["bash", "-c", script], check=False, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == ([str(own)], "")
    assert not [*own.rglob("base-environment.pth")]


@pytest.mark.parametrize(("provider", "extras"), [("local", "trainer"), ("s3", "trainer,s3")])
def test_only_the_chosen_providers_packages_are_installed(
    project: Project, provider: str, extras: str
) -> None:
    (project.folder / ".venv" / ".installed").unlink()
    log = project.folder / "pip.txt"
    project.tool(
        project.folder / ".venv" / "bin" / "python",
        f'if [[ "$*" == "-m pip install"* ]]; then echo "$*" >>{log}; exit 0; fi\n'
        f'exec {sys.executable} "$@"',
    )
    more = {"CLOUD_PROVIDER": provider, "CLOUD_BUCKET": "b"}
    assert project.run(*TRAIN, **more).returncode == 0
    assert f"-e .[{extras}]" in log.read_text()
    assert "--constraint" in log.read_text()
    before = log.read_text()
    assert project.run(*TRAIN, **more).returncode == 0
    assert log.read_text() == before, "the second start installs nothing"


@pytest.mark.parametrize(
    ("torch", "numpy"), [("2.1.2+cu121", "numpy<2\n"), ("2.2.0", "numpy<2\n"), ("2.13.0", "")]
)
def test_torch_of_the_image_stays_and_gets_the_numpy_that_it_knows(
    project: Project, torch: str, numpy: str
) -> None:
    """Built before there was NumPy 2, it fails with it at its first array."""
    venv = project.folder / ".venv"
    (venv / ".installed").unlink()
    project.tool(
        venv / "bin" / "python",
        'if [[ "$*" == "-m pip install"* ]]; then exit 0; fi\n'
        f'if [[ "$*" == *importlib.metadata* ]]; then echo {torch}; exit 0; fi\n'
        f'exec {sys.executable} "$@"',
    )
    assert project.run(*TRAIN).returncode == 0
    assert (venv / "constraints.txt").read_text() == f"torch=={torch}\n{numpy}"


def test_an_unexpected_failure_names_its_line(project: Project) -> None:
    project.tool(project.bin / "sha256sum", "exit 3")
    done = project.run(*TRAIN)
    assert done.returncode == 70
    assert "unexpected failure in line" in done.stderr


@pytest.mark.parametrize(
    ("megabytes", "words"),
    [(4000, ["less than 5 GB of disk are free", "SYNCD_KEEP_LAST_LOCAL"]),
     (64, ["/dev/shm has 64 MB", "--shm-size=1g"])],
)  # fmt: skip
def test_little_room_is_said_and_the_training_starts(
    project: Project, megabytes: int, words: list[str]
) -> None:
    row = f"d {megabytes} 0 {megabytes} 0 /"
    project.tool(project.bin / "df", f"printf '%s\\n' 'Filesystem Free' '{row}'")
    done = project.run(*TRAIN)
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stderr
