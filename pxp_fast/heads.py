"""Attention heads on the captured graph, and the columns of the projection that each of them fills."""

from __future__ import annotations

import torch
from torch import fx

from .lrp.fold import CONVOLUTIONS, LINEAR
from .lrp.graph import Captured, argument, module_of, packet
from .lrp.probe import Probe
from .lrp.rules import ACTIVATIONS
from .units import ParameterSlice, UnitGroup

# What keeps or merely rearranges values on the way from an attention to the layer that reads its heads.
REARRANGING = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous", "clone", "squeeze", "unsqueeze",
    "_unsafe_view", "movedim", "select", "slice",
}  # fmt: skip


def heads_of(captured: Captured, node: fx.Node) -> UnitGroup | None:
    """The heads of an attention whose output ``[..., heads, queries, d]`` this node is, if it is one."""
    if packet(node) != "scaled_dot_product_attention":
        weights = node.args[0] if packet(node) in ("matmul", "bmm") else None
        while isinstance(weights, fx.Node) and packet(weights) in REARRANGING:
            weights = weights.args[0]
        if weights is None or not isinstance(weights, fx.Node) or packet(weights) not in ("softmax", "_softmax"):
            return None
        if argument(weights, "dim") % len(captured.shape(weights)) != len(captured.shape(weights)) - 1:
            return None
    shape = captured.shape(node)
    if len(shape) != 4 or not isinstance(shape[1], int) or shape[1] < 2:
        return None
    reader = _projection(captured, node)
    if reader is None:
        return None
    index = _columns_of_heads(captured, node, reader)
    if index is None:
        return None
    block = len(index[0])
    regular = all(own == tuple(range(u * block, (u + 1) * block)) for u, own in enumerate(index))
    piece = ParameterSlice(captured.parameters[reader.args[1]], 1, block, None if regular else index)
    return UnitGroup(module_of(node), "head", int(shape[1]), (piece,))


def _projection(captured: Captured, node: fx.Node) -> fx.Node | None:
    """The linear layer (or 1x1 convolution) that alone reads an attention's output, an activation perhaps between."""
    reader = node
    while True:
        users = list(reader.users)
        if len(users) != 1:
            return None
        reader = users[0]
        if reader.target is LINEAR or reader.target in CONVOLUTIONS:
            weight = captured.constants.get(reader.args[1])
            pointwise = weight is not None and all(size == 1 for size in weight.shape[2:])
            ungrouped = reader.target is LINEAR or argument(reader, "groups") == 1
            return reader if pointwise and ungrouped and reader.args[1] in captured.parameters else None
        if packet(reader) not in REARRANGING and reader.target not in ACTIVATIONS:
            return None


def _columns_of_heads(captured: Captured, node: fx.Node, reader: fx.Node) -> tuple[tuple[int, ...], ...] | None:
    """Which input columns of the projection each head fills, found by sending head numbers through the views.

    Right for any layout; None if a column does not belong to one head.
    """
    shape = Probe.shape(captured, node)
    probe = Probe(captured, {node: torch.arange(shape[1]).view(1, -1, 1, 1).expand(shape)})
    path, current = [], node
    while current is not reader:
        current = next(iter(current.users))
        path.append(current)

    for step in path[:-1]:
        if step.target in ACTIVATIONS:  # keeps a head's zeros where they are
            probe.values[step] = probe.values[step.args[0]]
        else:
            probe.run(step)
    columns = probe.values[reader.args[0]].movedim(-1 if reader.target is LINEAR else 1, -1).flatten(0, -2)
    if not bool((columns == columns[0]).all()):
        return None
    return tuple(tuple(torch.nonzero(columns[0] == head).flatten().tolist()) for head in range(shape[1]))
