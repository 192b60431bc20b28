"""Whole machines meet one server of each provider; that the others are no different is seen in
tests/stores, and by test_every_store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.fixtures import PROVIDERS, Bucket, fresh_bucket


@pytest.fixture(params=PROVIDERS)
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bucket]:
    """A fresh bucket, once on a store of each provider."""
    yield from fresh_bucket(request, tmp_path)
