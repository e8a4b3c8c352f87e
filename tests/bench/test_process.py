"""A contender's process: it is timed, weighed, and its failure is told without stopping the others."""

import subprocess
import sys

import pytest

from bench.contest import RATIO, compare
from bench.memory import status
from bench.process import Job


@pytest.mark.skipif(status("VmHWM") is None, reason="the system does not tell a process its peak memory")
def test_memory_counts_what_is_held_and_the_highest_point_above_it():
    """In a process of its own: one that has run a command keeps what is freed."""
    code = """
import torch
from bench.memory import Gauge
MB = 2**20
gauge = Gauge("cpu")
held = torch.ones(40 * MB // 4)
gauge.built()
passing = torch.ones(100 * MB // 4)
del passing
later = torch.ones(20 * MB // 4)
found = gauge.read()
print(found.build_mb, found.call_mb, found.peak_mb)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert list(map(float, done.stdout.split())) == pytest.approx([40, 100, 140], abs=6)


def test_contenders_take_turns_and_one_that_fails_says_why():
    shared = {"batch": 1, "size": 32, "threads": 1, "inputs": 2}
    jobs = [Job("gradient", "vit_s_16", **shared), Job("no such contender", "vit_s_16", **shared)]
    found = compare(jobs, calls=2, repeats=3)
    assert found["no such contender"] == {"failed": "KeyError: 'no such contender'"}
    assert found["gradient"]["calls"] == 3 and found["gradient"][RATIO] == 1
    assert 0 < found["gradient"]["fastest_wall_ms"] <= found["gradient"]["wall_ms"]
    assert found["gradient"]["images_per_second"] == pytest.approx(1e3 / found["gradient"]["wall_ms"], rel=1e-2)
