"""What a network costs once some of its classes are cut out, without cutting."""

from __future__ import annotations

import dataclasses
import math

from torch import Tensor, fx

from ..lrp.graph import module_of, packet
from ..lrp.probe import SAMPLES
from .labels import LayerUse
from .removal import Removal, kept_along


@dataclasses.dataclass(frozen=True)
class Costs:
    """The size and the work of a network.

    Attributes
    ----------
    parameters
        Numbers that are learned.
    flops
        Floating-point operations for one image in convolutions, linear layers and products of matrices, a
        multiplication and an addition counted apart, as :mod:`torch.utils.flop_counter` counts them.
    """

    parameters: int
    flops: int


def costs(removal: Removal) -> Costs:
    """The costs of the network without what is removed."""
    labels, captured = removal.coupling.labels, removal.captured
    parameters = sum(_left(removal, node) for node, name in captured.parameters.items() if not removal.skips(name))
    names = captured.parameters
    flops = sum(_layer(removal, layer) for layer in labels.layers if not removal.skips(names[layer.weight]))
    attentions = {attention.node: attention.heads for attention in labels.attentions}
    for node in (n for n in captured.nodes() if not removal.skips(module_of(n))):
        work = _product(removal, node)
        if node in attentions:
            gone = removal.gone(attentions[node])
            work = work * int((~gone).sum()) // len(gone)
        flops += work
    return Costs(parameters, flops)


def _left(removal: Removal, node: fx.Node) -> int:
    """How many entries of a parameter stay."""
    labels = removal.coupling.labels
    if node in labels.rows:
        layer = next((layer for layer in labels.layers if layer.weight is node), None)
        if layer is None:  # its value does not depend on the images
            return removal.captured.constants[node].numel()
        rows, columns = _kept(removal, layer.outputs), _kept(removal, layer.inputs)
        columns = 1 if layer.channelwise else columns // layer.groups
        return rows * columns * math.prod(removal.captured.constants[node].shape[2:])
    entries = labels.values[node]
    return math.prod(len(kept) for kept in kept_along(removal.gone(entries)))


def _layer(removal: Removal, layer: LayerUse) -> int:
    """A layer's work: at every position each output needs each input of its group."""
    shape = removal.coupling.labels.shape(layer.node)
    positions = math.prod(shape) // len(layer.outputs) // SAMPLES
    kernel = math.prod(removal.captured.constants[layer.weight].shape[2:])
    columns = 1 if layer.channelwise else _kept(removal, layer.inputs) // layer.groups
    return 2 * positions * kernel * _kept(removal, layer.outputs) * columns


def _product(removal: Removal, node: fx.Node) -> int:
    """The work of a product of two values, or of attention's two, for one image."""
    shape = removal.coupling.labels.shape
    if packet(node) in ("matmul", "bmm"):
        return 2 * math.prod(shape(node)) * shape(node.args[0])[-1] // SAMPLES
    if packet(node) == "scaled_dot_product_attention":
        query, key, value = (shape(n) for n in node.args[:3])
        return 2 * math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1]) // SAMPLES
    return 0


def _kept(removal: Removal, labels: Tensor) -> int:
    return int((~removal.gone(labels)).sum())
