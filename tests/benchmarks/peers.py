"""The tools that the benchmarks compare with, and the servers: how each is called."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.servers.process import NotInstalled, Server
from tests.servers.s3 import KEY, SECRET, S3Server, SeaweedFS

HOME = Path(__file__).parent.parent / ".peers"
ROOT = Path(__file__).parents[2]
BUCKET = "bench"
PREFIX = "eigen2"

_OBSTORE = """
import asyncio, os, sys
import obstore
from obstore.store import S3Store
from pathlib import Path
way, folder, prefix, width = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store = S3Store(os.environ["BUCKET"], endpoint=os.environ["AWS_ENDPOINT_URL"],
    client_options={"allow_http": True}, virtual_hosted_style_request=False)
async def main():
    gate = asyncio.Semaphore(width)
    async def up(path):
        async with gate:
            await obstore.put_async(store, f"{prefix}/{path.relative_to(folder)}", path)
    async def down(meta):
        async with gate:
            target = folder / meta["path"].removeprefix(prefix + "/")
            target.parent.mkdir(parents=True, exist_ok=True)
            got = await obstore.get_async(store, meta["path"])
            with open(target, "wb") as file:
                async for chunk in got.stream(min_chunk_size=1 << 20):
                    file.write(chunk)
    if way == "upload":
        await asyncio.gather(*(up(p) for p in folder.rglob("*") if p.is_file()))
    else:
        found = [m for page in obstore.list(store, prefix) for m in page]
        await asyncio.gather(*(down(m) for m in found))
asyncio.run(main())
os._exit(0)  # it has aborted at the interpreter's end
"""


def program(name: str) -> str:
    """A peer that install.sh has put below tests/.peers."""
    path = HOME / "bin" / name
    if not path.exists():
        raise NotInstalled(f"{name} is not installed: run tests/benchmarks/install.sh")
    return str(path)


class Sink(Server):
    """The server that discards bodies."""

    ca: Path | None = None

    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }

    def requests(self) -> dict[str, int]:
        """What was asked since the last time: put, post, get, head, and bytes."""
        known = self.log.stat().st_size
        assert self._process
        self._process.send_signal(signal.SIGUSR1)
        while self.log.stat().st_size == known:
            time.sleep(0.01)
        words = self.log.read_text().splitlines()[-1].split()
        return dict(zip(words[::2], map(int, words[1::2]), strict=True))

    def command(self) -> Sequence[str]:
        binary, source = HOME / "sink", Path(__file__).with_name("sink.c")
        if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
            HOME.mkdir(exist_ok=True)
            subprocess.run(["gcc", "-O2", "-pthread", "-o", binary, source], check=True)
        return [str(binary), str(self.port)]


SERVERS: dict[str, Callable[[], Sink | S3Server]] = {
    "sink": Sink,
    "seaweedfs": SeaweedFS,
    "seaweedfs-tls": lambda: SeaweedFS(tls=True),
}


def environment(server: Sink | S3Server, disk: Path) -> dict[str, str]:
    """What every tool is given; ``disk`` is the folder with ``checkpoints`` in it."""
    keep = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    env = {
        **keep,
        **server.env(),
        "HOME": str(server.folder),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "BUCKET": BUCKET,
        "PYTHONPATH": str(ROOT),
        "CLOUD_PROVIDER": "s3",
        "CLOUD_BUCKET": BUCKET,
        "CLOUD_PREFIX": PREFIX,
        "CHECKPOINT_DIR": str(disk / "checkpoints"),
        "LOG_DIR": str(disk / "logs"),
        "SYNCD_STATE_DIR": str(disk / ".syncd"),
        "SYNCD_HTTP": "off",
        "SYNCD_SETTLE": "0",
        "RCLONE_CONFIG": "",
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Other",
        "RCLONE_CONFIG_S_ENV_AUTH": "true",
        "RCLONE_CONFIG_S_ENDPOINT": server.url,
        "RCLONE_CONFIG_S_REGION": "us-east-1",
        "RCLONE_CONFIG_S_FORCE_PATH_STYLE": "true",
    }
    if server.ca:  # for the tools in Go
        env |= {"SSL_CERT_FILE": str(server.ca), "RCLONE_CA_CERT": str(server.ca)}
    return env


def upload(tool: str, env: Mapping[str, str], small: bool) -> list[str]:
    """The command that copies CHECKPOINT_DIR to ``checkpoints`` below the prefix."""
    folder, target = env["CHECKPOINT_DIR"], f"{BUCKET}/{PREFIX}/checkpoints"
    return {
        "syncd": lambda: [sys.executable, "-m", "syncd", "--once"],
        "s5cmd": lambda: _s5cmd(env, "cp", f"{folder}/", f"s3://{target}/"),
        "rclone": lambda: _rclone(small, folder, f"s:{target}"),
        "aws": lambda: _aws(env, folder, f"s3://{target}"),
        "obstore": lambda: _obstore("upload", folder, small),
    }[tool]()


def download(tool: str, env: Mapping[str, str], small: bool, to: Path) -> list[str]:
    """The command that brings it back into the folder ``to``."""
    source = f"{BUCKET}/{PREFIX}/checkpoints"
    return {
        "syncd": lambda: [sys.executable, "-m", "syncd", "restore", "--to", str(to)],
        "s5cmd": lambda: _s5cmd(env, "cp", f"s3://{source}/*", f"{to}/"),
        "rclone": lambda: _rclone(small, f"s:{source}", str(to)),
        "aws": lambda: _aws(env, f"s3://{source}", str(to)),
        "obstore": lambda: _obstore("download", str(to), small),
    }[tool]()


def _s5cmd(env: Mapping[str, str], *words: str) -> list[str]:
    return [program("s5cmd"), "--log", "error", "--endpoint-url", env["AWS_ENDPOINT_URL"], *words]


def _rclone(small: bool, source: str, target: str) -> list[str]:
    more = ["--transfers=16", "--checkers=16"] if small else []
    words = ["copy", "--s3-no-check-bucket", "--no-traverse", *more, source, target]
    return [program("rclone"), *words]


def _aws(env: Mapping[str, str], source: str, target: str) -> list[str]:
    words = ["s3", "--endpoint-url", env["AWS_ENDPOINT_URL"], "cp", "--recursive", "--quiet"]
    return [program("aws"), *words, source, target]


def _obstore(way: str, folder: str, small: bool) -> list[str]:
    width = "64" if small else "10"
    return [program("python"), "-c", _OBSTORE, way, folder, f"{PREFIX}/checkpoints", width]
