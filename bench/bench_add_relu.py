"""How fast a sum and its ReLU run through memory. ``pytest -s bench/bench_add_relu.py``.

A pass reads two tensors and writes one; that is what GB/s counts.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import add_relu

from .rounds import DEVICE, compiled, dtypes, rotated, run

# The residual sums of ResNet-50's first and last stage.
SHAPES = [
    (n, c, s, s) for n, c, s in ([(64, 256, 56), (64, 2048, 7)] if DEVICE == "cuda" else [(8, 256, 56), (8, 2048, 7)])
]


def two_passes(a, b):
    return torch.add(a, b).relu_()


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "implementation", [add_relu, compiled(two_passes), two_passes], ids=["pxp_fast", "compile", "two passes"]
)
def test_add_relu(benchmark, shape, dtype, implementation):
    benchmark.group = f"{shape} {dtype}"

    def make(generator):
        like = {"generator": generator, "device": DEVICE}
        return [torch.randn(shape, **like).to(dtype).contiguous(memory_format=torch.channels_last) for _ in range(2)]

    sets = rotated(make)
    run(benchmark, implementation, sets, moved=3 * sets[0][0].nbytes)
