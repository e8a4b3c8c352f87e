"""The operator library ``torch.ops.pxp_fast`` and the compiled kernels that may stand behind it.

Every operator is defined here in Python with a reference implementation that runs on any device. The compiled
libraries, when they are installed, register faster CPU and CUDA kernels under the same names; nothing else in the
package asks whether they are there. ``PXP_NATIVE=0`` in the environment leaves them unloaded.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

NAMESPACE = "pxp_fast"
PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = {"CPU": "libpxp_fast_cpu.so", "CUDA": "libpxp_fast_cuda.so"}
OLDEST_GPU = (8, 0)
"""The first compute capability whose GPUs copy asynchronously and know the tensor-core instructions used."""

# The registrations live as long as this object.
_library = torch.library.Library(NAMESPACE, "DEF")

operators: dict[str, torch._ops.OpOverload] = {}
"""Every operator defined by the package, by name."""

native: dict[str, str] = {}
"""What became of each compiled library, by dispatch key: "loaded", or the reason why it is not."""


def define(
    schema: str, reference: Callable, fake: Callable, names: Mapping[str, Sequence[str]] | None = None
) -> torch._ops.OpOverload:
    """Define the operator `schema` with its reference implementation and its shape function.

    Arguments in `names` are numbers in the schema, as the stable ABI leaks every string that a kernel is given; the two
    functions get the names that they stand for.
    """
    name = schema.partition("(")[0]
    arguments = [argument.name for argument in torch._C.parse_schema(f"{NAMESPACE}::{schema}").arguments]
    choices = {arguments.index(argument): each for argument, each in (names or {}).items()}

    def named(function: Callable) -> Callable:
        if not choices:
            return function
        return lambda *given: function(*(choices[i][each] if i in choices else each for i, each in enumerate(given)))

    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, named(reference), "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", named(fake), lib=_library)
    operators[name] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operators[name]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which an operator works on `dtype`: double for double, single for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def build() -> dict[str, Any] | None:
    """How the compiled libraries were built; None where nothing is compiled."""
    try:
        module = importlib.import_module("pxp_fast._build")
    except ImportError:
        return None
    names = ("compiler", "instruction_sets", "cuda_version", "cuda_architectures")
    return {name: getattr(module, name) for name in names}


def covers(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code built for `architecture`, as CMake spells it, runs on a GPU of this compute capability."""
    parts = re.fullmatch(r"(\d+)(\d)([af]?)(-real|-virtual)?", architecture)
    if parts is None:  # such as "all-major": not for us to know
        return True
    built = int(parts[1]), int(parts[2])
    if parts[3] == "a":
        return built == capability
    if parts[3] == "f" or parts[4] == "-real":  # machine code runs on later GPUs of its generation, PTX on all later
        return built[0] == capability[0] and built <= capability
    return built <= capability


def without_code(architectures: list[str]) -> str | None:
    """Names a GPU on which CUDA kernels built for `architectures` (empty: unknown) do not run; None: there is none."""
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        built = not architectures or any(covers(architecture, capability) for architecture in architectures)
        if capability < OLDEST_GPU or not built:
            name, number = torch.cuda.get_device_name(index), "{}.{}".format(*capability)
            needed = f"built for {', '.join(architectures)}" if capability >= OLDEST_GPU else "8.0 at least"
            return f"no code for cuda:{index}, {name}, of compute capability {number}: {needed}"
    return None


def load() -> None:
    """Load the compiled kernels that are installed and that this PyTorch can run; remember why for the others.

    Which GPUs there are is not asked before CUDA is initialized: asking would initialize it, and take time, memory
    and the freedom to fork from programs that never use a GPU. The CUDA kernels wait for that moment.
    """
    for key, name in LIBRARIES.items():
        path = PACKAGE / name
        if os.environ.get("PXP_NATIVE", "1") == "0":
            native[key] = "switched off by PXP_NATIVE=0"
        elif not path.exists():
            native[key] = f"{name} is not installed"
        elif key == "CUDA" and torch.version.cuda is None:
            native[key] = "this PyTorch is built without CUDA"
        elif key == "CUDA" and torch.cuda.device_count():
            native[key] = "waits until CUDA is initialized"
            torch.cuda._lazy_call(functools.partial(_load_for_gpus, path))
        else:
            _load(key, path)


def _load_for_gpus(path: Path) -> None:
    """Leave the references where they are if there is a GPU that could run nothing else."""
    built = build()
    reason = without_code(built["cuda_architectures"] if built else [])
    if reason is None:
        _load("CUDA", path)
    else:
        native["CUDA"] = reason


def _load(key: str, path: Path) -> None:
    try:
        torch.ops.load_library(path)
        native[key] = "loaded"
    except OSError as error:
        native[key] = f"{path.name} does not load: {error}"
        warnings.warn(
            f"pxp_fast runs without its compiled {key} kernels, with the same results but slower: "
            f"{path} does not load ({error}). Reinstall pxp_fast against PyTorch {torch.__version__}.",
            RuntimeWarning,
            stacklevel=3,
        )
