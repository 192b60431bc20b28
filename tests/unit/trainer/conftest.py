"""Two cores are shared with everybody: torch keeps to one thread here."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
