"""Choose the k smallest or largest scores, the same ones on every run and device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import define


def reference(scores: Tensor, k: int, largest: bool) -> Tensor:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    order = torch.sort(scores, stable=True, descending=largest).indices
    chosen = torch.zeros_like(scores, dtype=torch.bool, memory_format=torch.contiguous_format)
    chosen[order[:k]] = True
    return chosen


def fake(scores: Tensor, k: int, largest: bool) -> Tensor:
    return scores.new_empty(scores.shape, dtype=torch.bool)


_operator = define("select(Tensor scores, int k, bool largest) -> Tensor", reference, fake)


def select(scores: Tensor, k: int, *, largest: bool = False) -> Tensor:
    """Mark the `k` smallest (or largest) of all scores.

    Parameters
    ----------
    scores
        ``[n]``, floating point. Infinities are allowed; -0.0 and 0.0 are equal.
    k
        How many to mark, 0 to n.
    largest
        Mark the largest instead of the smallest.

    Returns
    -------
    Tensor
        ``[n]`` bool with exactly `k` True. Of equal scores those with the lower index are marked first, in both
        directions.

    Raises
    ------
    PxpError
        `scores` is not one-dimensional, holds NaN, or has fewer than `k` entries.
    """
    if scores.dim() != 1 or not scores.is_floating_point():
        raise PxpError(f"select: scores is {scores.dtype} {tuple(scores.shape)}; pass floating-point [n]")
    if not 0 <= k <= scores.numel():
        raise PxpError(f"select: k is {k} for {scores.numel()} scores; pass 0 to {scores.numel()}")
    missing = int(torch.isnan(scores).sum())
    if missing:
        raise PxpError(
            f"select: {missing} of {scores.numel()} scores are NaN, which have no rank; "
            "look for weights or images that are not finite"
        )
    return _operator(scores, k, largest)
