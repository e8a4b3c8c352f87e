"""How fast `layer_norm` runs through memory. ``pytest -s bench/bench_layer_norm.py``.

A pass reads carry, output and residual and writes one tensor; that is what GB/s counts.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import layer_norm
from pxp_fast.ops.layer_norm import reference

from .rounds import DEVICE, compiled, dtypes, rotated, run

EPS = 1e-6


def operator(carry, output, rstd, weight, residual):
    return layer_norm(carry, output, rstd, weight, residual, eps=EPS)


def by_reference(carry, output, rstd, weight, residual):
    return reference(carry, output, rstd, weight, residual, EPS)


@dtypes
@pytest.mark.parametrize("shape", [(8, 197, 384), (8, 197, 768), (64, 197, 768)], ids=str)
@pytest.mark.parametrize(
    "implementation", [operator, compiled(by_reference), by_reference], ids=["pxp_fast", "compile", "reference"]
)
def test_layer_norm(benchmark, shape, dtype, implementation):
    benchmark.group = f"{shape} {dtype}"
    weight = torch.randn(shape[-1], device=DEVICE)

    def make(generator):
        carry, output, residual = (torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for _ in range(3))
        rstd = torch.rand(*shape[:-1], 1, generator=generator, device=DEVICE)
        return carry, output, rstd, weight, residual

    sets = rotated(make)
    run(benchmark, implementation, sets, moved=4 * sets[0][0].nbytes + sets[0][2].nbytes)
