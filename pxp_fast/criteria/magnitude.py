"""The size of a unit's weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..units import ParameterSlice, UnitGroup
from .base import DataFreeCriterion, choice

NORMS = {"l1": 1, "l2": 2}


class Magnitude(DataFreeCriterion):
    """The norm of a unit's weights: what a mask sets to zero, without biases and without the norm that follows.

    Of a filter its kernel, of a neuron its row of the weight matrix, of a head its columns of the projection that reads
    it.

    Parameters
    ----------
    model, example, kinds
        As for :class:`pxp_fast.criteria.Relevance`.
    norm
        ``"l1"``: the sum of absolute values; ``"l2"``: the root of the sum of squares.

    References
    ----------
    Li, Kadav, Durdanovic, Samet, Graf, Pruning Filters for Efficient ConvNets, ICLR 2017, arXiv 1608.08710.
    """

    name = "magnitude"

    def __init__(
        self, model: nn.Module, example: Tensor, *, norm: str = "l2", kinds: tuple[str, ...] | None = None
    ) -> None:
        self.norm = choice("norm", norm, tuple(NORMS))
        self.look_at(model, example, kinds)
        tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
        self._values = torch.cat([self._norms(group, tensors) for group in self.units])

    def options(self) -> dict[str, Any]:
        return {"norm": self.norm}

    def values(self) -> Tensor:
        """One number for each unit, ``[U]`` float64 on the CPU."""
        return self._values

    def _norms(self, group: UnitGroup, tensors: dict[str, Tensor]) -> Tensor:
        pieces = [p for p in group.slices if p.role == "layer" and tensors[p.parameter].dim() > 1]
        weights = torch.cat([_by_unit(tensors[p.parameter], p, group.count) for p in pieces], dim=1)
        return torch.linalg.vector_norm(weights, NORMS[self.norm], dim=1)


def _by_unit(parameter: Tensor, piece: ParameterSlice, count: int) -> Tensor:
    """The entries of a parameter that each unit owns, ``[units, entries]`` float64 on the CPU."""
    entries = parameter.detach().double().cpu().movedim(piece.dim, 0)
    if piece.index is not None:
        entries = entries[torch.tensor(piece.index)]
    return entries.reshape(count, -1)
