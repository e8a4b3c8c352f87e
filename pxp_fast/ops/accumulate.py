"""Add the per-sample sums of a batch to the running totals of every unit."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import PxpError
from ._library import define

SIGNED = 0
"""Row of the totals: the sum over samples of the signed sum ``s``."""
SAMPLE_ABSOLUTE = 1
"""Row of the totals: the sum over samples of ``|s|``."""
TOKEN_ABSOLUTE = 2
"""Row of the totals: the sum over samples of ``t``, the sum over positions of absolute relevance."""
SQUARED = 3
"""Row of the totals: the sum over samples of ``s * s``."""


def reference(totals: Tensor, sums: Tensor) -> None:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    # One sample at a time, so that the totals do not depend on how the samples were batched.
    for signed, absolute in sums.double().unbind(1):
        totals += torch.stack([signed, signed.abs(), absolute, signed.square()])


def fake(totals: Tensor, sums: Tensor) -> None:
    return None


_operator = define("accumulate_(Tensor(a!) totals, Tensor sums) -> ()", reference, fake)


def accumulate_(totals: Tensor, sums: Tensor) -> None:
    """Add what every sample of a batch says about the units to `totals`, in place.

    Samples are added one after the other in float64: the same samples in the same order give the same bits, however
    they are batched.

    Parameters
    ----------
    totals
        ``[4, U]`` float64, contiguous; its rows are :data:`SIGNED`, :data:`SAMPLE_ABSOLUTE`, :data:`TOKEN_ABSOLUTE` and
        :data:`SQUARED`.
    sums
        ``[2, N, U]`` float32 or float64: for each sample and unit the sum of relevance over positions (row 0) and of
        its absolute value (row 1), as :func:`pxp_fast.ops.epsilon` gives them.

    Raises
    ------
    PxpError
        A shape or dtype does not fit.
    """
    if totals.dtype != torch.float64 or totals.dim() != 2 or totals.shape[0] != 4 or not totals.is_contiguous():
        raise PxpError(
            f"accumulate_: totals is {totals.dtype} {tuple(totals.shape)}; pass contiguous float64 [4, units]"
        )
    if (
        sums.dtype not in (torch.float32, torch.float64)
        or sums.dim() != 3
        or sums.shape[0] != 2
        or sums.shape[2] != totals.shape[1]
    ):
        raise PxpError(
            f"accumulate_: sums is {sums.dtype} {tuple(sums.shape)}; "
            f"pass float32 or float64 [2, samples, {totals.shape[1]}]"
        )
    _operator(totals, sums)
