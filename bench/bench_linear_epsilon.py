"""How fast `linear_epsilon` is, beside the same work in separate steps and what torch.compile makes of these.

``pytest -s bench/bench_linear_epsilon.py`` prints TFLOP/s and GB/s, which also stand in `extra_info` of
``--benchmark-json``: the product alone counts as arithmetic, and what the fused form must read and write as memory.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import epsilon, linear_epsilon

from .rounds import DEVICE, compiled, dtypes, rotated, run

SAMPLES = 64 if DEVICE == "cuda" else 1

# Layers of a ViT-B/16: positions, channels below, features above, activation, group, whether a residual carry joins.
CASES = {
    "mlp": (197, 3072, 768, "gelu", 1, False),
    "residual": (197, 768, 3072, "identity", 1, True),
    "heads": (197, 768, 768, "identity", 64, False),
    "class-token": (1, 3072, 768, "gelu", 1, False),
}


def fused(scaled, weight, output, carry, sums, activation, group):
    return linear_epsilon(scaled, weight, output, carry, sums=sums, activation=activation, group=group, tf32=True)


def separate(scaled, weight, output, carry, sums, activation, group):
    """A library's product, and this package's epsilon in one pass over what it wrote."""
    total = scaled @ weight if carry is None else scaled @ weight + carry
    result, own = epsilon(total, output, activation=activation, unit_dim=-1, group=group)
    sums += own
    return result


def composite(scaled, weight, output, carry, sums, activation, group):
    """The same in plain PyTorch, as a user would write it."""
    total = scaled @ weight if carry is None else scaled @ weight + carry
    z = output.float()
    passed = total.float() * (0.5 * (1 + torch.erf(z * 0.5**0.5)) if activation == "gelu" else 1)
    relevance = (passed * z).unflatten(-1, (-1, group)).sum(-1)
    sums += torch.stack([relevance.sum(1), relevance.abs().sum(1)])
    return (passed * (z.abs() / (z.abs() + 1e-6))).to(output.dtype)


@dtypes
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "implementation",
    [fused, separate, composite, compiled(composite)],
    ids=["fused", "separate", "composite", "compile"],
)
def test_linear_epsilon(benchmark, case, dtype, implementation):
    positions, channels, features, activation, group, joined = CASES[case]
    benchmark.group = f"{case} {dtype}"
    torch.backends.cuda.matmul.allow_tf32 = True  # what `fused` may do, the others may too

    sums = torch.zeros(2, SAMPLES, channels // group, device=DEVICE)

    def make(generator):
        def normal(*shape):
            return torch.randn(shape, generator=generator, device=DEVICE).to(dtype)

        scaled, weight = normal(SAMPLES, positions, features), normal(features, channels)
        output = normal(SAMPLES, positions, channels)
        return scaled, weight, output, torch.randn_like(output) if joined else None, sums, activation, group

    sets = rotated(make)
    scaled, weight, output, carry = sets[0][:4]
    moved = sum(t.nbytes for t in (scaled, weight, output, output, sums) + ((carry,) if joined else ()))
    operations = 2 * SAMPLES * positions * channels * features
    run(benchmark, implementation, sets, moved, rounds=20, operations=operations)
