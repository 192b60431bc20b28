"""S3: SeaweedFS, a real server, over http and https; moto, a strict double of the API."""

from __future__ import annotations

import functools
import json
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import boto3
import trustme
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tests.servers.process import Server, free_port, program

KEY, SECRET = "AKTEST", "SKTESTSKTEST"
LIMITED_KEY = "AKLIMITED"

_GROWTH = """
[master.maintenance]
scripts = ""
sleep_minutes = 100000
[master.volume_growth]
copy_1 = 1
copy_2 = 1
copy_3 = 1
copy_other = 1
threshold = 0.9
"""


@functools.cache
def _client(url: str, ca: str | None) -> Any:
    """One for each server: it takes a third of a second to make, and tests want hundreds."""
    return boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        region_name="us-east-1",
        verify=ca,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 3}),
    )


class S3Server(Server):
    """What both have in common."""

    ca: Path | None = None

    def env(self) -> dict[str, str]:
        env = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.url,
        }
        return env | ({"AWS_CA_BUNDLE": str(self.ca)} if self.ca else {})

    def client(self) -> Any:
        """boto3 itself, to look behind the store's back; it can be closed and used again."""
        return _client(self.url, str(self.ca) if self.ca else None)

    def ready(self) -> bool:
        if not super().ready():
            return False
        client = self.client()
        try:
            client.list_buckets()
        except (ClientError, BotoCoreError):
            return False
        finally:
            client.close()
        return True


class SeaweedFS(S3Server):
    """Verifies signatures and checksums and keeps conditions; survives a kill."""

    def __init__(self, tls: bool = False, limited: Sequence[str] = ()) -> None:
        """``limited``: what a second identity may do, such as ``Read:bucket/prefix/*``."""
        super().__init__()
        self._tls = tls
        if tls:
            authority = trustme.CA()
            certificate = authority.issue_cert("127.0.0.1", "localhost")
            self.ca = self.folder / "ca.crt"
            authority.cert_pem.write_to_path(str(self.ca))
            certificate.private_key_pem.write_to_path(str(self.folder / "server.key"))
            for blob in certificate.cert_chain_pems:
                blob.write_to_path(str(self.folder / "server.crt"), append=True)
        identity = {
            "name": "admin",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        second = {
            "name": "limited",
            "credentials": [{"accessKey": LIMITED_KEY, "secretKey": SECRET}],
            "actions": list(limited),
        }
        (self.folder / "s3.json").write_text(json.dumps({"identities": [identity, second]}))
        (self.folder / "master.toml").write_text(_GROWTH)

    def choose_ports(self) -> None:
        super().choose_ports()
        self._ports = {name: free_port() for name in ("master", "volume", "filer", "s3", "metrics")}

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        plain = self._ports["s3"] if self._tls else self.port
        secure = (
            f"-s3.port.https={self.port}",
            f"-s3.cert.file={self.folder / 'server.crt'}",
            f"-s3.key.file={self.folder / 'server.key'}",
        )
        return [
            program("bin", "weed"),
            f"-logdir={self.folder}",
            "-alsologtostderr=false",
            f"-config_dir={self.folder}",
            "mini",
            f"-dir={self.folder}",
            "-ip=127.0.0.1",  # by default it listens on the machine's own address
            "-ip.bind=127.0.0.1",
            "-master.telemetry=false",  # on by default
            "-admin.ui=false",
            "-webdav=false",
            f"-master.port={self._ports['master']}",
            f"-volume.port={self._ports['volume']}",
            f"-filer.port={self._ports['filer']}",
            f"-s3.port={plain}",
            f"-s3.config={self.folder / 's3.json'}",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",
            *(secure if self._tls else ()),
            "-master.volumeSizeLimitMB=1024",
            "-volume.max=200",
        ]


class Rclone(S3Server):
    """Takes If-None-Match and ignores it: on such a store no writer can be fenced."""

    def command(self) -> Sequence[str]:
        (self.folder / "data").mkdir(exist_ok=True)
        return [
            program("bin", "rclone"),
            "serve",
            "s3",
            "--config=",
            f"--addr=127.0.0.1:{self.port}",
            f"--auth-key={KEY},{SECRET}",
            "--vfs-cache-mode=off",
            str(self.folder / "data"),
        ]


class Moto(S3Server):
    """Accepts wrong checksums, and until ``enforce`` wrong secrets: no evidence of either."""

    def command(self) -> Sequence[str]:
        return [program("bin", "moto_server"), "-H", "127.0.0.1", "-p", str(self.port)]

    def user(self, name: str, policy: Mapping[str, Any]) -> dict[str, str]:
        """A user of IAM with this policy; the settings of its key."""
        iam = boto3.session.Session().client(
            "iam",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )
        iam.create_user(UserName=name)
        iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
        key = iam.create_access_key(UserName=name)["AccessKey"]
        iam.close()
        return {
            **self.env(),
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
        }

    def enforce(self) -> None:
        """From now on signatures and policies count."""
        reset = urllib.request.Request(
            f"{self.url}/moto-api/reset-auth",
            data=b"0",
            method="POST",
            headers={"Content-Type": "text/plain"},
        )
        urllib.request.urlopen(reset, timeout=10).close()
