"""Rewrites of a captured graph that leave its function alone and make relevance cheaper or well defined."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .graph import ATEN, Captured, argument, same_size

CONVOLUTIONS = {
    getattr(packet, name) for packet in (ATEN.conv1d, ATEN.conv2d, ATEN.conv3d) for name in ("default", "padding")
}
LINEAR = ATEN.linear.default
WEIGHTED = CONVOLUTIONS | {LINEAR}
VIEWS = {ATEN.view.default, ATEN.reshape.default, ATEN._unsafe_view.default}
CASTS = {ATEN.to.dtype, ATEN.to.device, ATEN.to.dtype_layout, ATEN._to_copy.default}
RESHAPES = VIEWS | {ATEN.flatten.using_ints, ATEN.unflatten.int}


@torch.no_grad()
def fold_batch_norm(captured: Captured) -> None:
    """Merge every batch norm that alone reads a convolution or linear layer into that layer's weight and bias.

    The layer's node then computes the normalised output, and relevance is read there. Folding is exact:
    ``w' = w * gamma / sqrt(var + eps)``, ``b' = (b - mean) * gamma / sqrt(var + eps) + beta``, left in float64 for
    the program to round once.
    """
    graph, constants = captured.graph, captured.constants
    for node in list(captured.nodes()):
        if node.target is not ATEN.batch_norm.default:
            continue
        layer = node.args[0]
        if argument(node, "training") or argument(node, "running_mean") is None:
            continue
        if layer.target not in WEIGHTED or len(layer.users) > 1 or layer.args[1] not in constants:
            continue
        if layer.target is LINEAR and layer.meta["val"].dim() != 2:
            continue  # batch norm reads dimension 1, a linear layer's features are the last
        scale, shift = batch_norm_affine(captured, node)
        weight, bias = constants[layer.args[1]], argument(layer, "bias")
        merged = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
        offset = constants[bias].double() * scale + shift if bias is not None else shift
        with graph.inserting_before(layer):
            new_weight, new_bias = (graph.placeholder(f"{layer.name}_{part}_folded") for part in ("weight", "bias"))
        constants[new_weight], constants[new_bias] = merged, offset
        layer.args = (layer.args[0], new_weight, new_bias, *layer.args[3:])
        layer.kwargs = {k: v for k, v in layer.kwargs.items() if k not in ("weight", "bias")}
        replace(captured, node, layer)


def batch_norm_affine(captured: Captured, node: fx.Node) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as ``y = scale * x + shift`` per channel, in float64."""
    constants = captured.constants
    mean, variance = (constants[argument(node, k)].double() for k in ("running_mean", "running_var"))
    weight, bias = argument(node, "weight"), argument(node, "bias")
    scale = (variance + argument(node, "eps")).rsqrt()
    if weight is not None:
        scale = scale * constants[weight].double()
    shift = -mean * scale
    return scale, shift + constants[bias].double() if bias is not None else shift


def hoist_reshapes(captured: Captured) -> None:
    """Let linear layers see tokens as a dimension: ``view(linear(view(x)))`` becomes ``linear(reshape(x))``.

    Attention modules that flatten tokens into the batch (``nn.MultiheadAttention``) do so only around a linear layer,
    which acts on the last dimension alone. Without the detour the class-token cut can follow the tokens through.
    """
    for node in list(captured.nodes()):
        if node.target is not LINEAR or len(node.users) > 1:
            continue
        before, after = node.args[0], next(iter(node.users), None)
        if after is None or before.target not in RESHAPES or after.target not in VIEWS or len(before.users) > 1:
            continue
        if any(isinstance(size, fx.Node) and not size < node for size in after.args[1]):
            continue
        shape, features = captured.shape(after), captured.shape(node.args[0])[-1]
        if captured.shape(node)[-1] != shape[-1] or len(captured.shape(node)) != 2:
            continue
        source = captured.shape(before.args[0])
        if len(source) < len(shape) or not all(map(same_size, source[: len(shape) - 1], shape[:-1])):
            continue
        value = before.meta["val"].new_empty((*shape[:-1], features))
        # Reads the same elements in the same order, so the sizes that `after` was given serve here too.
        sizes = [*after.args[1][:-1], features]
        with captured.graph.inserting_before(node):
            tokens = captured.graph.call_function(ATEN.reshape.default, (before.args[0], sizes))
        tokens.meta = {**before.meta, "val": value}
        node.replace_input_with(before, tokens)
        node.meta["val"] = after.meta["val"]
        replace(captured, after, node)
        captured.graph.erase_node(before)


def replace(captured: Captured, node: fx.Node, by: fx.Node) -> None:
    """Let every reader of `node` read `by`, and remove it."""
    node.replace_all_uses_with(by)
    if node is captured.logits:
        captured.logits = by
    captured.graph.erase_node(node)


def prepare_for_dtype(captured: Captured, dtype: torch.dtype, device: torch.device) -> None:
    """Let the graph run in another dtype, on another device, and on channels-last tensors.

    Casts between floating dtypes go (they kept parts of the model in float32; the program has one dtype), tensors made
    from the batch size are made where and as the rest is, and views become reshapes, which any strides allow.
    """

    def retarget(argument: object) -> object:
        if isinstance(argument, torch.device):
            return device
        return dtype if isinstance(argument, torch.dtype) and argument.is_floating_point else argument

    for node in list(captured.nodes()):
        if node.target in VIEWS:
            node.target = ATEN.reshape.default
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), retarget)
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if node.target in CASTS and source.meta["val"].is_floating_point() and node.meta["val"].is_floating_point():
            replace(captured, node, source)
