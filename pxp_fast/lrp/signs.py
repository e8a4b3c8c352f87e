"""Which values of a captured graph are never negative: z-plus, gamma and alpha-beta need half as much there."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping

from torch import Tensor, fx

from .graph import argument, packet

ALWAYS = {
    "relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "_softmax", "abs", "square", "exp", "sqrt", "rsqrt",
    "softplus", "linalg_vector_norm", "norm", "var", "std",
}  # fmt: skip
# Each entry of the result is an entry of the input, an average or a sum of such, or has the sign of one.
AS_INPUTS = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "amax", "amin", "avg_pool1d", "avg_pool2d", "avg_pool3d", "cat", "chunk", "clone", "contiguous", "dropout",
    "expand", "expand_as", "feature_dropout", "flatten", "flip", "gather", "getitem", "im2col", "index",
    "index_select", "max_pool1d", "max_pool2d", "max_pool3d", "mean", "movedim", "narrow",
    "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "repeat_interleave", "reshape", "reshape_as", "roll",
    "select", "slice", "split", "split_with_sizes", "squeeze", "stack", "sum", "t", "tile", "to", "transpose",
    "type_as", "unbind", "unflatten", "unfold", "unsafe_split", "unsqueeze", "upsample_bilinear2d",
    "upsample_nearest2d", "view", "view_as", "_to_copy", "_unsafe_view", "hardswish", "silu", "gelu", "leaky_relu",
    "elu", "mish", "tanh",
}  # fmt: skip
# Of two operands, or an operand and a number: neither may be negative, or for the others one of them may.
OF_BOTH = {"add", "mul", "div", "minimum"}
OF_EITHER = {"maximum", "clamp_min"}


def nonnegative(nodes: Iterable[fx.Node], constants: Mapping[fx.Node, object]) -> set[fx.Node]:
    """The nodes whose values hold no negative entry, whatever the images.

    Parameters
    ----------
    nodes
        In execution order.
    constants
        Values of the nodes that do not depend on the images.
    """
    found: set[fx.Node] = set()

    def holds(value: object) -> bool:
        """Whether an operand has no negative entry."""
        if isinstance(value, (list, tuple)):
            return all(map(holds, value))
        if isinstance(value, fx.Node) and value in constants:
            value = constants[value]
            if isinstance(value, Tensor):
                return value.numel() == 0 or bool((value >= 0).all())
        if isinstance(value, fx.Node):
            return value in found
        return isinstance(value, (int, float)) and value >= 0

    for node in nodes:
        if _never_negative(node, holds):
            found.add(node)
    return found


def _never_negative(node: fx.Node, holds) -> bool:
    name = packet(node)
    if name in ALWAYS:
        return True
    if name == "pow":
        return holds(node.args[0]) or node.args[1] in (2, 4)
    if name == "hardtanh":
        return holds(argument(node, "min_val"))
    if name == "clamp":
        low, high = argument(node, "min"), argument(node, "max")
        return (holds(low) or holds(node.args[0])) and (high is None or holds(high))
    if name in OF_BOTH:
        scale = argument(node, "alpha", 1) if name == "add" else 1
        return holds(scale) and all(map(holds, node.args[:2]))
    if name in OF_EITHER:
        return any(map(holds, node.args[:2]))
    if name in ("constant_pad_nd", "pad", "masked_fill"):
        value = argument(node, "value")
        return holds(node.args[0]) and (value is None or holds(value))
    if name == "where":
        return all(map(holds, node.args[1:3]))
    if node.target is operator.getitem or name in AS_INPUTS:
        return holds(node.args[0])
    return False
