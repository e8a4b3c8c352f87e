"""Tests run on few threads, so that they are the same everywhere and leave the machine to others."""

import ctypes
import gc
import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, before))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def given_back():
    """What the networks of a module held is free again, also for other processes."""
    yield
    gc.collect()
    if os.name == "posix" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


@pytest.fixture(autouse=True)
def seeded():
    """Networks built in a test are the same in every order of tests."""
    torch.manual_seed(0)


@pytest.fixture
def far_totals(tmp_path):
    """Totals of so many classes and units that places in them exceed 32 bits, a far label, and the rows it names.

    They lie in a file of 25 GB, of which only what is touched takes room.
    """
    classes, units = 40_000, 20_000
    path = tmp_path / "totals"
    totals = torch.from_file(str(path), shared=True, size=classes * 4 * units, dtype=torch.float64)
    path.unlink()  # the mapping stays
    totals = totals.view(classes, 4, units)
    return totals, classes - 1, totals[-1]
