"""Save, delete, crash, prune, restore, as hypothesis draws them."""

from __future__ import annotations

import pytest

from tests.faults.retention import walk


@pytest.mark.slow
def test_the_newest_always_comes_back_and_nothing_is_orphaned() -> None:
    """A person runs ``python -m tests.faults.retention --steps 100000``."""
    assert walk(3000) >= 3000
