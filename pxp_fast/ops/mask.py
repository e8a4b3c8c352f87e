"""Zero the parameters of removed units, all layers in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import define


def reference(parameters: list[Tensor], keep: list[Tensor], dims: list[int]) -> None:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    for parameter, kept, dim in zip(parameters, keep, dims, strict=True):
        shape = [1] * parameter.dim()
        shape[dim] = -1
        # Not a product: NaN times zero is NaN.
        parameter.masked_fill_(~kept.view(shape), 0)


def fake(parameters: list[Tensor], keep: list[Tensor], dims: list[int]) -> None:
    return None


_operator = define("mask_(Tensor(a!)[] parameters, Tensor[] keep, int[] dims) -> ()", reference, fake)


@torch.no_grad()
def mask_(parameters: Sequence[Tensor], keep: Sequence[Tensor], dims: Sequence[int]) -> None:
    """Zero the slices of `parameters` that are not kept, in place. What is kept stays bit-identical.

    Parameters
    ----------
    parameters
        Floating-point tensors of any shape and strides, all on one device; views are written through. No two may
        share memory.
    keep
        For each parameter a bool tensor ``[size of its dimension dims[i]]`` on its device: False where the slice
        becomes zero, also where it held NaN.
    dims
        For each parameter the dimension that `keep` runs along.

    Raises
    ------
    PxpError
        The lists differ in length, or a mask does not fit its parameter.
    """
    parameters, keep, dims = list(parameters), list(keep), list(dims)
    if not len(parameters) == len(keep) == len(dims):
        raise PxpError(
            f"mask_: {len(parameters)} parameters, {len(keep)} masks and {len(dims)} dimensions; pass as many of each"
        )
    for index, (parameter, kept, dim) in enumerate(zip(parameters, keep, dims, strict=True)):
        if not -parameter.dim() <= dim < parameter.dim():
            raise PxpError(f"mask_: parameter {index} of shape {tuple(parameter.shape)} has no dimension {dim}")
        if kept.dtype != torch.bool or kept.shape != (parameter.shape[dim],) or kept.device != parameter.device:
            raise PxpError(
                f"mask_: keep[{index}] is {kept.dtype} {tuple(kept.shape)} on {kept.device}; parameter {index} "
                f"needs bool ({parameter.shape[dim]},) on {parameter.device}"
            )
        if not parameter.is_floating_point() or parameter.device != parameters[0].device:
            raise PxpError(
                f"mask_: parameter {index} is {parameter.dtype} on {parameter.device}; "
                "pass floating-point parameters on one device"
            )
    if parameters:
        _operator(parameters, keep, dims)
