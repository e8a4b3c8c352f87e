"""The operators that make pxp_fast fast: each with a reference in Python and, where compiled, CPU and CUDA kernels.

A function ``pxp_fast.ops.NAME`` checks its arguments and calls the operator ``torch.ops.pxp_fast.NAME``.
"""

from . import _library
from .accumulate import SAMPLE_ABSOLUTE, SIGNED, SQUARED, TOKEN_ABSOLUTE, accumulate_
from .add_relu import add_relu
from .convolution_epsilon import convolution_epsilon
from .epsilon import ACTIVATIONS, epsilon, epsilon_, epsilon_over_, unit_sums_
from .layer_norm import layer_norm, layer_norm_
from .linear_epsilon import linear_epsilon
from .mask import mask_
from .max_pool import max_pool, max_pool_epsilon
from .select import select
from .share import FORMS, share_

_library.load()

__all__ = [
    "ACTIVATIONS",
    "FORMS",
    "SAMPLE_ABSOLUTE",
    "SIGNED",
    "SQUARED",
    "TOKEN_ABSOLUTE",
    "accumulate_",
    "add_relu",
    "convolution_epsilon",
    "epsilon",
    "epsilon_",
    "epsilon_over_",
    "layer_norm",
    "layer_norm_",
    "linear_epsilon",
    "mask_",
    "max_pool",
    "max_pool_epsilon",
    "select",
    "share_",
    "unit_sums_",
]
