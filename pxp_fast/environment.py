"""Which machine and which versions made a result."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "safetensors", "pillow")


def describe(device: torch.device) -> dict[str, str]:
    """The versions and the hardware, each as a line for people to read."""
    facts = {"pxp_fast": version("pxp_fast") or "not installed", "python": platform.python_version()}
    facts |= {name: found for name in _PACKAGES if (found := version(name))}
    facts |= {"system": platform.platform(), "processor": _processor(), "threads": str(torch.get_num_threads())}
    facts["device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return facts


def version(package: str) -> str | None:
    """The installed version of a package, None when it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cores = os.cpu_count() or 1
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {cores} logical cores"
