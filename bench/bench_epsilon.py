"""How fast `epsilon` runs through memory, beside its reference and what torch.compile makes of the same expression.

``pytest -s bench/bench_epsilon.py``. A pass reads two tensors and writes one; that is what GB/s counts.
"""

from __future__ import annotations

import math

import pytest
import torch

from pxp_fast.ops import epsilon
from pxp_fast.ops.epsilon import reference

from .rounds import DEVICE, compiled, dtypes, rotated, run

# Layers that the engine meets: a ResNet's early and late blocks, a ViT's MLP and heads, at batch 8.
CASES = {
    "early-contiguous": ((8, 64, 56, 56), torch.contiguous_format, "relu", 1, 1),
    "early-channels-last": ((8, 64, 56, 56), torch.channels_last, "relu", 1, 1),
    "late-contiguous": ((8, 2048, 7, 7), torch.contiguous_format, "relu", 1, 1),
    "late-channels-last": ((8, 2048, 7, 7), torch.channels_last, "relu", 1, 1),
    "mlp": ((8, 197, 3072), torch.contiguous_format, "gelu", -1, 1),
    "heads": ((8, 197, 768), torch.contiguous_format, "identity", -1, 64),
}


_RATIOS = {
    "identity": torch.ones_like,
    "relu": lambda z: (z > 0).float(),
    "gelu": lambda z: 0.5 * (1 + torch.erf(z * math.sqrt(0.5))),
}


@compiled
def fused(carry, output, eps, activation, unit_dim, group):
    """The same expression in the form that suits Inductor best: each layout reduced as it lies."""
    z = output.float()
    passed = carry.float() * _RATIOS[activation](z)
    magnitude = z.abs()
    relevance = passed * z
    if group > 1:
        relevance = relevance.unflatten(unit_dim, (-1, group)).sum(-1)
    positions = (2, 3) if unit_dim == 1 else (1,)
    sums = torch.stack([relevance.sum(positions), relevance.abs().sum(positions)])
    return (passed * (magnitude / (magnitude + eps))).to(output.dtype), sums


def operator(carry, output, eps, activation, unit_dim, group):
    return epsilon(carry, output, eps=eps, activation=activation, unit_dim=unit_dim, group=group)


@dtypes
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("implementation", [operator, fused, reference], ids=["pxp_fast", "compile", "reference"])
def test_epsilon(benchmark, case, dtype, implementation):
    shape, layout, activation, unit_dim, group = CASES[case]
    benchmark.group = f"{case} {dtype}"

    def make(generator):
        pair = [torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for _ in range(2)]
        return *(t.contiguous(memory_format=layout) for t in pair), 1e-6, activation, unit_dim, group

    run(benchmark, implementation, rotated(make), moved=3 * math.prod(shape) * dtype.itemsize)
