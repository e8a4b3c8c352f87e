"""The CUDA kernels of `max_pool`, unmodified, on the host: in four orders of threads, against their references."""

import max_pool_cases as cases
import pytest
import torch
from max_pool_cases import RESNET, WINDOWS

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("vector", [False, True])
def test_forward(simulated, order, dtype, vector):
    for window in WINDOWS:
        cases.max_pool(simulated("max_pool"), order, window, dtype, vector=vector, channels=24 if vector else 5)
    cases.max_pool(simulated("max_pool"), order, RESNET, dtype, vector=vector, nan=True)


@dtypes
@pytest.mark.parametrize("vector", [False, True])
def test_epsilon(simulated, order, dtype, vector):
    library = simulated("max_pool")
    for window in WINDOWS:
        cases.epsilon(library, order, window, dtype, vector=vector, channels=24 if vector else 5, width=2)
    # One tile and more of channels, one block and more of positions; over the values.
    cases.epsilon(library, order, RESNET, dtype, vector=vector, channels=72, width=32, in_place=True)
    cases.epsilon(library, order, RESNET, dtype, vector=vector, block_positions=64, in_place=True)
    cases.epsilon(library, order, RESNET, dtype, contiguous=True, width=1, channels=3, block_positions=64)


@pytest.mark.parametrize("rest", [False, True])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("eps", [None, 0.0, 0.5])
def test_epsilon_without(simulated, rest, summed, eps):
    cases.epsilon(simulated("max_pool"), "skew", RESNET, torch.float32, rest=rest, summed=summed, eps=eps)


@dtypes
def test_nan(simulated, order, dtype):
    cases.epsilon(simulated("max_pool"), order, RESNET, dtype, nan=True, eps=None, summed=False)
