"""The operator library ``torch.ops.pxp_fast`` and the compiled kernels that may stand behind it.

Every operator is defined here in Python with a reference implementation that runs on any device. The compiled
libraries, when they are installed, register faster CPU and CUDA kernels under the same names; nothing else in the
package asks whether they are there. ``PXP_NATIVE=0`` in the environment leaves them unloaded.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

NAMESPACE = "pxp_fast"
PACKAGE = Path(__file__).resolve().parent.parent
LIBRARIES = {"CPU": "libpxp_fast_cpu.so", "CUDA": "libpxp_fast_cuda.so"}

# The registrations live as long as this object.
_library = torch.library.Library(NAMESPACE, "DEF")

operators: dict[str, torch._ops.OpOverload] = {}
"""Every operator defined by the package, by name."""

native: dict[str, str] = {}
"""What became of each compiled library, by dispatch key: "loaded", or the reason why it is not."""


def define(schema: str, reference: Callable, fake: Callable) -> torch._ops.OpOverload:
    """Define the operator `schema` with its reference implementation and its shape function."""
    name = schema.partition("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)
    operators[name] = getattr(getattr(torch.ops, NAMESPACE), name).default
    return operators[name]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision in which an operator works on `dtype`: double for double, single for everything narrower."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def load() -> None:
    """Load the compiled kernels that are installed and that this PyTorch can run; remember why for the others."""
    for key, name in LIBRARIES.items():
        path = PACKAGE / name
        if os.environ.get("PXP_NATIVE", "1") == "0":
            native[key] = "switched off by PXP_NATIVE=0"
        elif not path.exists():
            native[key] = f"{name} is not installed"
        elif key == "CUDA" and torch.version.cuda is None:
            native[key] = "this PyTorch is built without CUDA"
        else:
            try:
                torch.ops.load_library(path)
                native[key] = "loaded"
            except OSError as error:
                native[key] = f"{name} does not load: {error}"
                warnings.warn(
                    f"pxp_fast runs without its compiled {key} kernels, with the same results but slower: "
                    f"{path} does not load ({error}). Reinstall pxp_fast against PyTorch {torch.__version__}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
