"""Which classes of a masked network can be cut out without changing what it computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..lrp.graph import Captured
from .constancy import constants_of
from .coupling import Coupling
from .identity import idle_blocks
from .labels import KEPT, NOBODY, compact, read_channels


class Removal:
    """The largest set of classes that a network, some of whose parameters are zero, can do without.

    A class can go where every layer that reads it gets nothing from it, or always the same, and where what stays still
    has the form that the network's code gives it: as many channels in every group of a convolution, whole heads, and
    at least one channel in every layer.

    Parameters
    ----------
    captured
        The masked network.
    rearranged
        Whether channels that the network lays out in several dimensions may go.
    model
        The network's modules, where blocks that do nothing may go as well.

    Attributes
    ----------
    removed
        ``[labels]``, bool, by class.
    constants, zeros
        See :class:`~pxp_fast.slimming.constancy.Constants`.
    idle
        Paths of the blocks that do nothing.
    """

    def __init__(
        self, captured: Captured, coupling: Coupling, rearranged: bool = True, model: nn.Module | None = None
    ) -> None:
        self.captured = captured
        self.coupling = coupling
        found = constants_of(captured)
        self.constants, self.zeros = found.inputs, found.zeros
        self.idle = [] if model is None else idle_blocks(captured, model, found.zeros)
        self.removed = self._unread()
        self.tables = [table for table in map(self._table, self._values()) if table is not None]
        if not rearranged:
            for table in self.tables:
                self._give_back(table)
        self._shape()

    def skips(self, path: str) -> bool:
        """Whether a module, or the owner of a parameter, lies in a block that does nothing."""
        return any(path == block or path.startswith(f"{block}.") for block in self.idle)

    def gone(self, labels: Tensor) -> Tensor:
        """Which of these labels are removed."""
        return self.removed[self.coupling.class_of(labels).clamp_min(KEPT)]

    def _unread(self) -> Tensor:
        """The classes that no layer gets anything from but, at most, an addition to its bias."""
        labels = self.coupling.labels
        removable = torch.zeros(labels.count, dtype=torch.bool)
        for rows in labels.rows.values():
            removable[self.coupling.class_of(rows)] = True
        removable[self.coupling.roots[KEPT]] = False
        uses = [layer.weight for layer in labels.layers]
        for layer in labels.layers:
            if layer.channelwise:
                continue
            constant = self.constants[layer.node].cpu()
            foldable = torch.zeros_like(constant, dtype=torch.bool)
            if not layer.padded and uses.count(layer.weight) == 1:
                foldable = ~constant.isnan()
            reads = read_channels(self.captured.constants[layer.weight].cpu(), layer.groups).flatten()
            read = reads & (constant != 0) & ~foldable
            removable[self.coupling.class_of(layer.inputs[read])] = False
        return removable

    def _shape(self) -> None:
        """Give back what must stay for the rest to have a form."""
        layers = self.coupling.labels.layers
        before = -1
        while before != (before := int(self.removed.sum())):
            for layer in layers:
                self._keep_one(layer.outputs)
                if layer.groups > 1 and not layer.channelwise:
                    self._balance(layer.inputs, layer.groups)
                    self._balance(layer.outputs, layer.groups)
            for attention in self.coupling.labels.attentions:
                self._keep_one(attention.heads)
            for table in self.tables:
                self._keep_boxes(table)

    def _give_back(self, labels: Tensor) -> None:
        self.removed[self.coupling.class_of(labels).clamp_min(KEPT)] = False

    def _keep_one(self, labels: Tensor) -> None:
        if bool(self.gone(labels).all()):
            self._give_back(labels[:1])

    def _balance(self, channels: Tensor, groups: int) -> None:
        """Let every group of channels lose as many as that which loses fewest."""
        gone = self.gone(channels).view(groups, -1)
        least = int(gone.sum(1).min())
        excess = gone & (gone.cumsum(1) > least)
        self._give_back(channels.view(groups, -1)[excess])

    def _values(self) -> Iterable[Tensor]:
        for node, value in self.coupling.labels.values.items():
            if node not in self.coupling.labels.rows:
                yield from value if isinstance(value, list | tuple) else [value]

    def _table(self, value: object) -> Tensor | None:
        """The labels of a value that vary along several dimensions."""
        if not isinstance(value, Tensor):
            return None
        value = compact(value)
        table = value.squeeze()
        return table if table.dim() > 1 and bool((table > KEPT).any()) else None

    def _keep_boxes(self, table: Tensor) -> None:
        """What stays of a tensor must be a box: the same along each dimension, whatever the place along the others."""
        gone = self.gone(table) & (table != NOBODY)
        if not bool(gone.any()):
            return
        cut = torch.zeros_like(gone)
        for dim in range(table.dim()):
            cut |= _all(gone, [d for d in range(table.dim()) if d != dim])
        self._give_back(table[gone & ~cut])


def _all(gone: Tensor, dims: list[int]) -> Tensor:
    for dim in dims:
        gone = gone.all(dim, keepdim=True)
    return gone


def kept_along(gone: Tensor) -> list[Tensor]:
    """Indices that stay along each dimension of a tensor, of which a box stays."""
    return [
        (~_all(gone, [d for d in range(gone.dim()) if d != dim])).flatten().nonzero().flatten()
        for dim in range(gone.dim())
    ]
