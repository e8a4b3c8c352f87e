"""Tests run on one thread, so that they are the same everywhere and leave the machine to others."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def seeded():
    """Networks built in a test are the same in every order of tests."""
    torch.manual_seed(0)
