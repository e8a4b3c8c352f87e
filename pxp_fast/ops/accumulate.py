"""Add the per-sample sums of a batch to the running totals of every unit, all together or apart for each class."""

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


def reference(totals: Tensor, sums: Tensor, labels: Tensor | None = None) -> None:
    """What the operator means, written for reading. The compiled kernels must give the same."""
    apart = totals if totals.dim() == 3 else totals.unsqueeze(0)
    # One sample at a time, so that the totals do not depend on how the samples were batched.
    for n, (signed, absolute) in enumerate(sums.double().unbind(1)):
        rows = torch.stack([signed, signed.abs(), absolute, signed.square()])
        if labels is None:
            apart[0] += rows
        else:  # without reading the label on the host, which would wait for the GPU
            label = labels[n] if totals.dim() == 3 else labels[n].clamp(max=0)
            counts = (label >= 0) & (label < len(apart))
            apart.index_add_(0, torch.where(counts, label, 0)[None], torch.where(counts, rows, 0)[None])


def fake(totals: Tensor, sums: Tensor, labels: Tensor | None = None) -> None:
    return None


_operator = define("accumulate_(Tensor(a!) totals, Tensor sums, Tensor? labels) -> ()", reference, fake)


def accumulate_(totals: Tensor, sums: Tensor, labels: Tensor | None = None) -> None:
    """Add what every sample of a batch says about the units to `totals`, in place.

    Samples are added one after the other in float64: the same samples in the same order give the same bits, however
    they are batched and whatever samples are left out between them.

    Parameters
    ----------
    totals
        ``[4, U]`` float64, contiguous; its rows are :data:`SIGNED`, :data:`SAMPLE_ABSOLUTE`, :data:`TOKEN_ABSOLUTE` and
        :data:`SQUARED`. Or ``[classes, 4, U]``: each sample is added to the totals of its label alone.
    sums
        ``[2, N, U]`` float32 or float64: for each sample and unit the sum of relevance over positions (row 0) and of
        its absolute value (row 1), as :func:`pxp_fast.ops.epsilon` gives them.
    labels
        ``[N]`` int64 on the device of `totals`. A sample whose label is negative is left out entirely, whatever its
        sums are, NaN included: so a batch can be filled up to a fixed size. None, for ``[4, U]``: all samples count.

        With ``[classes, 4, U]`` a label of `classes` or more is an error on the CPU. On a GPU labels are not read here,
        as that would wait for it: such a sample is left out, so check labels before they go there.

    Raises
    ------
    PxpError
        A shape or dtype does not fit, or on the CPU a label.
    """
    if (
        totals.dtype != torch.float64
        or totals.dim() not in (2, 3)
        or totals.shape[-2] != 4
        or not totals.is_contiguous()
    ):
        raise PxpError(
            f"accumulate_: totals is {totals.dtype} {tuple(totals.shape)}; "
            "pass contiguous float64 [4, units] or [classes, 4, units]"
        )
    if (
        sums.dtype not in (torch.float32, torch.float64)
        or sums.dim() != 3
        or sums.shape[0] != 2
        or sums.shape[2] != totals.shape[-1]
    ):
        raise PxpError(
            f"accumulate_: sums is {sums.dtype} {tuple(sums.shape)}; "
            f"pass float32 or float64 [2, samples, {totals.shape[-1]}]"
        )
    if labels is None:
        if totals.dim() == 3:
            raise PxpError("accumulate_: totals of every class need labels; pass labels, or totals [4, units]")
    else:
        _check_labels(labels, totals, sums)
    _operator(totals, sums, labels)


def _check_labels(labels: Tensor, totals: Tensor, sums: Tensor) -> None:
    if labels.dtype != torch.int64 or labels.shape != sums.shape[1:2] or labels.device != totals.device:
        raise PxpError(
            f"accumulate_: labels is {labels.dtype} {tuple(labels.shape)} on {labels.device}; "
            f"pass int64 [{sums.shape[1]}] on {totals.device}"
        )
    if totals.dim() == 3 and labels.device.type == "cpu" and labels.numel() and int(labels.max()) >= len(totals):
        raise PxpError(
            f"accumulate_: a label is {int(labels.max())}, but totals has {len(totals)} classes; pass labels below "
            f"{len(totals)}, or negative ones for samples to leave out"
        )
