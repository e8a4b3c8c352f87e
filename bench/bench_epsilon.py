"""How fast `epsilon` runs through memory, beside its reference and what torch.compile makes of the same expression.

``pytest -s bench/bench_epsilon.py`` prints GB/s, which also stand in `extra_info` of ``--benchmark-json``. A pass reads
two tensors and writes one (`unit_sums_` none); that is what GB/s counts. `epsilon_` works in the memory of the carry,
with and without sums; PyTorch's `mul_` is what a pass costs that does nothing else with the same bytes.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo

from pxp_fast.ops import epsilon, epsilon_, unit_sums_
from pxp_fast.ops.epsilon import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Layers that the engine meets: a ResNet's early and late blocks, a ViT's MLP and heads, at batch 8.
CASES = {
    "early-contiguous": ((8, 64, 56, 56), torch.contiguous_format, "relu", 1, 1),
    "early-channels-last": ((8, 64, 56, 56), torch.channels_last, "relu", 1, 1),
    "middle-channels-last": ((8, 256, 56, 56), torch.channels_last, "relu", 1, 1),
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


@torch.compile(dynamic=False)
def _fused(carry, output, eps, activation, unit_dim, group):
    z = output.float()
    passed = carry.float() * _RATIOS[activation](z)
    magnitude = z.abs()
    relevance = passed * z
    if group > 1:
        relevance = relevance.unflatten(unit_dim, (-1, group)).sum(-1)
    positions = (2, 3) if unit_dim == 1 else (1,)
    sums = torch.stack([relevance.sum(positions), relevance.abs().sum(positions)])
    return (passed * (magnitude / (magnitude + eps))).to(output.dtype), sums


def compiled(carry, output, eps, activation, unit_dim, group):
    """The same expression in the form that suits Inductor best: each layout reduced as it lies."""
    return _fused(carry, output, eps, activation, unit_dim, group)


torch._dynamo.config.recompile_limit = 64


def operator(carry, output, eps, activation, unit_dim, group):
    return epsilon(carry, output, eps=eps, activation=activation, unit_dim=unit_dim, group=group)


_TABLES: dict[tuple, torch.Tensor] = {}


def _table(output, unit_dim, group):
    """A slice of a table of the units of several layers, as the engine keeps it."""
    key = (output.shape[0], output.shape[unit_dim] // group)
    if key not in _TABLES:
        _TABLES[key] = torch.zeros(2, key[0], 4 * key[1], device=output.device)
    return _TABLES[key][:, :, key[1] : 2 * key[1]]


def in_place(carry, output, eps, activation, unit_dim, group):
    sums = _table(output, unit_dim, group)
    epsilon_(carry, output, sums, eps=eps, activation=activation, unit_dim=unit_dim, group=group)


def no_sums(carry, output, eps, activation, unit_dim, group):
    epsilon_(carry, output, eps=eps, activation=activation, unit_dim=unit_dim, group=group)


def sums_only(carry, output, eps, activation, unit_dim, group):
    unit_sums_(_table(output, unit_dim, group), carry, output, activation=activation, unit_dim=unit_dim, group=group)


def mul_(carry, output, eps, activation, unit_dim, group):
    carry.mul_(output)


IMPLEMENTATIONS = {
    "pxp_fast": operator,
    "in-place": in_place,
    "no-sums": no_sums,
    "sums-only": sums_only,
    "mul_": mul_,
    "compile": compiled,
    "reference": reference,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_epsilon(benchmark, case, dtype, name):
    shape, layout, activation, unit_dim, group = CASES[case]
    benchmark.group = f"{case} {dtype}"
    generator = torch.Generator().manual_seed(0)
    # Several sets of tensors in turn, more than the last-level cache holds, as a network's layers would be. The values
    # pass through an activation almost unchanged: a carry that is scaled again and again would become subnormal.
    sets = []
    for _ in range(max(2, math.ceil(256e6 / (math.prod(shape) * 2 * dtype.itemsize)))):
        carry = torch.randn(shape, generator=generator)
        output = 6 + torch.rand(shape, generator=generator) if name != "mul_" else torch.ones(shape)
        sets.append([t.to(DEVICE, dtype).contiguous(memory_format=layout) for t in (carry, output)])
    turn = iter(range(10**9))

    def run():
        carry, output = sets[next(turn) % len(sets)]
        result = IMPLEMENTATIONS[name](carry, output, 1e-6, activation, unit_dim, group)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        return result

    benchmark.pedantic(run, rounds=30, warmup_rounds=5)
    # The fastest round: on a machine that others use too, everything above it is their time.
    tensors = 2 if name == "sums-only" else 3
    speed = tensors * math.prod(shape) * dtype.itemsize / benchmark.stats.stats.min / 1e9
    benchmark.extra_info["GB/s"] = round(speed, 2)
    print(f"\n{case:22s} {str(dtype):16s} {name:10s} {speed:7.2f} GB/s")
