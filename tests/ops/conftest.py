"""Devices and element types that every operator is tested on."""

import pytest
import torch

DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d)[6:])
def dtype(request):
    return request.param


@pytest.fixture
def threads():
    """Give back the number of threads after a test that changes it."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
