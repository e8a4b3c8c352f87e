"""How long it takes to choose a third of all units. ``pytest bench/bench_select.py``."""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import select
from pxp_fast.ops.select import reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def sort(scores, k):
    return reference(scores, k, False)


@pytest.mark.parametrize("n", [26_560, 46_224, 1_000_000])
@pytest.mark.parametrize("implementation", [select, sort], ids=["pxp_fast", "reference"])
def test_select(benchmark, n, implementation):
    benchmark.group = f"{n} scores"
    scores = torch.randn(n, dtype=torch.float64, device=DEVICE)

    def run():
        implementation(scores, n // 3)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark.pedantic(run, rounds=20, warmup_rounds=2)
