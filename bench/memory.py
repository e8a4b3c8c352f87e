"""How much memory scoring takes on top of the model, the images and the libraries.

On a CPU that is resident memory, whose peak Linux lets a process reset; on CUDA what PyTorch's allocator handed out.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from dataclasses import dataclass
from pathlib import Path

MB = 2**20


@dataclass(frozen=True)
class Memory:
    """Megabytes (2**20 bytes); None where the system does not say.

    Attributes
    ----------
    build_mb
        What the contender holds once it is ready: folded, cast and captured weights, hooks. Negative where it took the
        model over in a smaller dtype.
    call_mb
        The highest point of its calls above that, the first call included.
    peak_mb
        Both together: the highest point of its calls above the process with model and images alone.
    """

    build_mb: float | None
    call_mb: float | None
    peak_mb: float | None


class Gauge:
    """Made when model and images are in place, told when the contender is built, read when it has run."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.before = self._now()
        self.ready = self.before

    def built(self) -> None:
        """The calls start now."""
        self.ready = self._now()
        if self.device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif self.ready is not None:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now

    def read(self) -> Memory:
        if self.device == "cuda":
            import torch

            peak = torch.cuda.max_memory_allocated() / MB
        else:
            peak = status("VmHWM")
        if self.before is None or self.ready is None or peak is None:
            return Memory(None, None, None)
        found = (self.ready - self.before, peak - self.ready, peak - self.before)
        return Memory(*(round(value, 1) for value in found))

    def _now(self) -> float | None:
        gc.collect()
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
            return torch.cuda.memory_allocated() / MB
        trim()
        return status("VmRSS")


def status(field: str) -> float | None:
    """A size from /proc/self/status in MB."""
    path = Path("/proc/self/status")
    found = re.search(rf"^{field}:\s+(\d+) kB", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found[1]) / 1024 if found else None


def trim() -> None:
    """Hand memory that is free but kept back to the system, so that it is not counted as used."""
    if sys.platform.startswith("linux") and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)
