"""pxp_fast: what `pxp_fast.score` does for every batch after its one capture."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pxp_fast import ops
from pxp_fast.criteria import Relevance

from .interface import Peer


class PxpFast(Peer):
    """`options` go to :class:`pxp_fast.criteria.Relevance`. Images are taken as a loader gives them."""

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype, **options) -> None:
        self.relevance = Relevance(model, images, dtype=dtype, device=images.device, **options)
        units = sum(group.count for group in self.relevance.units)
        self.totals = torch.zeros(4, units, dtype=torch.float64, device=images.device)

    def run(self, images: Tensor, labels: Tensor) -> None:
        self.table = self.relevance.run(images, labels)
        ops.accumulate_(self.totals, self.table)

    def unit_sums(self) -> dict[str, Tensor]:
        signed = self.table[0].split([group.count for group in self.relevance.units], dim=1)
        return {group.name: sums for group, sums in zip(self.relevance.units, signed, strict=True)}
