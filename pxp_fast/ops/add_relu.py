"""A sum and the ReLU behind it: one pass over memory."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import define


def reference(a: Tensor, b: Tensor) -> Tensor:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    return torch.empty_like(a).copy_(torch.relu(a + b))


def fake(a: Tensor, b: Tensor) -> Tensor:
    return torch.empty_like(a)


_operator = define("add_relu(Tensor a, Tensor b) -> Tensor", reference, fake)


def add_relu(a: Tensor, b: Tensor) -> Tensor:
    """``max(a + b, 0)``, with the bits of ``torch.relu(a + b)``: the sum is rounded once, to the dtype of the tensors.

    NaN stays NaN, and so does the sum of two infinities of different signs.

    Parameters
    ----------
    a, b
        Two tensors of any one shape, float64, float32, bfloat16 or float16. Without a copy where both lie densely in
        the same order of dimensions (contiguous, channels-last ...).

    Returns
    -------
    Tensor
        A new tensor, with the shape, dtype and strides of `a` (its order of dimensions where it has gaps).

    Raises
    ------
    PxpError
        Shapes, dtypes or devices differ, or the dtype is none of the four.
    """
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        raise PxpError(
            f"add_relu: a is {a.dtype} {tuple(a.shape)} on {a.device}, b is {b.dtype} {tuple(b.shape)} on {b.device}; "
            "pass two tensors of one shape, dtype and device"
        )
    if not a.is_floating_point():
        raise PxpError(f"add_relu: a and b are {a.dtype}; pass floating-point tensors")
    return _operator(a, b)
