"""What several operators ask of the tensors that they write in place."""

from __future__ import annotations

from torch import Tensor

from ..errors import PxpError


def check_apart(name: str, what: str, tensor: Tensor) -> None:
    """Refuse a tensor two of whose elements may share memory; every view by slices and permutations passes."""
    if tensor.is_contiguous() or not tensor.numel():
        return
    reach = 0  # the last element of the dimensions so far
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride <= reach:
            raise PxpError(
                f"{name}: {what} {tuple(tensor.shape)} has strides {tensor.stride()}: its elements share memory, as in "
                f"an expanded tensor, and cannot be written in place; pass {what}.clone()"
            )
        reach += stride * (size - 1)
