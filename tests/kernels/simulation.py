"""Compiles a kernel header with the host compiler against the simulator, and calls it on tensors."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parent.parent / "csrc"
COMPILER = shutil.which("g++")
STEMS = sorted(path.stem for path in HERE.glob("*.cpp") if path.stem != "cpu_loops")
"""Of the libraries of simulated kernels."""
ORDERS = ("forward", "reverse", "random", "skew")
COPIES = ("eager", "lazy")
TYPES = {torch.float64: 0, torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
# Set by sanitizers.py. One order of threads is enough then, and tensors end where their memory ends.
SANITIZERS = os.environ.get("PXP_SANITIZERS", "")
TRIED_ORDERS = ("random",) if SANITIZERS else ORDERS
TRIED_COPIES = ("lazy",) if SANITIZERS else COPIES
GUARD = 0 if SANITIZERS else 64


def build(stem: str, folder: Path, csrc: Path = CSRC, only: torch.dtype | None = None) -> ctypes.CDLL:
    """The simulated kernels of `stem`, its header taken from `csrc`, as a library; sooner if only for one dtype."""
    library = folder / f"{stem}.so"
    command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    command += ["-I", str(HERE), "-I", str(csrc), str(HERE / f"{stem}.cpp"), "-o", str(library)]
    # Else the loader joins what several libraries define inline, and one fills another's shared memory with NaN.
    command += ["-fno-gnu-unique"]
    command += [f"-DONLY_TYPE={TYPES[only]}"] if only else []
    command += ["-O0", "-g1", f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"] if SANITIZERS else []
    # The sanitizer is loaded before this process, not before the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(library))
    loaded.last_error.restype = ctypes.c_char_p
    return loaded


class SimulationError(RuntimeError):
    """What the simulator objected to: a deadlock, a divergent barrier ..."""


def call(library: ctypes.CDLL, name: str, order: str, *arguments, copies: str = "lazy") -> None:
    """Run the entry point `name` with threads in `order`; tensors pass as pointers, integers as 64 bits."""
    library.set_order(ORDERS.index(order), 1234)
    library.set_copies(COPIES.index(copies))
    converted = [
        None
        if a is None
        else ctypes.c_void_p(a.data_ptr())
        if isinstance(a, torch.Tensor)
        else ctypes.c_double(a)
        if isinstance(a, float)
        else ctypes.c_int64(a)
        if isinstance(a, int)
        else a
        for a in arguments
    ]
    if getattr(library, name)(*converted):
        raise SimulationError(library.last_error().decode())


@contextmanager
def last_blocks(library: ctypes.CDLL, count: int) -> Iterator[None]:
    """Of every grid, run only the last `count` blocks."""
    library.set_last_blocks(ctypes.c_uint(count))
    try:
        yield
    finally:
        library.set_last_blocks(ctypes.c_uint(2**32 - 1))


class Guarded:
    """A tensor with NaN before and behind it: what is read there spoils the result, what is written there is seen."""

    def __init__(self, values: torch.Tensor):
        flat = torch.full((values.numel() + 2 * GUARD,), torch.nan, dtype=values.dtype)
        self.flat = flat
        self.tensor = flat[GUARD : GUARD + values.numel()].view(values.shape)
        self.tensor.copy_(values)

    def check(self) -> torch.Tensor:
        before, behind = self.flat[:GUARD], self.flat[self.flat.numel() - GUARD :]
        assert before.isnan().all() and behind.isnan().all(), "written outside the tensor"
        return self.tensor


def empty(shape, dtype) -> Guarded:
    """Room for a result, NaN until it is written."""
    return Guarded(torch.full(shape, torch.nan, dtype=dtype))
