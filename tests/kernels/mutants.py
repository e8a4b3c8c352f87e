"""Breaks a kernel on purpose and asks whether its tests notice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from simulation import CSRC, SimulationError, build


def build_mutant(folder: Path, stem: str, file: str, right: str, wrong: str, only: torch.dtype = torch.float32):
    """The simulated kernels of `stem`, for one dtype, in a new `folder`, with `wrong` in `file` instead of `right`."""
    csrc = folder / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("cpu", "cuda"))
    source = (csrc / file).read_text()
    assert source.count(right) == 1, f"{file} no longer reads as this mutant expects"
    (csrc / file).write_text(source.replace(right, wrong))
    return build(stem, folder, csrc, only=only)


def is_caught(case: Callable[[], None]) -> bool:
    try:
        case()
    except (AssertionError, SimulationError):
        return True
    return False
