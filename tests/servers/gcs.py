"""Google Cloud Storage: fake-gcs-server behind a strict layer, and gcp-storage-emulator."""

from __future__ import annotations

import platform
from collections.abc import Sequence

from tests.servers.process import HOME, NotInstalled, Server, program

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class FakeGcs(Server):
    """Simple uploads keep preconditions; what it does not enforce, the strict layer does."""

    def command(self) -> Sequence[str]:
        machine = _ARCHITECTURES.get(platform.machine(), platform.machine())
        name = f"fake-gcs-server-{platform.system().lower()}-{machine}"
        found = next(HOME.glob(f"lib/python*/site-packages/*/vendor/*/bin/{name}"), None)
        if not found:
            raise NotInstalled(f"{name} is not installed: run tests/servers/install.sh")
        return [
            str(found),
            *("-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)),
            *("-public-host", f"127.0.0.1:{self.port}", "-external-url", self.url),
            *("-backend", "memory", "-log-level", "warn"),
        ]


class GcpEmulator(Server):
    """Answers the status query of an interrupted resumable upload as Google does."""

    def command(self) -> Sequence[str]:
        where = ("--host", "127.0.0.1", "--port", str(self.port))
        return [program("bin", "gcp-storage-emulator"), "start", *where, "--in-memory"]


def service_account(token_uri: str) -> dict[str, str]:
    """What the key file of a service account holds whose login server is that."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return {
        "type": "service_account",
        "client_email": "syncd@tests.example",
        "private_key": pem.decode(),
        "token_uri": token_uri,
    }
