"""How fast `layer_norm` runs through memory, beside its reference: ``pytest -s bench/bench_layer_norm.py`` (GB/s)."""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import layer_norm
from pxp_fast.ops.layer_norm import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(8, 197, 384), (8, 197, 768)], ids=str)
@pytest.mark.parametrize("implementation", [layer_norm, reference], ids=["pxp_fast", "reference"])
def test_layer_norm(benchmark, shape, dtype, implementation):
    benchmark.group = f"{shape} {dtype}"
    carry, output, residual = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(3))
    rstd, weight = torch.rand(*shape[:-1], 1, device=DEVICE), torch.randn(shape[-1], device=DEVICE)

    def run():
        implementation(carry, output, rstd, weight, residual, eps=1e-6)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=50, warmup_rounds=5)
    speed = 4 * carry.nbytes / benchmark.stats.stats.min / 1e9
    benchmark.extra_info["GB/s"] = round(speed, 2)
    print(f"\n{shape!s:16s} {str(dtype):16s} {implementation.__name__:10s} {speed:7.2f} GB/s")
