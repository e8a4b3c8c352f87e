"""Attention heads on the captured graph, and the columns of the projection that each of them fills."""

from __future__ import annotations

import math

import torch
from torch import fx

from .lrp.fold import CONVOLUTIONS, LINEAR, VIEWS
from .lrp.graph import ATEN, Captured, argument, module_of, packet
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
    shape = [int(size) if isinstance(size, int) else None for size in captured.shape(node)]
    samples = 2
    leading = captured.shape(node)[0]
    probe_batch = samples * _multiple(leading, captured.batch)
    labels = torch.arange(shape[1]).view(1, -1, 1, 1).expand(probe_batch, shape[1], *shape[2:])
    env: dict[fx.Node, object] = {node: labels}
    path, current = [], node
    while current is not reader:
        current = next(iter(current.users))
        path.append(current)

    def value(n: fx.Node) -> object:
        if n not in env:
            env[n] = _size_value(n, captured, samples)
        return env[n]

    for step in path[:-1]:
        if step.target in ACTIVATIONS:  # keeps a head's zeros where they are
            env[step] = env[step.args[0]]
            continue
        args, kwargs = fx.node.map_arg((step.args, step.kwargs), value)
        # The labels' strides are not those of the attention's output, which a view may rely on.
        env[step] = (ATEN.reshape.default if step.target in VIEWS else step.target)(*args, **kwargs)
    columns = env[reader.args[0]].movedim(-1 if reader.target is LINEAR else 1, -1).flatten(0, -2)
    if not bool((columns == columns[0]).all()):
        return None
    return tuple(tuple(torch.nonzero(columns[0] == head).flatten().tolist()) for head in range(shape[1]))


def _multiple(size: int | torch.SymInt, batch: torch.SymInt) -> int:
    """k, where `size` is k times the batch size."""
    return math.ceil(_hint(size) / _hint(batch))


def _hint(size: int | torch.SymInt) -> int:
    return size.node.hint if isinstance(size, torch.SymInt) else size


def _size_value(node: fx.Node, captured: Captured, samples: int) -> object:
    """A shape computation of the graph for a batch of `samples`."""
    if node in captured.constants:
        return captured.constants[node]
    size = node.meta["val"]
    return size if isinstance(size, int) else samples * _multiple(size, captured.batch)
