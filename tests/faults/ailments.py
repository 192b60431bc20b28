"""What can befall a daemon and its store: each function begins one such fault.

It returns the words that the reason for being red must hold.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.e2e.processes import wait_until
from tests.e2e.test_disk_and_clock import clock as wrong_clock
from tests.faults.healthrig import Rig
from tests.servers.fixtures import fresh_name
from tests.servers.s3 import Rclone

MIB = 2**20


def refusal(status: str, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"Connection: close\r\n\r\n" + body


def fill(folder: Path) -> None:
    with (folder / "fill").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def bucket_is_not_there(rig: Rig) -> str:
    rig.start_broken(CLOUD_BUCKET=str(rig.folder / "not/mounted"))
    return "does not exist"


def volume_goes_away(rig: Rig) -> str:
    volume = rig.folder / "volume"
    volume.mkdir()
    rig.begin(CLOUD_BUCKET=str(volume / "bucket"))
    volume.rename(rig.folder / "gone")
    rig.now()
    rig.write()
    return str(volume)


def bucket_is_full(rig: Rig) -> str:
    rig.begin(CLOUD_BUCKET=str(rig.small_disk("small")))
    rig.now()
    rig.write(2 * MIB)
    return "No space left"


def bucket_turns_read_only(rig: Rig) -> str:
    small = rig.small_disk("small")
    rig.begin(CLOUD_BUCKET=str(small))
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    rig.now()
    rig.write()
    return "Read-only file system"


def bucket_may_not_be_written(rig: Rig) -> str:
    rig.build()
    through = rig.without_roots_rights()
    rig.bucket.chmod(0o500)
    rig.write()
    rig.one.start(*through)
    rig.now()
    return "Permission denied"


def name_is_not_utf8(rig: Rig) -> str:
    rig.begin()
    rig.now()
    (rig.one.checkpoints / os.fsdecode(b"best-\xff.bin")).write_bytes(b"weights")
    return "not UTF-8"


def name_is_too_long(rig: Rig) -> str:
    rig.begin()
    rig.now()
    path = rig.one.checkpoints / "/".join("d" * 240 for _ in range(5)) / "w.bin"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    return "stores take 1024"


def file_may_not_be_read(rig: Rig) -> str:
    rig.build()
    rig.one.start(*rig.without_roots_rights())
    rig.commit()
    rig.now()
    path = rig.one.checkpoints / "other/w.bin"
    path.parent.mkdir()
    path.write_bytes(b"weights")
    path.chmod(0)
    return "cannot be read"


def log_name_is_not_utf8(rig: Rig) -> str:
    rig.begin()
    (rig.one.disk / "logs").mkdir(exist_ok=True)
    rig.now()
    (rig.one.disk / "logs" / os.fsdecode(b"train-\xff.log")).write_text("a line\n")
    return "a log's name is not UTF-8"


def journals_disk_turns_read_only(rig: Rig) -> str:
    small = rig.small_disk("small")
    rig.build(SYNCD_STATE_DIR=str(small))
    rig.one.state = small
    rig.one.start()
    rig.commit()
    fill(small)
    rig.now()
    for _ in range(3):
        rig.write()
    return "the journal cannot be written"


def another_machine_takes_over(rig: Rig) -> str:
    rig.begin()
    two = rig.build()
    assert two.syncd("restore").returncode == 0
    two.start()
    rig.commit(two)
    rig.now()
    rig.write()
    return "another machine"


def two_machines_on_a_store_that_cannot_fence(rig: Rig) -> str:
    server: Rclone = rig.request.getfixturevalue("rclone")
    name = fresh_name()
    client = server.client()
    client.create_bucket(Bucket=name)
    client.close()
    cloud = {**server.env(), "CLOUD_PROVIDER": "s3", "CLOUD_BUCKET": name}
    rig.begin(**cloud)
    two = rig.build(**cloud)
    two.start()
    rig.commit(two)
    rig.now()
    rig.write()
    return "written side by side"


def settings_file_is_spoilt(rig: Rig) -> str:
    rig.start_broken(CLOUD_BUCKET=str(rig.folder / "not/mounted"))
    wait_until(lambda: rig.healthz()[0] == 503, "the first fault")
    rig.now()
    (rig.one.disk / ".env").write_text("SYNCD_BWLIMIT=fast\n")
    return "SYNCD_BWLIMIT"


def commit_is_damaged_in_the_store(rig: Rig) -> str:
    rig.begin()
    (path,) = rig.bucket.glob("eigen2/checkpoints/run/*/w.bin")
    path.write_bytes(b"other words")
    rig.now()
    assert rig.one.syncd("verify").returncode == 3
    return "is not intact in the store"


def bucket_was_never_made(rig: Rig) -> str:
    rig.start_broken(**rig.s3(CLOUD_BUCKET="never-made"))
    return "never-made"


def bucket_is_deleted(rig: Rig) -> str:
    settings = rig.s3()
    rig.begin(**settings)
    client = rig.request.getfixturevalue("seaweedfs").client()
    name = settings["CLOUD_BUCKET"]
    for item in client.list_objects_v2(Bucket=name)["Contents"]:
        client.delete_object(Bucket=name, Key=item["Key"])
    client.delete_bucket(Bucket=name)
    client.close()
    rig.now()
    rig.write()
    return "NoSuchBucket"


def secret_is_wrong(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_SECRET_ACCESS_KEY="not-the-secret"))
    return "AWS_SECRET_ACCESS_KEY"


def key_is_unknown(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_ACCESS_KEY_ID="AKNOBODY"))
    return "AWS_ACCESS_KEY_ID"


def half_of_the_credentials(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_SECRET_ACCESS_KEY=""))
    return "only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def nobody_listens(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_ENDPOINT_URL="http://127.0.0.1:9"))
    return "cannot be reached"


def endpoint_speaks_no_tls(rig: Rig) -> str:
    settings = rig.s3()
    url = settings["AWS_ENDPOINT_URL"].replace("http:", "https:")
    rig.start_broken(**{**settings, "AWS_ENDPOINT_URL": url})
    return "TLS"


def endpoint_is_no_address(rig: Rig) -> str:
    rig.start_broken(**rig.s3(AWS_ENDPOINT_URL="not an address"))
    return "the endpoint cannot be used"


def sdk_is_not_installed(rig: Rig) -> str:
    hidden = rig.folder / "hidden"
    hidden.mkdir()
    words = "import sys\nsys.modules.update(boto3=None, botocore=None)\n"
    (hidden / "sitecustomize.py").write_text(words)
    path = os.pathsep.join((str(hidden), str(Path(__file__).parents[2])))
    rig.start_broken(**rig.s3(PYTHONPATH=path))
    return "pip install"


def clock_is_wrong(rig: Rig) -> str:
    moment = rig.folder / "clock"
    moment.write_text("+0")
    rig.begin(**rig.s3(**wrong_clock(file=moment)))
    moment.write_text("+20m")
    rig.now()
    rig.write()
    return "the clock of this machine"


def line_breaks(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.cut_after = 0
    rig.now()
    rig.write()
    return "cannot be reached"


def refused(status: str, code: str) -> Callable[[Rig], str]:
    """The store answers everything like this from some moment on."""

    def fault(rig: Rig) -> str:
        rig.begin(**rig.s3())
        rig.wire.refuse = refusal(status, code)
        rig.now()
        rig.write()
        return code

    fault.__name__ = code
    return fault


def bytes_change_on_their_way(rig: Rig) -> str:
    rig.begin(**rig.s3())
    rig.wire.replace = (b"weights---", b"weights-+-")
    rig.now()
    rig.write(1000)
    return "changed on its way"


def black_hole(rig: Rig) -> str:
    rig.begin(**rig.s3(SYNCD_MAX_LAG="5"))
    rig.wire.flows.clear()
    rig.now()
    rig.write()
    return "SYNCD_MAX_LAG=5"


def line_is_too_thin_for_the_users_bound(rig: Rig) -> str:
    rig.begin(**rig.s3(SYNCD_MAX_LAG="5"))
    rig.wire.rate = 50_000
    rig.now()
    rig.write(4 * MIB)
    return "SYNCD_MAX_LAG=5"


def google_key_file_is_missing(rig: Rig) -> str:
    rig.start_broken(
        CLOUD_PROVIDER="gcs",
        CLOUD_BUCKET="b",
        GOOGLE_APPLICATION_CREDENTIALS=str(rig.folder / "no.json"),
    )
    return "GOOGLE_APPLICATION_CREDENTIALS"


def azure_connection_string_is_cut(rig: Rig) -> str:
    rig.start_broken(
        CLOUD_PROVIDER="azure", CLOUD_BUCKET="b", AZURE_STORAGE_CONNECTION_STRING="AccountNam"
    )
    return "AZURE_STORAGE_CONNECTION_STRING"


FAULTS: tuple[Callable[[Rig], str], ...] = (
    bucket_is_not_there,
    volume_goes_away,
    bucket_is_full,
    bucket_turns_read_only,
    bucket_may_not_be_written,
    name_is_not_utf8,
    name_is_too_long,
    file_may_not_be_read,
    log_name_is_not_utf8,
    journals_disk_turns_read_only,
    another_machine_takes_over,
    two_machines_on_a_store_that_cannot_fence,
    settings_file_is_spoilt,
    commit_is_damaged_in_the_store,
    bucket_was_never_made,
    bucket_is_deleted,
    secret_is_wrong,
    key_is_unknown,
    half_of_the_credentials,
    nobody_listens,
    endpoint_speaks_no_tls,
    endpoint_is_no_address,
    sdk_is_not_installed,
    clock_is_wrong,
    line_breaks,
    refused("503 Service Unavailable", "SlowDown"),
    refused("403 Forbidden", "AccessDenied"),
    refused("400 Bad Request", "ExpiredToken"),
    refused("403 Forbidden", "QuotaExceeded"),
    bytes_change_on_their_way,
    black_hole,
    line_is_too_thin_for_the_users_bound,
    google_key_file_is_missing,
    azure_connection_string_is_cut,
)
