"""How long it takes to add a batch's sums to the totals. ``pytest -s bench/bench_accumulate.py``."""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import accumulate_
from pxp_fast.ops.accumulate import reference

from .rounds import DEVICE, compiled, rotated, run


@compiled
def by_compiler(totals, sums):
    """All samples at once, which does not give the same bits however they are batched."""
    signed, absolute = sums.double().unbind(0)
    totals += torch.stack([signed.sum(0), signed.abs().sum(0), absolute.sum(0), signed.square().sum(0)])


# The units of ResNet-50's and of ViT-B/16's, batches of 8 and 64.
@pytest.mark.parametrize("units", [26_560, 46_224])
@pytest.mark.parametrize("samples", [8, 64])
@pytest.mark.parametrize("classes", [None, 10], ids=["together", "by class"])
@pytest.mark.parametrize(
    "implementation", [accumulate_, by_compiler, reference], ids=["pxp_fast", "compile", "reference"]
)
def test_accumulate(benchmark, units, samples, classes, implementation):
    if classes is not None and implementation is by_compiler:
        pytest.skip("torch.compile's version adds all samples together")
    benchmark.group = f"{samples} samples, {units} units, {'together' if classes is None else f'{classes} classes'}"
    shape = (4, units) if classes is None else (classes, 4, units)
    totals = torch.zeros(shape, dtype=torch.float64, device=DEVICE)
    labels = () if classes is None else (torch.arange(samples, device=DEVICE) % classes,)

    def make(generator):
        return totals, torch.randn(2, samples, units, generator=generator, device=DEVICE), *labels

    sets = rotated(make)
    run(benchmark, implementation, sets, moved=sets[0][1].nbytes + 2 * totals.nbytes)
