"""The same batches give the same scores, bit for bit, whichever process scores them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import pxp_fast

DTYPES = ("float32", "bfloat16", "float64")
NETWORKS = ("resnet", "vgg", "vit")

# Several batches, the last one smaller; every dtype after the others, so that what one leaves behind may meet the next.
SCRIPT = f"""
import sys, safetensors.torch, torch, pxp_fast
from pxp_fast import demo

torch.set_num_threads(int(sys.argv[1]))
images, labels = demo.images("reference")
batches = list(zip(demo.normalize(images[:40]).split(16), labels[:40].split(16), strict=True))
totals = {{
    f"{{name}} {{dtype}}": pxp_fast.score(demo.network(name), batches, dtype=getattr(torch, dtype)).totals
    for name in {NETWORKS} for dtype in {DTYPES}
}}
safetensors.torch.save_file(totals, sys.argv[2])
"""


def score_elsewhere(path, threads, seed):
    """The totals that a process of its own finds. What hashes decide is different in each: `seed`."""
    root = str(Path(pxp_fast.__file__).resolve().parent.parent)
    inherited = [os.environ["PYTHONPATH"]] if "PYTHONPATH" in os.environ else []
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, *inherited]), "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-c", SCRIPT, str(threads), str(path)]
    found = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return safetensors.torch.load_file(path)


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """The totals of two processes of two threads."""
    folder = tmp_path_factory.mktemp("totals")
    return [score_elsewhere(folder / f"{seed}.safetensors", 2, seed) for seed in (1, 2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_two_processes_find_the_same_bits(twice, name, dtype):
    first, second = (found[f"{name} {dtype}"] for found in twice)
    assert first.dtype == torch.float64 and first.isfinite().all() and first[1].count_nonzero() > 0.9 * first.shape[1]
    assert torch.equal(first.view(torch.int64), second.view(torch.int64))


@pytest.mark.parametrize("name", NETWORKS)
def test_precisions_are_told_apart(twice, name):
    """So that equal bits mean something: rounding shows in the totals of every precision."""
    for found in twice:
        float32, bfloat16, float64 = (found[f"{name} {dtype}"] for dtype in DTYPES)
        assert not torch.equal(float32, float64) and not torch.equal(bfloat16, float32)
