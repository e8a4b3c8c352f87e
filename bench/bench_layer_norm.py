"""How fast `layer_norm` runs through memory. ``pytest -s bench/bench_layer_norm.py``.

A pass reads carry, output, residual and join and writes one tensor; that is what GB/s counts.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import layer_norm, layer_norm_
from pxp_fast.ops.layer_norm import reference

from .rounds import DEVICE, compiled, dtypes, rotated, run

EPS = 1e-6
SHAPES = [(n, 197, c) for n, c in ([(256, 384), (256, 768)] if DEVICE == "cuda" else [(8, 384), (8, 768), (64, 768)])]


def operator(carry, output, rstd, weight, residual, join):
    return layer_norm(carry, output, rstd, weight, residual, join, eps=EPS)


def in_place(carry, output, rstd, weight, residual, join):
    return layer_norm_(carry, output, rstd, weight, residual, join, eps=EPS)


def by_reference(carry, output, rstd, weight, residual, join):
    return reference(carry, output, rstd, weight, residual, EPS, join)


@dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    "implementation",
    [operator, in_place, compiled(by_reference), by_reference],
    ids=["pxp_fast", "in place", "compile", "reference"],
)
def test_layer_norm(benchmark, shape, dtype, implementation):
    benchmark.group = f"{shape} {dtype}"
    weight = torch.randn(shape[-1], device=DEVICE)

    def make(generator):
        carry, output, residual, join = (
            torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for _ in range(4)
        )
        rstd = torch.rand(*shape[:-1], 1, generator=generator, device=DEVICE)
        return carry, output, rstd, weight, residual, join

    sets = rotated(make)
    run(benchmark, implementation, sets, moved=5 * sets[0][0].nbytes + sets[0][2].nbytes)
