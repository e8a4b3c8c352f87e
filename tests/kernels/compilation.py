"""Compiles kernels by nvcc alone: no launch code, no torch, no GPU."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

from simulation import CSRC, HERE

NVCC = shutil.which("nvcc")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
SOURCES = sorted(HERE.glob("instantiate*.cu"))
"""All kernels, as the launch code uses them."""


@cache
def known_architectures() -> list[str]:
    return subprocess.run([NVCC, "--list-gpu-code"], capture_output=True, text=True, check=True).stdout.split()


def compile_cubin(source: Path, architecture: str, cubin: Path) -> str:
    """Compile as the package is compiled, with every warning an error; what ``ptxas -v`` said."""
    command = [NVCC, "-std=c++17", "-O3", f"-arch={architecture}", "-cubin", "-Xptxas=-v,-warn-spills"]
    command += ["--expt-relaxed-constexpr", "-Werror", "all-warnings", "-I", str(CSRC)]
    done = subprocess.run([*command, str(source), "-o", str(cubin)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr
