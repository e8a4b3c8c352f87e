"""Labels of the entries of tensors, and which of them belong together."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, fx

from ..lrp.fold import CONVOLUTIONS
from ..lrp.graph import Captured, argument
from ..lrp.probe import size_of

KEPT, NOBODY = 0, -1
"""The label of what cannot be removed, and of what has no say in it."""


@dataclasses.dataclass(frozen=True)
class LayerUse:
    """A convolution or linear layer as it is called once.

    Attributes
    ----------
    node
        The operator.
    weight
        The node of its weight, a parameter.
    inputs, outputs
        Labels of its input channels and of its output channels.
    groups
        Of a convolution. Where each group reads one channel, that channel and its outputs are one class.
    """

    node: fx.Node
    weight: fx.Node
    inputs: Tensor
    outputs: Tensor
    groups: int

    @property
    def channelwise(self) -> bool:
        return self.groups == len(self.inputs)

    @property
    def padded(self) -> bool:
        """Whether zeros are read beside the input."""
        padding = argument(self.node, "padding") if self.node.target in CONVOLUTIONS else 0
        if isinstance(padding, str):
            return padding != "valid"
        return any([padding] if isinstance(padding, int) else padding)


@dataclasses.dataclass(frozen=True)
class AttentionUse:
    """Heads that are computed side by side: the operator and its module, and the labels of each head."""

    node: fx.Node
    module: str
    heads: Tensor


class Labels:
    """The labels of one captured classifier, while its operators are gone through.

    Attributes
    ----------
    values
        Node -> labels of its value for a batch of two; entries along the batch and along positions share theirs.
    rows, columns
        Node of a layer's weight -> labels of its first and second dimension; the columns of a grouped convolution,
        which several channels share, have no say.
    layers, attentions
        Every call of a layer, and every attention whose heads are told apart, in execution order.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.count = 1
        self.pairs: list[Tensor] = []
        self.values: dict[fx.Node, object] = {}
        self.rows: dict[fx.Node, Tensor] = {}
        self.columns: dict[fx.Node, Tensor] = {}
        self.layers: list[LayerUse] = []
        self.attentions: list[AttentionUse] = []

    def new(self, count: int) -> Tensor:
        self.count += count
        return torch.arange(self.count - count, self.count)

    def shape(self, node: fx.Node) -> list[int]:
        if node in self.captured.constants:
            return list(self.captured.constants[node].shape)
        return [size_of(size, self.captured) for size in self.captured.shape(node)]

    def join(self, one: Tensor, other: Tensor) -> None:
        """Put labels that stand at the same place into one class; NOBODY has no part in it."""
        one, other = torch.broadcast_tensors(compact(one), compact(other))
        apart = (one != other) & (one != NOBODY) & (other != NOBODY)
        if bool(apart.any()):
            keys = (one[apart] * self.count + other[apart]).unique()
            self.pairs.append(torch.stack((keys // self.count, keys % self.count)))

    def keep(self, *labels: object) -> None:
        """Let nothing of this be removed."""
        for one in labels:
            if isinstance(one, list | tuple):
                self.keep(*one)
            elif isinstance(one, Tensor):
                self.join(one, torch.tensor(KEPT))

    def join_along(self, labels: Tensor, dims: list[int]) -> Tensor:
        """Join what lies along these dimensions; the labels with one entry along each of them."""
        for dim in dims:
            first = filled(labels, dim)
            self.join(labels, first)
            labels = first
        return labels

    def channels(self, labels: Tensor, dim: int) -> Tensor:
        """Labels ``[C]`` of the channels along `dim`, each joined over all other dimensions."""
        others = [d for d in range(labels.dim()) if d != dim % labels.dim()]
        return self.join_along(labels, others).flatten().expand(labels.shape[dim])

    def spread(self, channels: Tensor, node: fx.Node, dim: int) -> Tensor:
        """Labels of the node's value, whose channels lie along `dim`."""
        shape = self.shape(node)
        ones = [1] * len(shape)
        ones[dim] = -1
        return channels.view(ones).expand(shape)

    def classes(self) -> Tensor:
        """The class of every label, as the least label in it."""
        parent = torch.arange(self.count)
        if not self.pairs:
            return parent
        one, other = torch.cat(self.pairs, 1)
        while True:
            low, high = torch.minimum(parent[one], parent[other]), torch.maximum(parent[one], parent[other])
            if torch.equal(low, high):
                return parent
            parent.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(parent, parent[parent]):
                parent = parent[parent]


def compact(labels: Tensor) -> Tensor:
    """The labels with one entry along each dimension that they were expanded along."""
    for dim, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[dim] > 1:
            labels = labels.narrow(dim, 0, 1)
    return labels


def varies(labels: Tensor, dim: int) -> bool:
    """Whether labels differ along a dimension."""
    labels = compact(labels)
    return labels.shape[dim] > 1 and not bool((labels == labels.narrow(dim, 0, 1)).all())


def filled(labels: Tensor, dim: int) -> Tensor:
    """One entry along `dim`: the greatest, so that NOBODY is taken only where there is no other."""
    return compact(labels).amax(dim, keepdim=True)


def read_channels(weight: Tensor, groups: int) -> Tensor:
    """``[groups, inputs per group]``: which channels have a weight that is not 0."""
    return (
        (weight != 0).flatten(2).any(2).unflatten(0, (groups, -1)).any(1)
        if weight.dim() > 2
        else ((weight != 0).any(0, keepdim=True))
    )
