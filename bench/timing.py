"""Times of calls on a machine that others use too: wall clock, own processor time, and how busy the others were."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

DISTURBED = 0.15  # a call during which others used more than this many processors is left out where enough are left


@dataclass(frozen=True)
class Call:
    """One call: seconds on the clock, seconds of this process on all its threads, processors that others kept busy."""

    wall: float
    cpu: float
    others: float


@dataclass(frozen=True)
class Summary:
    """Medians over the least disturbed calls, milliseconds per image."""

    cpu_ms: float
    wall_ms: float
    fastest_wall_ms: float
    calls: int
    undisturbed: int


def measure(call: Callable[[], object], synchronize: Callable[[], None] = lambda: None) -> Call:
    """Time one call, until the device has done its work as well.

    On a CPU, processor time is what comparisons should rest on: it barely feels other processes.
    """
    gc.collect()
    synchronize()
    busy, cpu, wall = _busy(), time.process_time(), time.perf_counter()
    call()
    synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return Call(wall, cpu, max(0.0, _busy() - busy - cpu) / wall)


def summarise(calls: list[Call], images: int) -> Summary:
    """Median over the calls that others disturbed least (at least three of them)."""
    quiet = [call for call in calls if call.others < DISTURBED]
    chosen = quiet if len(quiet) >= 3 else sorted(calls, key=lambda call: call.others)[:3]
    per_image = 1e3 / images
    return Summary(
        cpu_ms=statistics.median(call.cpu for call in chosen) * per_image,
        wall_ms=statistics.median(call.wall for call in chosen) * per_image,
        fastest_wall_ms=min(call.wall for call in calls) * per_image,
        calls=len(calls),
        undisturbed=len(quiet),
    )


def record(summary: Summary) -> dict:
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(summary).items()}


def machine(threads: int, device: str = "cpu") -> dict:
    """What the numbers were taken on."""
    gpu = {}
    if device == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(0)
        gpu = {
            "gpu": properties.name,
            "gpu_memory_gb": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "float32_convolutions": torch.backends.cudnn.conv.fp32_precision,
            "float32_products": torch.backends.cuda.matmul.fp32_precision,
        }
    return gpu | {
        "processor": _field("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
    }


def _busy() -> float:
    """Seconds that all processors together have been busy since the start; 0 where the system does not say."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    ticks = [int(field) for field in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def _field(path: str, name: str) -> str | None:
    if not Path(path).exists():
        return None
    lines = (line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)
    return next((value.strip() for key, value in lines if key.strip() == name), None)
