"""What becomes of labels in each operator of a captured graph."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..lrp.fold import CONVOLUTIONS, LINEAR, VIEWS
from ..lrp.graph import ATEN, argument, module_of, packet
from ..lrp.probe import size_of
from ..lrp.rules import ACTIVATIONS
from .labels import KEPT, NOBODY, AttentionUse, Labels, LayerUse, compact, varies

SAME = {
    "contiguous", "clone", "to", "_to_copy", "type_as", "neg", "abs", "square", "sqrt", "rsqrt", "exp", "reciprocal",
    "clamp", "clamp_min", "clamp_max", "pow", "tanh", "sigmoid", "hardsigmoid", "hardtanh", "relu6", "softplus",
}  # fmt: skip
ARITHMETIC = {"add", "sub", "mul", "div", "maximum", "minimum", "where", "addcmul", "rsub"}
REARRANGING = {
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "t", "squeeze", "unsqueeze",
    "expand", "expand_as", "select", "slice", "narrow", "getitem", "chunk", "split", "split_with_sizes", "unbind",
    "movedim", "cat", "stack", "roll", "flip", "repeat", "tile", "constant_pad_nd", "pad", "pixel_shuffle",
    "pixel_unshuffle", "view_as", "reshape_as",
}  # fmt: skip
BY_CHANNEL = {
    "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "adaptive_avg_pool1d", "avg_pool1d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa",
}  # fmt: skip
REDUCING = {"mean", "sum", "amax", "amin", "var", "std", "linalg_vector_norm", "norm", "prod", "logsumexp"}
PICKING = {"index", "index_select"}


def follow(labels: Labels, node: fx.Node) -> object:
    """The labels of what an operator yields; a size where it yields one."""
    value = node.meta.get("val")
    if value is not None and not isinstance(value, Tensor | list | tuple):
        return None
    name = packet(node)
    if node.target in CONVOLUTIONS or node.target is LINEAR:
        return layer(labels, node)
    if name in SAME or node.target in ACTIVATIONS and name != "prelu":
        return labels.values[node.args[0]]
    if name in ARITHMETIC:
        return together(labels, labels.shape(node), tensors_of(labels, node))
    if name in REARRANGING:
        return rearranged(labels, node)
    if name in BY_CHANNEL:
        dim = 1 if len(labels.shape(node)) == labels.values[node.args[0]].dim() else -1
        return labels.spread(labels.channels(labels.values[node.args[0]], dim), node, dim)
    if name in REDUCING:
        return reduced(labels, node)
    if name in PICKING:
        return picked(labels, node)
    if name == "batch_norm":
        return batch_norm(labels, node)
    if name in ("layer_norm", "rms_norm"):
        return normalised(labels, node)
    if name in ("softmax", "_softmax", "log_softmax", "_log_softmax"):
        source = labels.values[node.args[0]]
        labels.join_along(source, [argument(node, "dim")])
        return source
    if name == "scaled_dot_product_attention":
        return attention(labels, node)
    if name in ("matmul", "bmm"):
        return product(labels, node)
    return kept(labels, node)


def tensors_of(labels: Labels, node: fx.Node) -> list[Tensor]:
    found = [labels.values.get(n) for n in node.all_input_nodes]
    return [one for one in found if isinstance(one, Tensor)]


def kept(labels: Labels, node: fx.Node) -> object:
    """An operator that is not known: nothing that it reads or makes can be removed."""
    for source in node.all_input_nodes:
        labels.keep(labels.values.get(source))

    def full(value: object) -> object:
        if isinstance(value, list | tuple):
            return [full(one) for one in value]
        if not isinstance(value, Tensor):
            return None
        return torch.tensor(KEPT).expand([size_of(size, labels.captured) for size in value.shape])

    return full(node.meta["val"])


def together(labels: Labels, shape: list[int], operands: list[Tensor]) -> Tensor:
    """An operator that works entry by entry joins what stands at the same place.

    What is spread along channels has a say in all of them and stays; so do channels that meet a constant of their
    number that has no name, as nobody could cut it.
    """
    operands = [one[(None,) * (len(shape) - one.dim())] for one in operands]
    result = torch.tensor(NOBODY).expand(shape)
    for one in sorted(operands, key=lambda one: compact(one).numel()):  # what is joined is alike: the smallest will do
        for dim, size in enumerate(shape):
            if size == 1 or not any(other is not one and varies(other, dim) for other in operands):
                continue
            if one.shape[dim] == 1:
                labels.keep(one)
                one = torch.full_like(one, NOBODY)
            elif not varies(one, dim) and bool((compact(one) == NOBODY).all()):
                labels.keep(*(other for other in operands if varies(other, dim)))
        labels.join(result, one)
        wide, other = torch.broadcast_tensors(compact(result), compact(one))
        result = torch.where(wide == NOBODY, other, wide).expand(shape) if bool((wide == NOBODY).any()) else result
    return result


def rearranged(labels: Labels, node: fx.Node) -> object:
    """A view, a copy in another order, or several put side by side: labels go where their entries go."""

    def value(one: fx.Node) -> object:
        found = labels.values.get(one)
        return size_of(one.meta["val"], labels.captured) if found is None else found

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    name = packet(node)
    if name in ("constant_pad_nd", "pad"):
        return ATEN.constant_pad_nd.default(args[0], args[1], NOBODY)
    # Their strides are not those of the values, which a view may rely on.
    return (ATEN.reshape.default if node.target in VIEWS else node.target)(*args, **kwargs)


def reduced(labels: Labels, node: fx.Node) -> Tensor:
    """A sum over channels needs all of them; one over positions leaves channels as they are."""
    source = labels.values[node.args[0]]
    dims = argument(node, "dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(source.dim()))
    left = labels.join_along(source, dims)
    if not argument(node, "keepdim"):
        left = left.squeeze(tuple(dim % left.dim() for dim in dims))
    return left.expand(labels.shape(node))


def picked(labels: Labels, node: fx.Node) -> object:
    """Entries at places that do not depend on the images."""
    index = [n for n in node.all_input_nodes if n is not node.args[0]]
    if not all(n in labels.captured.constants for n in index):
        return kept(labels, node)
    values = {n: labels.captured.constants[n].cpu() for n in index} | {node.args[0]: labels.values[node.args[0]]}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    return node.target(*args, **kwargs)


def layer(labels: Labels, node: fx.Node) -> object:
    """A convolution or linear layer makes new channels of all its inputs; of one alone where it is channelwise."""
    source, weight, bias = labels.values[node.args[0]], node.args[1], argument(node, "bias")
    if weight not in labels.rows:
        return kept(labels, node)
    if node in labels.captured.constants:  # makes a table, as Swin V2's positions
        labels.keep(labels.rows[weight], labels.columns[weight])
        return kept(labels, node)
    dim = -1 if node.target is LINEAR else 1
    inputs, rows, columns = labels.channels(source, dim), labels.rows[weight], labels.columns[weight]
    groups = argument(node, "groups") if node.target in CONVOLUTIONS else 1
    if groups == 1:
        labels.join(inputs, columns)
    elif groups == len(inputs):
        labels.join(inputs.repeat_interleave(len(rows) // groups), rows)
    if isinstance(bias, fx.Node):
        labels.join(labels.values[bias], rows)
    labels.layers.append(LayerUse(node, weight, inputs, rows, groups))
    return labels.spread(rows, node, dim)


def batch_norm(labels: Labels, node: fx.Node) -> Tensor:
    source = labels.values[node.args[0]]
    channels = labels.channels(source, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        of = argument(node, name)
        if isinstance(of, fx.Node):
            labels.join(labels.values[of], channels)
    return labels.spread(channels, node, 1)


def normalised(labels: Labels, node: fx.Node) -> Tensor:
    """What is normalised together stays together: without one of them the others would be scaled otherwise."""
    source = labels.values[node.args[0]]
    count = len(argument(node, "normalized_shape"))
    labels.join_along(source, list(range(source.dim() - count, source.dim())))
    for name in ("weight", "bias"):
        of = argument(node, name)
        if isinstance(of, fx.Node):
            labels.join(labels.values[of], source)
    return source


def attention(labels: Labels, node: fx.Node) -> object:
    """Each head of queries, keys and values is one class."""
    query, key, value = (labels.values[n] for n in node.args[:3])
    if query.dim() != 4 or len({t.shape[1] for t in (query, key, value)}) != 1:
        return kept(labels, node)
    heads = by_batch([query, key, value], labels, 3)
    mask = argument(node, "attn_mask")
    if isinstance(mask, fx.Node):
        shape = [*query.shape[:-1], key.shape[-2]]
        together(labels, shape, [heads.expand(shape), labels.values[mask]])
    labels.attentions.append(AttentionUse(node, module_of(node), heads.flatten()))
    return heads.expand(labels.shape(node))


def by_batch(operands: list[Tensor], labels: Labels, dims: int) -> Tensor:
    """Join all that belongs to the same place in the last but `dims` dimension; the labels of these places."""
    firsts = []
    for one in operands:
        outer = [dim for dim in range(one.dim()) if dim != one.dim() - dims]
        firsts.append(labels.join_along(one, outer))
    for one in firsts[1:]:
        labels.join(firsts[0], one)
    return firsts[0]


def product(labels: Labels, node: fx.Node) -> object:
    """A product of matrices joins all that it brings together; with heads, one class for each."""
    one, other = (labels.values[n] for n in node.args[:2])
    if one.dim() != other.dim() or one.dim() not in (3, 4) or one.shape[-3] != other.shape[-3]:
        return kept(labels, node)
    heads = by_batch([one, other], labels, 3)
    if one.dim() == 4:
        labels.attentions.append(AttentionUse(node, module_of(node), heads.flatten()))
    return heads.expand(labels.shape(node))
