"""`python -m trainer` without two seconds of importing torch: forked from a server that has it.

The server is a fresh process that has imported and done nothing else, so what is forked from it is
as clean as what is started. But all of its children hash with one seed, and nobody can meet them
while they import: where that matters a test starts a real `worlds.Process`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

REPO = Path(__file__).resolve().parents[3]
PATIENCE = 240.0
LOADED = "trainer.session", "trainer.display", "torch.utils.tensorboard"
BEFORE_TORCH = {"OMP_NUM_THREADS": "1", "MKL_DYNAMIC": "FALSE", "OMP_WAIT_POLICY": "PASSIVE"}
"""What is read once, when torch is loaded; the trainer's command line sets the last two."""


class Server:
    """One in each of the tests' processes; it ends when its standard input does."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__], cwd=REPO, env={**os.environ, **BEFORE_TORCH},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        atexit.register(self._end)

    def run(self, order: Mapping[str, object]) -> int:
        """The exit code of a trainer; minus the signal's number where it was killed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        child = self._answer()
        try:
            return self._answer()
        except TimeoutError:
            os.kill(child, signal.SIGKILL)
            self._answer()
            raise

    def _answer(self) -> int:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], PATIENCE)[0]:
            raise TimeoutError("the trainer does not end")
        return int(self._process.stdout.readline())

    def _end(self) -> None:
        self._process.communicate()


_server = functools.cache(Server)


def run(
    folder: Path, arguments: Sequence[str], environment: Mapping[str, str]
) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a trainer in this folder."""
    with tempfile.TemporaryDirectory() as place:
        said = [Path(place) / "out", Path(place) / "err"]
        code = _server().run({
            "folder": str(folder), "arguments": list(arguments), "environment": dict(environment),
            "said": [str(path) for path in said],
        })  # fmt: skip
        out, err = (path.read_text() for path in said)
    return code, out, err


def _serve() -> None:
    """Fork for each line; a child returns from here, to end as any Python does."""
    for name in LOADED:
        importlib.import_module(name)
    tasks = list(Path("/proc/self/task").iterdir())
    assert len(tasks) == 1, "what is forked beside threads may wait for them for ever"
    gc.freeze()  # a child that looks through all of it at its end copies all of it
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            _become(**json.loads(line))
            return
        os.write(1, b"%d\n" % child)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


def _become(
    folder: str, arguments: list[str], environment: dict[str, str], said: list[str]
) -> None:
    """Be what `python -m trainer` would be; ends by SystemExit."""
    flags = os.O_WRONLY | os.O_CREAT
    for descriptor, path in enumerate([os.devnull, *said]):
        os.dup2(os.open(path, flags if descriptor else os.O_RDONLY), descriptor)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv[1:] = arguments
    sys.path[0] = folder
    sys.path_importer_cache.clear()
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve()
