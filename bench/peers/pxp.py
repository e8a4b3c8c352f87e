"""pxp_fast: what `pxp_fast.score` does for every batch after its one capture."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from pxp_fast import memory, ops
from pxp_fast.criteria import CudaGraphs, GraphWarning, Relevance, Step

from .interface import Peer


class PxpFast(Peer):
    """`options` go to :class:`pxp_fast.criteria.Relevance`. Images are taken as a loader gives them.

    Freed memory is kept, as `pxp_fast.score` keeps it until it ends, which here is when the process does.
    """

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype, **options) -> None:
        self.relevance = Relevance(model, images, dtype=dtype, device=images.device, **options)
        units = sum(group.count for group in self.relevance.units)
        self.totals = torch.zeros(4, units, dtype=torch.float64, device=images.device)
        if images.device.type == "cpu":
            self.kept = memory.kept()
            self.kept.__enter__()

    def run(self, images: Tensor, labels: Tensor) -> None:
        self.table = self.relevance.run(images, labels)
        ops.accumulate_(self.totals, self.table)

    def unit_sums(self) -> dict[str, Tensor]:
        signed = self.table[0].split([group.count for group in self.relevance.units], dim=1)
        return {group.name: sums for group, sums in zip(self.relevance.units, signed, strict=True)}


class PxpFastGraph(Peer):
    """What `pxp_fast.score` does on a GPU: :class:`pxp_fast.criteria.Step`, which replays a CUDA graph.

    On a CPU the step runs as it is.
    """

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype, **options) -> None:
        self.relevance = Relevance(model, images, dtype=dtype, device=images.device, **options)
        self.step = Step(self.relevance, recorder=CudaGraphs(images.device) if images.is_cuda else None)
        labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        with warnings.catch_warnings():
            warnings.simplefilter("error", GraphWarning)  # without a graph it would be `PxpFast` under another name
            for _ in range(2):  # a size is recorded when it comes for the second time
                self.step(images, labels)
        self.step.totals.zero_()

    def run(self, images: Tensor, labels: Tensor) -> None:
        self.step(images, labels)

    def unit_sums(self) -> dict[str, Tensor]:
        """Layer -> ``[units]``: signed sums over the samples of all runs, as a step keeps no sample apart."""
        signed = self.step.totals[0].split([group.count for group in self.relevance.units])
        return {group.name: sums for group, sums in zip(self.relevance.units, signed, strict=True)}
