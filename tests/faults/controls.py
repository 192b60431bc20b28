"""What people run today, as a control: a plain sync in a loop. The rig must catch it out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.faults.hosts import LINK, Host
from tests.servers.process import program

_FOLDER = "eigen2/checkpoints"
_REST = 0.5
"""Seconds between the end of a sync and the next one."""


def _loop(command: list[str], environ: Mapping[str, str]) -> Callable[[], object]:
    def work() -> None:
        while True:
            subprocess.run(
                command, env=environ, stdout=sys.stderr, stdin=subprocess.DEVNULL, check=False
            )
            time.sleep(_REST)

    return work


def _rclone(host: Host) -> Callable[[], object]:
    host.checkpoints.mkdir(exist_ok=True)
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(host.disk),
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": host.settings["AWS_ACCESS_KEY_ID"],
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": host.settings["AWS_SECRET_ACCESS_KEY"],
        "RCLONE_CONFIG_STORE_REGION": host.settings["AWS_REGION"],
        "RCLONE_CONFIG_STORE_ENDPOINT": host.settings["AWS_ENDPOINT_URL"],
    }
    store = f"store:{host.settings['CLOUD_BUCKET']}/{_FOLDER}"
    limit = ("--bwlimit", f"{LINK / 1024:.0f}K", "--stats", "0", "--retries", "1")
    sync = [program("bin", "rclone"), "sync", str(host.checkpoints), store, *limit]
    return _loop(sync, environ)


def _aws(host: Host) -> Callable[[], object]:
    host.checkpoints.mkdir(exist_ok=True)
    config = host.disk / "aws.config"
    config.write_text(f"[default]\ns3 =\n  max_bandwidth = {LINK // 1024}KB/s\n")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL")
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(host.disk),
        "AWS_CONFIG_FILE": str(config),
        "AWS_EC2_METADATA_DISABLED": "true",
        **{name: host.settings[name] for name in names},
    }
    store = f"s3://{host.settings['CLOUD_BUCKET']}/{_FOLDER}"
    sync = [program("bin", "aws"), "s3", "sync", str(host.checkpoints), store, "--no-progress"]
    return _loop(sync, environ)


CONTROLS: dict[str, Callable[[Host], Callable[[], object]]] = {"rclone": _rclone, "aws": _aws}


def bring_home(settings: Mapping[str, str], folder: Path) -> None:
    """A plain download of everything, by name."""
    import boto3

    folder.mkdir()
    client = boto3.session.Session().client(
        "s3",
        endpoint_url=settings["AWS_ENDPOINT_URL"],
        aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        region_name=settings["AWS_REGION"],
    )
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=settings["CLOUD_BUCKET"])
    for page in pages:
        for item in page.get("Contents", []):
            place = folder / str(item["Key"]).removeprefix(f"{_FOLDER}/")
            place.parent.mkdir(parents=True, exist_ok=True)
            client.download_file(settings["CLOUD_BUCKET"], item["Key"], str(place))
    client.close()
