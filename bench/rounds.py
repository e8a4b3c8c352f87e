"""What the benchmarks of single operators share: rotating tensors, the clock, and the bandwidth to compare with.

``python -m bench.rounds FILE.json`` prints what ``pytest --benchmark-json FILE.json`` left, as a table.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CACHE = 256e6  # bytes; more than the last-level cache of any machine holds
WARM_UP = 5
dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def synchronize() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def compiled(function: Callable) -> Callable:
    """What torch.compile makes of a function, one version per shape."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 64
    named = torch.compile(function, dynamic=False)
    named.__name__ = "compiled"
    return named


def rotated(make: Callable[[torch.Generator], Sequence]) -> list[Sequence]:
    """Enough sets of arguments from `make` that none is still in a cache when its turn comes again.

    `make` is given a generator of the benchmark's device, :data:`DEVICE`.
    """
    generator = torch.Generator(DEVICE).manual_seed(0)
    first = make(generator)
    size = sum(t.nbytes for t in _tensors(first))
    return [first, *(make(generator) for _ in range(min(64, max(1, math.ceil(CACHE / max(1, size))))))]


def _tensors(arguments) -> list[Tensor]:
    if isinstance(arguments, Tensor):
        return [arguments]
    return [t for a in arguments for t in _tensors(a)] if isinstance(arguments, list | tuple) else []


def run(benchmark, function: Callable, sets: list[Sequence], moved: float, rounds: int = 30) -> None:
    """Time ``function(*arguments)``, one set of arguments after the other.

    Leaves in `extra_info`, and prints, milliseconds, GB/s and the fraction of the bandwidth that a large copy has on
    this device. `moved` is the fewest bytes that the work has to read and write.

    On CUDA the time is that of many calls between two events, which leaves the launch of all but the first out; on a
    CPU it is the fastest round, because on a machine that others use too everything above that is their time.
    """
    turn = itertools.cycle(sets)

    def once():
        result = function(*next(turn))
        synchronize()
        return result

    benchmark.pedantic(once, rounds=rounds, warmup_rounds=WARM_UP)
    seconds = _by_events(function, turn) if DEVICE == "cuda" else benchmark.stats.stats.min
    speed = moved / seconds / 1e9
    info = {"ms": round(seconds * 1e3, 5), "GB/s": round(speed, 2), "of copy": round(speed / copy_bandwidth(), 3)}
    benchmark.extra_info |= info
    print(f"\n{benchmark.name:70s} {info['ms']:9.4f} ms {info['GB/s']:8.1f} GB/s {info['of copy']:6.1%} of a copy")


def _by_events(function: Callable, turn) -> float:
    """Seconds per call on the device, the median of several runs of many calls."""
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(50):
            function(*next(turn))
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 50e3)
    return statistics.median(times)


@functools.cache
def copy_bandwidth() -> float:
    """GB/s of a copy far larger than the caches, bytes read and bytes written; the fastest of several."""
    size = int(4e9 if DEVICE == "cuda" else CACHE)
    source = torch.ones(size // 4, device=DEVICE)
    target = torch.empty_like(source)
    fastest = math.inf
    for _ in range(10):
        synchronize()
        started = time.perf_counter()
        target.copy_(source)
        synchronize()
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * source.nbytes / fastest / 1e9


def table(report: dict) -> str:
    """A line per benchmark that `run` timed."""
    lines = [f"{'':70s} {'ms':>10s} {'GB/s':>8s} of a copy"]
    for entry in report["benchmarks"]:
        info = entry["extra_info"]
        if "GB/s" in info:
            lines.append(f"{entry['name']:70s} {info['ms']:10.4f} {info['GB/s']:8.1f} {info['of copy']:9.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
