"""Retained memory is reused: once the allocator has found places for the layers, they cost no page faults."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, torch
from pxp_fast import memory
assert memory.retain()
x = torch.ones(40 << 18)  # 40 MiB, above the allocator's largest threshold
for _ in range(20):
    y = x * 2
    del y
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    y = x * 2
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator is what is asked")
def test_freed_memory_is_used_again():
    done = subprocess.run([sys.executable, "-c", SCRIPT], check=True, capture_output=True, text=True)
    assert int(done.stdout) < (40 << 20) // 4096  # less than one tensor's pages, in five rounds
