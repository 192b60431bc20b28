"""Azure Blob Storage: Azurite, Microsoft's own emulator."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

from tests.servers.process import NotInstalled, Server, program

ACCOUNT = "devstoreaccount1"
# published in the emulator's documentation, the same for everybody
SECRET = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def connection_string(url: str, secret: str = SECRET) -> str:
    """As AZURE_STORAGE_CONNECTION_STRING holds it."""
    return (
        f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={secret};"
        f"BlobEndpoint={url}/{ACCOUNT};"
    )


class Azurite(Server):
    """Not durable within a second of a kill: kill the client instead."""

    def command(self) -> Sequence[str]:
        node = shutil.which("node")
        if not node:
            raise NotInstalled("there is no node here, which Azurite needs")
        return [
            node,
            program("node_modules", ".bin", "azurite-blob"),
            *("--blobHost", "127.0.0.1", "--blobPort", str(self.port)),
            *("--location", str(self.folder), "--silent", "--disableTelemetry"),
            "--skipApiVersionCheck",  # the SDK speaks a newer version than it knows
        ]
