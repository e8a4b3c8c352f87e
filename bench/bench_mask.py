"""How long it takes to zero a third of ResNet-50's filters, all layers in one call. ``pytest bench/bench_mask.py``."""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import mask_
from pxp_fast.ops.mask import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Filters, input channels and kernel size of the convolutions in each of ResNet-50's four stages, and how often.
STAGES = [(64, 256, 1, 3), (64, 64, 3, 3), (256, 64, 1, 3), (128, 512, 1, 4), (128, 128, 3, 4), (512, 128, 1, 4),
          (256, 1024, 1, 6), (256, 256, 3, 6), (1024, 256, 1, 6), (512, 2048, 1, 3), (512, 512, 3, 3),
          (2048, 512, 1, 3)]  # fmt: skip


@pytest.mark.parametrize("implementation", [mask_, reference], ids=["pxp_fast", "reference"])
def test_mask(benchmark, implementation):
    weights = [torch.randn(out, into, k, k, device=DEVICE) for out, into, k, n in STAGES for _ in range(n)]
    norms = [torch.randn(w.shape[0], device=DEVICE) for w in weights for _ in range(2)]
    parameters = weights + norms
    keep = [torch.rand(p.shape[0], device=DEVICE) > 1 / 3 for p in parameters]

    def run():
        implementation(parameters, keep, [0] * len(parameters))
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
