"""``python -m syncd -- COMMAND``: the command's own life, and nothing of it lost."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.processes import PATIENCE, Build, Machine, wait_until

SAVE = '''
import os, pathlib, signal, sys, time
root = pathlib.Path(os.environ["CHECKPOINT_DIR"])

def save(number):
    aside = root / f".tmp-{number}"
    aside.mkdir(parents=True)
    (aside / "state.json").write_text("{}")
    aside.rename(root / f"gen-{number:06}")

def say(text):
    print(text, flush=True)

def hear(number):
    """The signal may come before pause() begins, which would then wait for another."""
    heard = []
    signal.signal(number, lambda *_: heard.append(1))
    say("ready")
    while not heard:
        time.sleep(0.01)
    return heard
'''


@pytest.fixture
def build(build: Build) -> Iterator[Build]:
    """The shared one; here each daemon is started by the command, and is nobody's child."""
    made: list[Machine] = []

    def make(*name: str, **settings: str) -> Machine:
        made.append(build(*name, **settings))
        return made[-1]

    yield make
    for machine in made:
        for pid in daemons(machine):
            os.kill(pid, signal.SIGKILL)


def daemons(machine: Machine) -> list[int]:
    """Process ids of the daemon that works on this disk."""
    lock = machine.state / "lock"
    text = lock.read_text() if lock.exists() else ""
    return [int(text)] if text and Path(f"/proc/{text}").exists() else []


def command(code: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "syncd", *options, "--", sys.executable, "-c", SAVE + code]


class Run:
    """The command under way, its words line by line."""

    def __init__(self, machine: Machine, code: str, *options: str) -> None:
        self._errors = (machine.disk / "errors.txt").open("w+")
        self.process = subprocess.Popen(
            command(code, *options),
            cwd=machine.disk,
            env=machine.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def wait(self) -> int:
        assert self.process.stdin
        self.process.stdin.close()
        code = self.process.wait(PATIENCE)
        assert self.process.stdout
        self.process.stdout.close()
        self._errors.close()
        return code

    def errors(self) -> str:
        return Path(self._errors.name).read_text()


def committed(machine: Machine) -> list[str]:
    return [row["checkpoint"] for row in json.loads(machine.syncd("ls", "--json").stdout)]


@pytest.mark.parametrize("ending", ["sys.exit(7)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_the_command_leaves_is_committed_and_its_exit_code_kept(
    build: Build, ending: str
) -> None:
    one = build()
    run = Run(one, f"save(5)\nsave(10)\n{ending}")
    assert run.wait() == {"s": 7, "o": 137}[ending[0]], run.errors()
    assert sorted(committed(one)) == ["gen-000005", "gen-000010"]
    wait_until(lambda: daemons(one) == [], "the hanging daemon is gone")


def test_checkpoint_is_restored_before_the_command_begins(build: Build) -> None:
    one, two = build("one"), build("two")
    assert Run(one, "save(5)").wait() == 0
    run = Run(two, "say(sorted(path.name for path in root.iterdir()))")
    assert run.line() == "['gen-000005']"
    assert run.wait() == 0


def test_sigterm_goes_to_the_command_first_and_its_last_checkpoint_is_safe(build: Build) -> None:
    one = build()
    run = Run(
        one,
        """
def stop(*_):
    time.sleep(0.5)
    save(10)
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
say("ready")
signal.pause()
""",
    )
    assert run.line() == "ready"
    run.process.send_signal(signal.SIGTERM)
    assert run.wait() == 3
    assert committed(one) == ["gen-000010"]
    assert "all safe" in run.errors() or "everything complete is safe" in run.errors()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_signals_reach_the_command(build: Build, number: signal.Signals) -> None:
    run = Run(
        build(),
        f"hear({int(number)})\nsay('heard')",
    )
    assert run.line() == "ready"
    run.process.send_signal(number)
    assert run.line() == "heard"
    assert run.wait() == 0


def test_ctrl_c_at_a_terminal_is_heard_once_and_ends_no_daemon(build: Build) -> None:
    one = build()
    code = """
heard = hear(signal.SIGINT)
time.sleep(0.5)
save(5)
say(f"heard {len(heard)}")
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(one.disk)
        arguments = command(code)
        os.execve(arguments[0], arguments, one.environ)
    said = b""

    def read() -> bytes:
        try:
            return os.read(terminal, 4096)
        except OSError:
            return b""  # its other end is closed

    while b"ready" not in said:
        said += read()
    os.write(terminal, b"\x03")
    while more := read():
        said += more
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"heard 1" in said
    assert committed(one) == ["gen-000005"]


def children(pid: int) -> list[str]:
    """The command lines of a process's children."""
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with suppress(OSError):
            found.append(Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "))
    return found


def test_sigterm_during_the_flush_by_hand_does_not_replace_the_exit_code(build: Build) -> None:
    one = build()
    hold = (
        "import pathlib, sys; from syncd.lock import lock_state\n"
        "with lock_state(pathlib.Path('.syncd')): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hold], cwd=one.disk, env=one.environ, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as another:  # fmt: skip
        assert another.stdout
        assert another.stdout.readline() == "held\n"  # our daemon cannot begin
        run = Run(one, "save(5)\nsys.exit(7)")
        pid = run.process.pid
        wait_until(lambda: any("--once" in line for line in children(pid)), "a flush by hand")
        run.process.send_signal(signal.SIGTERM)
        assert run.wait() == 7


@pytest.fixture(params=["a full disk", "a reader that is gone"])
def unwritable(request: pytest.FixtureRequest) -> Iterator[int]:
    """A descriptor that nothing can be written to."""
    if request.param == "a full disk":
        place = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, place = os.pipe()
        os.close(reader)
    yield place
    os.close(place)


def test_words_that_nobody_can_read_change_nothing(build: Build, unwritable: int) -> None:
    one, two = build("one"), build("two")

    def run(machine: Machine, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=machine.disk, env=machine.environ, stdout=subprocess.PIPE,
            stderr=unwritable, text=True, timeout=PATIENCE, check=False,
        )  # fmt: skip

    assert run(one, *command("save(5)\nsys.exit(7)")).returncode == 7
    assert committed(one) == ["gen-000005"]
    begun = run(two, *command("say(sorted(path.name for path in root.iterdir()))\nsys.exit(8)"))
    assert (begun.returncode, begun.stdout) == (8, "['gen-000005']\n")
    syncd = [sys.executable, "-m", "syncd"]
    assert run(two, *syncd, "--", "no-such-program").returncode == 127
    assert run(two, *syncd, "restore").returncode == 0
    assert run(two, *syncd, "restore", "--at", "#99").returncode == 1
    assert run(two, *syncd, "--once").returncode == 0
    two.environ["CLOUD_PROVIDER"] = "s4"
    assert run(two, *syncd, "--once").returncode == 2


def test_store_that_is_down_holds_no_command_up(build: Build) -> None:
    one = build(
        CLOUD_PROVIDER="s3",
        CLOUD_BUCKET="b",
        AWS_ENDPOINT_URL="http://127.0.0.1:9",
        AWS_ACCESS_KEY_ID="a",
        AWS_SECRET_ACCESS_KEY="b",
        SYNCD_RESTORE_RETRY="0.5",
        SYNCD_SHUTDOWN_GRACE="1",
    )
    run = Run(one, "say('begun')\nsave(5)\nsys.exit(4)")
    assert run.line() == "begun"
    ended = time.monotonic()
    assert run.wait() == 4
    assert time.monotonic() - ended < 20
    assert "it is NOT known whether the store has a checkpoint" in run.errors()


def test_without_a_bucket_the_command_runs_and_it_is_said(build: Build) -> None:
    run = Run(build(CLOUD_BUCKET=""), "time.sleep(2)\nsys.exit(5)")
    assert run.wait() == 5
    assert "nothing is copied" in run.errors()


def test_daemon_that_is_killed_hurts_nobody_and_comes_back(build: Build) -> None:
    one = build()
    run = Run(one, "save(5)\nsay('saved')\ninput()\nsave(10)\nsys.exit(6)")
    assert run.line() == "saved"
    wait_until(one.has_committed("gen-000005"), run.errors())
    (first,) = daemons(one)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: daemons(one) not in ([first], []), run.errors())
    assert run.process.poll() is None
    assert "the command goes on" in run.errors()
    assert run.process.stdin
    run.process.stdin.write("go on\n")
    assert run.wait() == 6
    assert sorted(committed(one)) == ["gen-000005", "gen-000010"]


def test_daemon_that_hangs_holds_nobody_up(build: Build) -> None:
    one = build(SYNCD_SHUTDOWN_GRACE="1")
    run = Run(one, "save(5)\nsay('saved')\ninput()\nsys.exit(6)")
    assert run.line() == "saved"
    wait_until(one.has_committed("gen-000005"), run.errors())
    (hanging,) = daemons(one)
    os.kill(hanging, signal.SIGSTOP)
    assert run.process.stdin
    run.process.stdin.write("go on\n")
    assert run.wait() == 6
    assert "the daemon did not end in time" in run.errors()
    wait_until(lambda: daemons(one) == [], "the hanging daemon is gone")


def test_settings_that_cannot_be_used_are_2_before_anything_begins(build: Build) -> None:
    one = build(CLOUD_PROVIDER="s4")
    ended = one.syncd("--", sys.executable, "-c", SAVE + "save(5)")
    assert ended.returncode == 2
    assert "CLOUD_PROVIDER" in ended.stderr
    assert not one.checkpoints.exists()


@pytest.mark.parametrize(("program", "code"), [("no-such-program", 127), ("./data.txt", 126)])
def test_command_that_cannot_be_started_has_the_codes_of_a_shell(
    build: Build, program: str, code: int
) -> None:
    one = build()
    (one.disk / "data.txt").write_text("no program")
    ended = one.syncd("--", program)
    assert ended.returncode == code
    assert program in ended.stderr
    assert one.syncd("--").returncode == 2
    assert one.syncd("--once", "--", "true").returncode == 2


def test_damaged_commits_are_not_trained_over_unless_allowed(build: Build, tmp_path: Path) -> None:
    one, two = build("one"), build("two")
    assert Run(one, "save(5)").wait() == 0
    (tmp_path / "bucket/eigen2/checkpoints/gen-000005/state.json").write_bytes(b"!!")
    refused = Run(two, "say('begun')")
    assert refused.line() == ""
    assert refused.wait() == 3
    assert "--allow-new" in refused.errors()
    allowed = Run(two, "say('begun')", "--allow-new")
    assert allowed.line() == "begun"
    assert allowed.wait() == 0
