"""How long it takes to zero a third of ResNet-50's filters, all layers in one call. ``pytest -s bench/bench_mask.py``.

GB/s counts the zeros written, the least there is to do.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import mask_
from pxp_fast.ops.mask import reference

from .rounds import DEVICE, compiled, rotated, run

# Filters, input channels and kernel size of the convolutions in each of ResNet-50's four stages, and how often.
STAGES = [(64, 256, 1, 3), (64, 64, 3, 3), (256, 64, 1, 3), (128, 512, 1, 4), (128, 128, 3, 4), (512, 128, 1, 4),
          (256, 1024, 1, 6), (256, 256, 3, 6), (1024, 256, 1, 6), (512, 2048, 1, 3), (512, 512, 3, 3),
          (2048, 512, 1, 3)]  # fmt: skip


@pytest.mark.parametrize(
    "implementation", [mask_, compiled(reference), reference], ids=["pxp_fast", "compile", "reference"]
)
def test_mask(benchmark, implementation):
    def make(generator):
        like = {"generator": generator, "device": DEVICE}
        weights = [torch.randn(out, into, k, k, **like) for out, into, k, n in STAGES for _ in range(n)]
        parameters = weights + [torch.randn(w.shape[0], **like) for w in weights for _ in range(2)]
        keep = [torch.rand(p.shape[0], **like) > 1 / 3 for p in parameters]
        return parameters, keep, [0] * len(parameters)

    sets = rotated(make)
    moved = sum(p.nbytes * float((~k).float().mean()) for p, k in zip(*sets[0][:2], strict=True))
    run(benchmark, implementation, sets, moved, rounds=20)
