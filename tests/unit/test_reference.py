"""The pages made from the code are the ones it makes now."""

from __future__ import annotations

import sys

import pytest

from tests.reference import PAGES, ROOT


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the words of help differ by version")
def test_the_page_is_current(page: str) -> None:
    assert (ROOT / page).read_text() == PAGES[page](), "python -m tests.reference writes it anew"


def test_every_dependency_states_a_licence() -> None:
    page = PAGES["docs/licences.md"]()
    assert "not stated" not in page
