"""Object stores behind one interface, one file for each provider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from syncd.errors import NeedsOperator
from syncd.stores.base import ObjectStore


def open_store(provider: str, bucket: str, environ: Mapping[str, str]) -> ObjectStore:
    """The store of a provider, with the credentials of ``environ``; makes no request.

    Only that provider's SDK is imported. NeedsOperator where it is not installed or where its
    settings cannot be used.
    """
    if provider == "s3":
        from syncd.stores.s3 import S3Store

        return S3Store(bucket, environ)
    if provider == "gcs":
        from syncd.stores.gcs import GCSStore

        return GCSStore(bucket, environ)
    if provider == "azure":
        from syncd.stores.azure import AzureStore

        return AzureStore(bucket, environ)
    if provider == "local":
        from syncd.stores.directory import DirectoryStore

        return DirectoryStore(Path(bucket))
    raise NeedsOperator(f"unknown provider {provider!r}", hint="s3, gcs, azure or local")
