"""How fast `max_pool` and `max_pool_epsilon` run through memory. ``pytest -s bench/bench_max_pool.py``.

The forward reads the value and writes the pool. The way back reads the value and the carry, writes what goes down, and
leaves the sums of the units behind. That is what GB/s counts. PyTorch's forward writes indices as well, and its way
back, which reads them, is followed by `epsilon_`.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import epsilon_, max_pool, max_pool_epsilon

from .rounds import DEVICE, dtypes, rotated, run

# VGG-16's first and third pool, ResNet's.
POOLS = {"vgg 1": ((64, 224, 224), 2, 2, 0), "vgg 3": ((256, 56, 56), 2, 2, 0), "resnet": ((64, 112, 112), 3, 2, 1)}
SAMPLES = 64 if DEVICE == "cuda" else 8
pools = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)


def window_of(pool):
    _, kernel, stride, padding = pool
    return {"kernel": (kernel,) * 2, "stride": (stride,) * 2, "padding": (padding,) * 2}


def values(pool, dtype, generator):
    value = torch.randn((SAMPLES, *pool[0]), generator=generator, device=DEVICE).relu_()
    return value.to(dtype).contiguous(memory_format=torch.channels_last)


@dtypes
@pools
@pytest.mark.parametrize("implementation", ["pxp_fast", "PyTorch"])
def test_forward(benchmark, pool, dtype, implementation):
    window = window_of(pool)
    functions = {
        "pxp_fast": lambda value: max_pool(value, **window),
        "PyTorch": lambda value: torch.max_pool2d(value, window["kernel"], window["stride"], window["padding"]),
    }
    sets = rotated(lambda generator: (values(pool, dtype, generator),))
    moved = sets[0][0].nbytes + max_pool(*sets[0], **window).nbytes
    run(benchmark, functions[implementation], sets, moved)


@dtypes
@pools
@pytest.mark.parametrize("implementation", ["in place", "pxp_fast", "PyTorch"])
def test_way_back(benchmark, pool, dtype, implementation):
    window = window_of(pool)
    sums = torch.zeros(2, SAMPLES, pool[0][0], device=DEVICE)
    sizes = [window[name] for name in ("kernel", "stride", "padding")]

    def ours(carry, value, indices):
        return max_pool_epsilon(carry, value, None, sums, **window, eps=1e-6, in_place=implementation == "in place")

    def pytorchs(carry, value, indices):
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return epsilon_(backward(carry, value, *sizes, (1, 1), False, indices), value, sums)

    def make(generator):
        value = values(pool, dtype, generator)
        out, indices = torch.nn.functional.max_pool2d_with_indices(value, *sizes)
        return torch.randn_like(out), value, indices

    sets = rotated(make)
    carry, value, _ = sets[0]
    run(benchmark, pytorchs if implementation == "PyTorch" else ours, sets, carry.nbytes + 2 * value.nbytes)
