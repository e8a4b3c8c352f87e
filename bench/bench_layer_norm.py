"""How fast `layer_norm` runs through memory, new or over its residual, beside its reference.

``pytest -s bench/bench_layer_norm.py`` prints GB/s. A pass reads four tensors (carry, output, residual, join)
and writes one.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import layer_norm, layer_norm_
from pxp_fast.ops.layer_norm import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 197, 384), (8, 197, 768)], ids=str)
@pytest.mark.parametrize("implementation", [layer_norm, layer_norm_, reference], ids=["new", "in place", "reference"])
def test_layer_norm(benchmark, shape, dtype, implementation):
    benchmark.group = f"{shape} {dtype}"
    # Several sets in turn, more than the last-level cache holds, as a network's layers would be.
    sets = [[torch.randn(shape, device=DEVICE).to(dtype) for _ in range(4)] for _ in range(16)]
    rstd, weight = torch.rand(*shape[:-1], 1, device=DEVICE), torch.randn(shape[-1], device=DEVICE)
    turn = iter(range(10**9))

    def run():
        carry, output, residual, join = sets[next(turn) % len(sets)]
        implementation(carry, output, rstd, weight, residual, join=join, eps=1e-6)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=64, warmup_rounds=16)
    speed = 5 * sets[0][0].nbytes / benchmark.stats.stats.min / 1e9
    benchmark.extra_info["GB/s"] = round(speed, 2)
    print(f"\n{shape!s:16s} {str(dtype):16s} {implementation.__name__:11s} {speed:7.2f} GB/s")
