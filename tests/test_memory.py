"""Retained memory is reused: once the allocator has found places for the layers, they cost no page faults."""

import subprocess
import sys

import pytest

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is what is asked")

SCRIPT = """
import contextlib, resource, torch
from pxp_fast import memory
REQUEST
x = torch.ones(SIZE << 18)
for _ in range(20):
    y = x * 2
    del y
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    y = x * 2
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(request: str, size: int) -> float:
    """In pages of a tensor of `size` MiB."""
    script = SCRIPT.replace("REQUEST", request).replace("SIZE", str(size))
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return int(done.stdout) / (size * 256)


@linux
@pytest.mark.parametrize(
    ("wish", "size"),
    [
        ("assert memory.retain()", 40),  # above the allocator's largest threshold
        ("stack = contextlib.ExitStack(); stack.enter_context(memory.kept())", 30),
        ("stack = contextlib.ExitStack(); stack.enter_context(memory.kept())\nwith memory.kept(): pass", 30),
        ("assert memory.retain()\nwith memory.kept(): pass", 40),
    ],
    ids=["for good", "kept", "nested", "both"],
)
def test_freed_memory_is_used_again(wish, size):
    assert faults(wish, size) < 1  # in five rounds


@linux
def test_kept_memory_goes_back_in_the_end():
    script = """
import torch
from pxp_fast import memory
def resident(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
torch.ones(30 << 18)
before = resident()
with memory.kept():
    for _ in range(4): tensors = [torch.ones(30 << 18) for _ in range(4)]
    del tensors
    inside = resident()
print(inside - before, resident() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    inside, after = (int(size) / (30 << 10) for size in done.stdout.split())  # in tensors
    assert inside > 3 and after < 1


@linux
def test_scoring_leaves_no_memory_behind():
    """Neither what it kept while it ran nor, batch by batch, a little more."""
    script = """
import torch, pxp_fast as pxp
def resident(): return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
torch.manual_seed(0)
model = torch.nn.Sequential(*[torch.nn.Conv2d(i, 64, 3, padding=1) for i in (3, 64, 64)], torch.nn.ReLU(),
                            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 5)).eval()
batch = torch.randn(8, 3, 64, 64), torch.zeros(8, dtype=torch.int64)
peaks = []
def watched(count):
    for _ in range(count):
        peaks.append(resident())
        yield batch
pxp.score(model, watched(3))
before = resident()
peaks.clear()
pxp.score(model, watched(80))
print(resident() - before, peaks[-1] - peaks[20])
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    left, growth = map(int, done.stdout.split())
    tensor = 8 * 64 * 64 * 64 * 4 // 1024  # of one layer, in kilobytes
    assert left < 2 * tensor
    assert growth < 2 * tensor
