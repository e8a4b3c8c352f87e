"""How fast `epsilon` runs through memory, beside its reference and what torch.compile makes of the same expression.

``pytest -s bench/bench_epsilon.py``. A pass reads two tensors and writes one (`unit_sums_` none); that is what GB/s
counts. `epsilon_` works in the memory of the carry, with and without sums; PyTorch's `mul_` is what a pass costs that
does nothing else with the same bytes.
"""

from __future__ import annotations

import math

import pytest
import torch

from pxp_fast.ops import epsilon, epsilon_, unit_sums_
from pxp_fast.ops.epsilon import reference

from .rounds import DEVICE, compiled, dtypes, rotated, run

SAMPLES = 256 if DEVICE == "cuda" else 8
# Layers that the engine meets: a ResNet's early and late blocks, a ViT's MLP and heads.
CASES = {
    "early-contiguous": ((SAMPLES, 64, 56, 56), torch.contiguous_format, "relu", 1, 1),
    "early-channels-last": ((SAMPLES, 64, 56, 56), torch.channels_last, "relu", 1, 1),
    "middle-channels-last": ((SAMPLES, 256, 56, 56), torch.channels_last, "relu", 1, 1),
    "late-contiguous": ((SAMPLES, 2048, 7, 7), torch.contiguous_format, "relu", 1, 1),
    "late-channels-last": ((SAMPLES, 2048, 7, 7), torch.channels_last, "relu", 1, 1),
    "mlp": ((SAMPLES, 197, 3072), torch.contiguous_format, "gelu", -1, 1),
    "heads": ((SAMPLES, 197, 768), torch.contiguous_format, "identity", -1, 64),
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


def in_place(carry, output, eps, activation, unit_dim, group, table):
    epsilon_(carry, output, table, eps=eps, activation=activation, unit_dim=unit_dim, group=group)


def without_sums(carry, output, eps, activation, unit_dim, group, table):
    epsilon_(carry, output, eps=eps, activation=activation, unit_dim=unit_dim, group=group)


def sums_alone(carry, output, eps, activation, unit_dim, group, table):
    unit_sums_(table, carry, output, activation=activation, unit_dim=unit_dim, group=group)


def product(carry, output, eps, activation, unit_dim, group, table):
    carry.mul_(output)


def new(function):
    return lambda *arguments: function(*arguments[:-1])


IMPLEMENTATIONS = {
    "pxp_fast": new(operator),
    "in place": in_place,
    "without sums": without_sums,
    "sums alone": sums_alone,
    "mul_": product,
    "compile": new(fused),
    "reference": new(reference),
}


@dtypes
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_epsilon(benchmark, case, dtype, name):
    shape, layout, activation, unit_dim, group = CASES[case]
    benchmark.group = f"{case} {dtype}"
    units = shape[unit_dim] // group
    # A slice of a table of the units of several layers, as the engine keeps it.
    table = torch.zeros(2, shape[0], 4 * units, device=DEVICE)[:, :, units : 2 * units]

    def make(generator):
        # Values that an activation passes almost unchanged: scaled over and over, others would become subnormal.
        carry, output = (torch.rand(shape, generator=generator, device=DEVICE) for _ in range(2))
        pair = (carry, torch.ones_like(output) if name == "mul_" else output + 6)
        return *(t.to(dtype).contiguous(memory_format=layout) for t in pair), 1e-6, activation, unit_dim, group, table

    tensors = 2 if name == "sums alone" else 3
    run(benchmark, IMPLEMENTATIONS[name], rotated(make), moved=tensors * math.prod(shape) * dtype.itemsize)
