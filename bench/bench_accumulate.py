"""How long it takes to add a batch's sums to the totals. ``pytest bench/bench_accumulate.py``."""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import accumulate_
from pxp_fast.ops.accumulate import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


# The units of ResNet-50's and of ViT-B/16's, batches of 8 and 64.
@pytest.mark.parametrize("units", [26_560, 46_224])
@pytest.mark.parametrize("samples", [8, 64])
@pytest.mark.parametrize("classes", [None, 10], ids=["together", "by class"])
@pytest.mark.parametrize("implementation", [accumulate_, reference], ids=["pxp_fast", "reference"])
def test_accumulate(benchmark, units, samples, classes, implementation):
    benchmark.group = f"{samples} samples, {units} units, {'together' if classes is None else f'{classes} classes'}"
    shape = (4, units) if classes is None else (classes, 4, units)
    totals = torch.zeros(shape, dtype=torch.float64, device=DEVICE)
    sums = torch.randn(2, samples, units, device=DEVICE)
    labels = None if classes is None else torch.randint(0, classes, (samples,)).to(DEVICE)

    def run():
        implementation(totals, sums, labels)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=30, warmup_rounds=3)
