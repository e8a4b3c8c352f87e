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
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pxp_fast.criteria import CudaGraphs, GraphWarning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CACHE = 256e6  # bytes; more than the last-level cache of any machine holds
WARM_UP = 5
CALLS = 20  # between two events, on CUDA
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


def run(
    benchmark, function: Callable, sets: list[Sequence], moved: float, rounds: int = 30, operations: float | None = None
) -> None:
    """Time ``function(*arguments)``, one set of arguments after the other.

    Leaves in `extra_info`, and prints, milliseconds, GB/s, the fraction of the bandwidth that a large copy has on this
    device, and TFLOP/s where `operations` are given. `moved` is the fewest bytes that the work has to read and write.

    On CUDA the time is that of many calls between two events, see :func:`device_seconds`; on a CPU it is the fastest
    of `rounds`, because on a machine that others use too everything above that is their time.
    """
    turn = itertools.cycle(sets)

    def once():
        result = function(*next(turn))
        synchronize()
        return result

    benchmark.pedantic(once, rounds=rounds if DEVICE == "cpu" else 1, warmup_rounds=WARM_UP)
    if DEVICE == "cuda":
        seconds, benchmark.extra_info["clock"] = device_seconds(function, sets)
    else:
        seconds = benchmark.stats.stats.min
    speed = moved / seconds / 1e9
    info = {"ms": round(seconds * 1e3, 5), "GB/s": round(speed, 2), "of copy": round(speed / copy_bandwidth(), 3)}
    if operations is not None:
        info["TFLOP/s"] = round(operations / seconds / 1e12, 3)
    benchmark.extra_info |= info
    print(f"\n{_line(benchmark.name, benchmark.extra_info)}")


def device_seconds(function: Callable, sets: Sequence[Sequence]) -> tuple[float, str]:
    """Seconds per call on the GPU, the median of several runs of many calls, and what launched them.

    "graph": a CUDA graph of all the calls, so that the host's time is no part of it. "events": they were launched one
    by one, as they cannot be captured, and where a call is shorter than its launch, the launch is what was timed.
    """
    turn = itertools.cycle(sets)
    calls = math.ceil(CALLS / len(sets)) * len(sets)

    def together():
        for _ in range(calls):
            function(*next(turn))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GraphWarning)  # "events" says it
        replay = CudaGraphs(torch.device("cuda")).record(together)
    repeat = replay or together
    repeat()
    times = []
    for _ in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        repeat()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times), "graph" if replay else "events"


@functools.cache
def copy_bandwidth() -> float:
    """GB/s of a copy far larger than the caches, bytes read and bytes written; on a CPU the fastest of several."""
    size = int(4e9 if DEVICE == "cuda" else CACHE)
    source = torch.ones(size // 4, device=DEVICE)
    target = torch.empty_like(source)
    if DEVICE == "cuda":
        return 2 * source.nbytes / device_seconds(target.copy_, [(source,)])[0] / 1e9
    fastest = math.inf
    for _ in range(10):
        started = time.perf_counter()
        target.copy_(source)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * source.nbytes / fastest / 1e9


def table(report: dict) -> str:
    """A line per benchmark that `run` timed."""
    timed = [entry for entry in report["benchmarks"] if "GB/s" in entry["extra_info"]]
    return "\n".join(_line(entry["name"], entry["extra_info"]) for entry in timed)


def _line(name: str, info: dict) -> str:
    line = f"{name:70s} {info['ms']:9.4f} ms {info['GB/s']:8.1f} GB/s {info['of copy']:6.1%} of a copy"
    line += f" {info['TFLOP/s']:8.3f} TFLOP/s" if "TFLOP/s" in info else ""
    return line + (", launched one by one" if info.get("clock") == "events" else "")


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
