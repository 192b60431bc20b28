"""What the trainer feels: the time of its steps while something copies its checkpoints.

    python -m tests.benchmarks.steps [--loop torch|trainer] [--pairs 5] [--seconds 20]
        [--with idle,upload,rclone,aws,thread] [--device cpu|cuda]

One training process runs the whole time, on all cores: ``torch`` is a plain PyTorch loop with a
DataLoader of two workers, ``trainer`` the project's own at scale M, a generation being a step. On
a GPU each step is waited for. In turns there is nothing beside it, and one of

    idle     a daemon that watches, and has nothing to send
    upload   a daemon that sends a new checkpoint of 1 GiB, without a limit, again and again
    rclone   ``rclone copy`` of such a one, again and again
    aws      ``aws s3 sync`` of such a one, again and again
    thread   boto3's own upload in a thread of the training process

A pair is the time with it over the time without it right before; printed are the medians of the
pairs' medians and 99th percentiles. The store discards what it is sent and runs as SCHED_IDLE: it
stands for a network, which takes no core of the trainer's.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from syncd.control import Client
from tests.benchmarks.peers import BUCKET, Sink, environment, upload

BESIDE = ("idle", "upload", "rclone", "aws", "thread")
SIZE = 1024**3
_ASK = 2.0
"""Seconds between two questions whether it is committed; each of them costs a step, too."""

WARM = 8.0
"""Seconds that the loop runs before it is looked at, and after each change."""


# -- the training process: a line per step, the moment of its end and how long it took


def train(loop: str, device: str, log: Path, orders: Path) -> None:
    """Step until killed; a path in ``orders`` is uploaded by a thread when SIGUSR1 comes."""
    signal.signal(signal.SIGUSR1, lambda *_: _upload_in_thread(Path(orders.read_text())))
    step = {"torch": _torch_steps, "trainer": _trainer_steps}[loop](device)
    with log.open("a", buffering=1) as file:
        while True:
            began = time.monotonic()
            next(step)
            ended = time.monotonic()
            file.write(f"{ended} {ended - began}\n")


def _upload_in_thread(path: Path) -> None:
    import boto3

    def send() -> None:
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        while True:
            client.upload_file(str(path), BUCKET, "thread/model.bin")

    threading.Thread(target=send, daemon=True).start()


def _torch_steps(device: str) -> Iterator[None]:
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Images(Dataset[tuple[torch.Tensor, int]]):
        def __len__(self) -> int:
            return 1 << 30

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            generator = torch.Generator().manual_seed(index)
            return torch.randn(3, 32, 32, generator=generator), index % 10

    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(32 * 16 * 16, 10),
    ).to(device)
    optimiser = torch.optim.Adam(model.parameters())
    for images, labels in DataLoader(Images(), batch_size=32, num_workers=2):
        optimiser.zero_grad()
        found = model(images.to(device))
        loss = torch.nn.functional.cross_entropy(found, labels.to(device))
        torch.autograd.backward(loss)
        optimiser.step()
        loss.item()  # waits for a GPU
        yield


def _trainer_steps(device: str) -> Iterator[None]:
    from dataclasses import replace

    import torch

    from tests.benchmarks.trainer import SHAPE
    from trainer import market, reading, state, synthetic
    from trainer.environment import Exchange, Rules
    from trainer.training import advance

    where = torch.device(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.csv"
        synthetic.write_market(path, days=1600, tickers=24, seed=1)
        settings = replace(SHAPE, tradable=",".join(f"S{i:03d}" for i in range(16)))
        reading.warm(path)
        place = Exchange(market.load(path, settings, where), Rules.of(settings))
    current = state.fresh(settings, place, where)
    while True:
        advance(current, place)
        if where.type == "cuda":
            torch.cuda.synchronize()
        yield


# -- what runs beside it


class Beside:
    """Starts and ends one thing beside the training."""

    def __init__(self, sink: Sink, disk: Path, trainer: subprocess.Popen[bytes]) -> None:
        self._env = environment(sink, disk)
        self._disk = disk
        self._trainer = trainer
        self._source = disk / "model.bin"
        self._number = 0
        block = os.urandom(1 << 20)
        with self._source.open("wb") as file:
            for number in range(SIZE >> 20):
                file.write(number.to_bytes(8, "big") + block[8:])

    def _new_checkpoint(self) -> None:
        """The file takes its place by a rename, and nothing of it is as it was."""
        self._number += 1
        folder = self._disk / "checkpoints"
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            old.replace(self._source)
        with self._source.open("r+b") as file:
            for at in range(0, SIZE, 1 << 20):
                file.seek(at)
                file.write(os.urandom(8))
        self._source.replace(folder / f"model-{self._number}.bin")

    @contextmanager
    def run(self, what: str) -> Iterator[None]:
        """While this lasts it is there."""
        if what == "thread":
            self._new_checkpoint()
            (self._disk / "orders").write_text(str(next((self._disk / "checkpoints").iterdir())))
            self._trainer.send_signal(signal.SIGUSR1)
            yield
            return
        words = {
            "rclone": upload("rclone", self._env, False),
            "aws": self._sync(),
        }.get(what, [sys.executable, "-m", "syncd"])
        daemon = what in ("idle", "upload")
        stop = threading.Event()
        process: list[subprocess.Popen[bytes]] = []

        def again() -> None:
            while not stop.is_set():
                self._new_checkpoint()
                if daemon:
                    while not stop.wait(_ASK) and not self._is_committed():
                        pass
                else:
                    process[:] = [self._begin(words)]
                    process[0].wait()

        if daemon:
            shutil.rmtree(self._disk / ".syncd", ignore_errors=True)
            for old in (self._disk / "checkpoints").glob("*"):
                old.replace(self._source)
            process.append(self._begin(words))
        thread = threading.Thread(target=again)
        if what != "idle":
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for one in process:
                one.kill()
                one.wait()
            if what != "idle":
                thread.join()

    def _is_committed(self) -> bool:
        told = Client(self._disk / ".syncd").ask("/status") or {}
        point = told.get("recovery_point") or {}
        return point.get("checkpoint") == f"model-{self._number}.bin"

    def _sync(self) -> list[str]:
        words = upload("aws", self._env, False)
        at = words.index("cp")
        return [*words[:at], "sync", *words[at + 2 :]]

    def _begin(self, words: list[str]) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(words, env=self._env, cwd=self._disk, stdout=quiet, stderr=quiet)


# -- measuring


def steps_since(log: Path, began: float) -> list[float]:
    """How long each step took that began after this moment."""
    rows = [line.split() for line in log.read_text().splitlines()[:-1]]
    return [float(took) for ended, took in rows if float(ended) - float(took) > began]


def p99(values: list[float]) -> float:
    """The 99th percentile, or the greatest of fewer than a hundred."""
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def compare(loop: str, device: str, what: str, pairs: int, seconds: float) -> None:
    """Without and with it, in turns."""
    medians, tails, plain, counts = [], [], [], []
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as work:
        disk = Path(work)
        log = disk / "steps"
        log.touch()
        sink = Sink()
        sink.start()
        assert sink._process
        os.sched_setscheduler(sink._process.pid, os.SCHED_IDLE, os.sched_param(0))
        words = ["--train", loop, device, str(log), str(disk / "orders")]
        env = environment(sink, disk)
        words = [sys.executable, "-m", "tests.benchmarks.steps", *words]
        trainer = subprocess.Popen(words, env=env)
        try:
            beside = Beside(sink, disk, trainer)
            while len(log.read_text().splitlines()) < 3:
                if trainer.poll() is not None:
                    sys.exit(f"the training ended with {trainer.returncode}")
                time.sleep(0.2)
            for _ in range(1 if what == "thread" else pairs):
                time.sleep(WARM)
                began = time.monotonic()
                time.sleep(seconds)
                without = steps_since(log, began)
                with beside.run(what):
                    time.sleep(WARM)
                    sink.requests()
                    began = time.monotonic()
                    time.sleep(seconds)
                    during = steps_since(log, began)
                    counts.append(sink.requests()["bytes"] / seconds / 1e6)
                plain.append(statistics.median(without))
                medians.append(statistics.median(during) / plain[-1])
                tails.append(p99(during) / p99(without))
        finally:
            with suppress(ProcessLookupError):  # it ended before it had a group of its own
                os.killpg(trainer.pid, signal.SIGKILL)
            trainer.wait()
            sink.stop()
    print(
        f"{loop} on {device}, {what:<7} a step {1000 * statistics.median(plain):8.1f} ms; with it: "
        f"median x {statistics.median(medians):.3f} ({min(medians):.3f}-{max(medians):.3f}), p99 "
        f"x {statistics.median(tails):.3f} ({min(tails):.3f}-{max(tails):.3f}), "
        f"{statistics.median(counts):.0f} MB/s sent, {len(medians)} pairs",
        flush=True,
    )


def main() -> None:
    """By hand."""
    if sys.argv[1:2] == ["--train"]:
        os.setpgrp()  # within the session, as supervisord does it: niceness counts within one
        train(sys.argv[2], sys.argv[3], Path(sys.argv[4]), Path(sys.argv[5]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--loop", choices=("torch", "trainer"), default="torch")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--with", dest="beside", default=",".join(BESIDE))
    given = parser.parse_args()
    for what in given.beside.split(","):
        compare(given.loop, given.device, what, given.pairs, given.seconds)


if __name__ == "__main__":
    main()
