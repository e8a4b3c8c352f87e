"""What can be removed from a network, and which parameters go with it."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

KINDS = ("filter", "neuron", "head")


@dataclasses.dataclass(frozen=True)
class ParameterSlice:
    """Entries of one parameter that belong to units: unit ``u`` owns ``u * block ... (u + 1) * block - 1`` of `dim`.

    Attributes
    ----------
    parameter
        Name in the model's ``state_dict``.
    dim
        Dimension that the units lie along.
    block
        Entries per unit.
    index
        Where a unit's entries are not one block, the entries of each unit.
    role
        ``"layer"``: the layer's own weight or bias. ``"norm"``: those of the normalisation that follows it.
    """

    parameter: str
    dim: int
    block: int = 1
    index: tuple[tuple[int, ...], ...] | None = None
    role: str = "layer"

    def keep(self, kept: Tensor) -> Tensor:
        """Which entries along `dim` stay, as a bool tensor, given which units stay (bool ``[count]``)."""
        if self.index is None:
            return kept.repeat_interleave(self.block)
        entries = torch.ones(sum(map(len, self.index)), dtype=torch.bool)
        for unit, own in enumerate(self.index):
            entries[list(own)] = bool(kept[unit])
        return entries


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """The units of one layer.

    Attributes
    ----------
    name
        The user's module, such as ``layer1.0.conv1``, ``blocks.3.mlp.fc1``, ``blocks.3.attn``.
    kind
        ``"filter"``, ``"neuron"`` or ``"head"``.
    count
        How many units.
    slices
        The parameters that masking zeroes.
    """

    name: str
    kind: str
    count: int
    slices: tuple[ParameterSlice, ...]
