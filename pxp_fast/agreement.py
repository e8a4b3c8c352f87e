"""How alike two explanations of the same image are."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .paired import mean_interval
from .records import AgreementRecord

TOP = 0.1


def agreement(before: Tensor, after: Tensor) -> tuple[AgreementRecord, ...]:
    """Each measure of how alike the heat maps ``[N, H, W]`` of N images are; none where there are no images."""
    if not len(before):
        return ()
    measures = {"cosine": cosine, "overlap": overlap, "rank": rank_correlation}
    found = []
    for name, measure in measures.items():
        values = measure(before.flatten(1).double(), after.flatten(1).double())
        low, high = mean_interval(values)
        found.append(
            AgreementRecord(
                measure=name,
                values=tuple(round(value, 4) for value in values.tolist()),
                mean=round(float(values.mean()), 4),
                interval=(round(low, 4), round(high, 4)),
            )
        )
    return tuple(found)


def cosine(before: Tensor, after: Tensor) -> Tensor:
    """Of each row of ``[N, P]``; 0 where one is all 0."""
    return functional.cosine_similarity(before, after, dim=1)


def overlap(before: Tensor, after: Tensor, share: float = TOP) -> Tensor:
    """Of the `share` of each row's entries that are the largest, and above 0, the fraction that both have.

    ``[N]``, of ``[N, P]``; chance gives about `share`. Where one has fewer above 0, the fraction of the larger number.
    """
    count = math.ceil(share * before.shape[1])
    chosen = []
    for rows in (before, after):
        order = rows.argsort(dim=1, descending=True, stable=True)[:, :count]
        chosen.append(torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True) & (rows > 0))
    shared = (chosen[0] & chosen[1]).sum(1)
    return shared / torch.maximum(chosen[0].sum(1), chosen[1].sum(1)).clamp_min(1).double()


def rank_correlation(before: Tensor, after: Tensor) -> Tensor:
    """Spearman's correlation of each row of ``[N, P]``, ties at their mean rank; 0 where all of one are tied."""
    ranks = [torch.stack([_ranks(row) for row in rows]) for rows in (before, after)]
    centred = [rank - rank.mean(1, keepdim=True) for rank in ranks]
    return functional.cosine_similarity(*centred, dim=1)


def _ranks(values: Tensor) -> Tensor:
    """The rank of each of ``[P]`` values, from 0, ties at their mean."""
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts + 1) / 2)[place]
