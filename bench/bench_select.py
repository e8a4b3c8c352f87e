"""How long it takes to choose a third of all units. ``pytest -s bench/bench_select.py``.

GB/s counts every score read once and every answer written once.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import select
from pxp_fast.ops.select import reference

from .rounds import DEVICE, compiled, rotated, run


def sort(scores, k):
    return reference(scores, k, False)


@pytest.mark.parametrize("n", [26_560, 46_224, 1_000_000])
@pytest.mark.parametrize("implementation", [select, compiled(sort), sort], ids=["pxp_fast", "compile", "reference"])
def test_select(benchmark, n, implementation):
    benchmark.group = f"{n} scores"
    sets = rotated(lambda generator: (torch.randn(n, dtype=torch.float64, generator=generator, device=DEVICE), n // 3))
    run(benchmark, implementation, sets, moved=9 * n, rounds=20)
