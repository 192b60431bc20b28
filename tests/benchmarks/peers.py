"""The tools that the benchmarks compare with, and the servers: how each is called."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.servers.azure import ACCOUNT, Azurite, connection_string
from tests.servers.azure import SECRET as AZURE_SECRET
from tests.servers.gcs import FakeGcs
from tests.servers.process import NotInstalled, Server
from tests.servers.s3 import KEY, SECRET, SeaweedFS

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


class Place(Protocol):
    """Where a benchmark's files go."""

    folder: Path
    keeps: bool
    """Whether what is sent can be fetched again."""

    def start(self) -> None: ...
    def stop(self) -> None: ...
    def env(self) -> dict[str, str]: ...
    def make_bucket(self) -> None: ...


def _s3(url: str) -> dict[str, str]:
    return {
        "CLOUD_PROVIDER": "s3",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "BUCKET": BUCKET,
        "RCLONE_CONFIG_S_TYPE": "s3",
        "RCLONE_CONFIG_S_PROVIDER": "Other",
        "RCLONE_CONFIG_S_ENV_AUTH": "true",
        "RCLONE_CONFIG_S_ENDPOINT": url,
        "RCLONE_CONFIG_S_REGION": "us-east-1",
        "RCLONE_CONFIG_S_FORCE_PATH_STYLE": "true",
    }


class Weed(SeaweedFS):
    """SeaweedFS; over TLS the tools in Go must be told whom to trust."""

    keeps = True

    def env(self) -> dict[str, str]:
        trust = {"SSL_CERT_FILE": str(self.ca), "RCLONE_CA_CERT": str(self.ca)} if self.ca else {}
        return {**super().env(), **_s3(self.url), **trust}

    def make_bucket(self) -> None:
        client = self.client()
        client.create_bucket(Bucket=BUCKET)
        client.close()


class Azure(Azurite):
    """Azurite, by the same account for all."""

    keeps = True

    def env(self) -> dict[str, str]:
        return {
            "CLOUD_PROVIDER": "azure",
            "AZURE_STORAGE_CONNECTION_STRING": connection_string(self.url),
            "RCLONE_CONFIG_S_TYPE": "azureblob",
            "RCLONE_CONFIG_S_ACCOUNT": ACCOUNT,
            "RCLONE_CONFIG_S_KEY": AZURE_SECRET,
            "RCLONE_CONFIG_S_ENDPOINT": f"{self.url}/{ACCOUNT}",
        }

    def make_bucket(self) -> None:
        from azure.storage.blob import BlobServiceClient

        with BlobServiceClient.from_connection_string(connection_string(self.url)) as service:
            service.create_container(BUCKET)


class Google(FakeGcs):
    """fake-gcs-server without the strict layer, which would be what is measured."""

    keeps = True

    def env(self) -> dict[str, str]:
        return {
            "CLOUD_PROVIDER": "gcs",
            "STORAGE_EMULATOR_HOST": self.url,
            "RCLONE_CONFIG_S_TYPE": "google cloud storage",
            "RCLONE_CONFIG_S_ANONYMOUS": "true",
            "RCLONE_CONFIG_S_ENDPOINT": f"{self.url}/storage/v1/",
            "RCLONE_CONFIG_S_BUCKET_POLICY_ONLY": "true",
        }

    def make_bucket(self) -> None:
        body = json.dumps({"name": BUCKET}).encode()
        address = f"{self.url}/storage/v1/b?project=bench"
        asked = urllib.request.Request(
            address, body, {"Content-Type": "application/json"}, method="POST"
        )
        urllib.request.urlopen(asked).close()


class Folder:
    """A directory store: no server at all."""

    keeps = True

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="folder-"))

    def start(self) -> None: ...

    def stop(self) -> None:
        shutil.rmtree(self.folder)

    def env(self) -> dict[str, str]:
        return {
            "CLOUD_PROVIDER": "local",
            "CLOUD_BUCKET": str(self.folder / BUCKET),
            "RCLONE_CONFIG_S_TYPE": "alias",
            "RCLONE_CONFIG_S_REMOTE": str(self.folder),
        }

    def make_bucket(self) -> None:
        (self.folder / BUCKET).mkdir()


class Sink(Server):
    """The server that discards bodies."""

    keeps = False

    def make_bucket(self) -> None: ...

    def env(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
            **_s3(self.url),
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
        return [_compiled("sink"), str(self.port)]


def _compiled(name: str) -> str:
    """A program of ours in C."""
    binary, source = HOME / name, Path(__file__).with_name(f"{name}.c")
    if not binary.exists() or binary.stat().st_mtime < source.stat().st_mtime:
        HOME.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-O2", "-pthread", "-o", binary, source], check=True)
    return str(binary)


class _Line(Server):
    """A line to a store as far away as one in another region: 30 ms, and 60 MB/s a connection."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._to = port

    def command(self) -> Sequence[str]:
        return [_compiled("far"), str(self.port), str(self._to), "30", "60"]


class Far:
    """Another place, by such a line."""

    def __init__(self, place: Sink | Weed) -> None:
        self._place = place
        self.folder, self.keeps = place.folder, place.keeps

    def start(self) -> None:
        self._place.start()
        self._line = _Line(self._place.port)
        self._line.start()

    def stop(self) -> None:
        self._line.stop()
        self._place.stop()

    def env(self) -> dict[str, str]:
        near = self._place.url
        return {k: v.replace(near, self._line.url) for k, v in self._place.env().items()}

    def make_bucket(self) -> None:
        self._place.make_bucket()


SERVERS: dict[str, Callable[[], Place]] = {
    "sink": Sink,
    "sink-far": lambda: Far(Sink()),
    "seaweedfs": Weed,
    "seaweedfs-far": lambda: Far(Weed()),
    "seaweedfs-tls": lambda: Weed(tls=True),
    "azurite": Azure,
    "fakegcs": Google,
    "directory": Folder,
}


def environment(place: Place, disk: Path) -> dict[str, str]:
    """What every tool is given; ``disk`` is the folder with ``checkpoints`` in it."""
    keep = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return {
        **keep,
        "HOME": str(place.folder),
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "CLOUD_BUCKET": BUCKET,
        "CLOUD_PREFIX": PREFIX,
        "CHECKPOINT_DIR": str(disk / "checkpoints"),
        "LOG_DIR": str(disk / "logs"),
        "SYNCD_STATE_DIR": str(disk / ".syncd"),
        "SYNCD_HTTP": "off",
        "SYNCD_SETTLE": "0",
        "RCLONE_CONFIG": "",
        **place.env(),
    }


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
