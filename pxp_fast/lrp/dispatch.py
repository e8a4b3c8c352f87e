"""Which rule an operator of the captured graph gets."""

from __future__ import annotations

import collections
import dataclasses
import functools
import operator
from collections.abc import Mapping, Set

import torch
from torch import Tensor, fx

from ..errors import CaptureError
from .attention import Attention, MatrixProduct
from .fold import LINEAR, WEIGHTED
from .fused import FusedConvolution, FusedLinear, Policy
from .graph import ATEN, argument, module_of, packet, same_size
from .layers import Convolution, Linear, Weighted
from .norms import GroupNorm, LayerNorm, RootMeanSquareNorm
from .onednn import OneLinear, PackedConvolution, packs
from .pools import MaxPool, pools
from .registry import Rule
from .relevance import RELAYING, Passed, Relayed, RelayedActivation
from .ruled import Ruled
from .rules import (
    ACTIVATIONS,
    Activation,
    Affine,
    ElementwiseProduct,
    Item,
    Operator,
    Sum,
    Taped,
    fused_activation,
)
from .softmax import Softmax
from .weighted_rules import Block, Epsilon, EpsilonRule, Pass

EPSILON = Epsilon()

# By overload packet, so that every overload of an operator is met.
AFFINE = {
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "mean", "sum", "batch_norm", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
}  # fmt: skip
MATRIX_PRODUCTS = {"matmul", "bmm", "mm", "einsum"}
# Linear in what carries relevance, or with the ordinary gradient as their rule (max pools, softmax, gates).
ORDINARY = {
    "_softmax", "_unsafe_view", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax", "cat", "chunk", "clone",
    "constant_pad_nd", "contiguous", "div", "expand", "flatten", "flip", "gather", "grid_sampler",
    "hardsigmoid", "im2col", "index", "index_select", "log_softmax", "masked_fill", "max_pool1d", "max_pool2d",
    "max_pool3d", "movedim", "mul", "narrow", "neg", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat",
    "repeat_interleave", "reshape", "roll", "select", "sigmoid", "slice", "softmax", "split", "split_with_sizes",
    "squeeze", "stack", "t", "tile", "to", "transpose", "unbind", "unflatten", "unfold", "unsafe_split", "unsqueeze",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_nearest2d", "view", "where", "_to_copy",
}  # fmt: skip
# Only the shape or dtype of the second argument matters.
SHAPED_LIKE = {"expand_as", "reshape_as", "type_as", "view_as"}
# Statistics that normalise: held constant, as layer norm's deviation is.
HELD = {"rsqrt", "sqrt", "var", "std", "var_mean", "std_mean", "linalg_vector_norm", "norm", "reciprocal"}
# Only the first argument receives relevance: the rest are parameters, or a denominator, which is held constant.
FIRST_ONLY = {"div", "layer_norm", "group_norm", "rms_norm", "batch_norm"} | SHAPED_LIKE


def receivers(node: fx.Node, held: Set[fx.Node] = frozenset()) -> list[fx.Node]:
    """The inputs that an operator hands relevance to, if they want it.

    The softmaxes of `held` hand none on: of fused attention the values alone get any.
    """
    name = packet(node)
    if node in held:
        return [node.args[2]] if name == "scaled_dot_product_attention" else []
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    if name in HELD or not any(isinstance(v, Tensor) and v.is_floating_point() for v in values):
        return []
    inputs = node.all_input_nodes[:1] if name in FIRST_ONLY else node.all_input_nodes
    return [n for n in inputs if _is_float(n)]


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, (tuple, list)) else (value,)
    return any(isinstance(v, Tensor) and v.is_floating_point() for v in values)


@dataclasses.dataclass
class Scope:
    """What the choice of a rule depends on besides the node.

    Attributes
    ----------
    live
        Nodes that relevance must reach.
    carrying
        Nodes that would carry relevance if it were propagated down to the images: a product's factors share it
        between them, also where one of them lies below the first unit.
    constants
        Nodes that do not depend on the images.
    eps
        The stabilizer.
    policy
        Which products are fused with the pass of the layer below.
    onednn
        Take oneDNN's own operators for convolutions and linear layers.
    exact
        See :class:`pxp_fast.lrp.registry.Situation`.
    fallbacks
        Operators met that have no rule of their own, and how often.
    rules
        The rule of each convolution and linear layer, and of other operators that a composite names; epsilon where
        there is none.
    softmax
        The rule of attention's softmax.
    softmaxes
        The operators that hold a softmax of attention.
    nonnegative
        Nodes whose values hold no negative entry; see :func:`pxp_fast.lrp.signs.nonnegative`.
    spread
        Nodes that relevance may come to where their value is 0; see :func:`pxp_fast.lrp.relevance.spread`.
    """

    live: set[fx.Node]
    carrying: set[fx.Node]
    constants: Mapping[fx.Node, object]
    eps: float
    policy: Policy
    onednn: bool = False
    exact: bool = False
    fallbacks: dict[str, int] = dataclasses.field(default_factory=collections.Counter)
    rules: Mapping[fx.Node, Rule] = dataclasses.field(default_factory=dict)
    softmax: str = "epsilon"
    softmaxes: Set[fx.Node] = frozenset()
    nonnegative: Set[fx.Node] = frozenset()
    spread: Set[fx.Node] = frozenset()

    @property
    def held(self) -> Set[fx.Node]:
        """The softmaxes that no relevance passes."""
        return self.softmaxes if self.softmax == "cp" else frozenset()


def operator_for(node: fx.Node, scope: Scope) -> Operator:
    """The compiled form of one node of the graph."""
    eps, name = scope.eps, packet(node)
    if name == "batch_norm" and argument(node, "training"):
        raise CaptureError(f"{module_of(node)} normalises by batch statistics in eval mode; relevance needs fixed ones")
    if node.target in WEIGHTED and node.args[1] in scope.constants:
        return _weighted(node, scope)
    if node not in scope.live:
        return Operator(node, eps)
    reached = [n for n in receivers(node, scope.held) if n in scope.live]
    rule = scope.rules.get(node, EPSILON)
    if rule.follows(Block):
        return Operator(node, eps)
    if rule.follows(Pass):
        return _passed(node, scope)
    eps = rule.stabilizer_or(eps)
    if node.target is operator.getitem:
        return Item(node, eps)
    if name in ("add", "sub", "rsub"):
        activation = _sole_activation(node, scope)
        step = Sum(node, eps, activation if activation is not None and activation.target is ATEN.relu.default else None)
        constants = [scope.constants[n] for n in node.args[:2] if isinstance(n, fx.Node) and n in scope.constants]
        step.masks = any(bool(torch.isinf(value).any()) for value in constants)
        return step
    if node.target in ACTIVATIONS:
        return (RelayedActivation if node in scope.spread else Activation)(node, eps)
    if name == "scaled_dot_product_attention":
        carrying = tuple(source in scope.carrying for source in node.args[:3])
        return Attention(node, eps, reached, carrying, scope.softmax)
    if node in scope.softmaxes and scope.softmax.startswith("z-plus"):
        return Softmax(node, eps, virtual_bias=scope.softmax == "z-plus-bias")
    if name in ("layer_norm", "group_norm", "rms_norm"):
        norms = {"layer_norm": LayerNorm, "group_norm": GroupNorm, "rms_norm": RootMeanSquareNorm}
        return norms[name](node, eps)
    if name == "max_pool2d" and node not in scope.spread and pools(node):
        return MaxPool(node, eps, reached)
    if name in AFFINE:
        return Affine(node, eps, reached)
    if name in MATRIX_PRODUCTS:
        return MatrixProduct(node, eps, reached, _products(node, scope))
    if name == "mul" and _products(node, scope) > 1 or node.target in WEIGHTED:
        return ElementwiseProduct(node, eps, reached)
    if (
        name == "addcmul" and sum(n in scope.carrying for n in receivers(node)) == 1
    ):  # scale and shift: affine in what carries relevance
        return Affine(node, eps, reached)
    if node in scope.spread and name in RELAYING and len(reached) == 1:
        return Relayed(node, eps, reached)
    if name not in ORDINARY | SHAPED_LIKE:
        scope.fallbacks[str(node.target)] += 1
    return Taped(node, eps, reached)


def _passed(node: fx.Node, scope: Scope) -> Operator:
    """The pass rule, where the output has the shape of its one input."""
    inputs = [n for n in receivers(node) if n in scope.carrying]
    if len(inputs) != 1 or not _keeps_shape(node):
        raise CaptureError(
            f"rule pass on {module_of(node)}: relevance of {_shape(node)} cannot pass to "
            f"{' and '.join(map(_shape, inputs))}; choose another rule for this layer"
        )
    return Passed(node, scope.eps)


def _weighted(node: fx.Node, scope: Scope) -> Operator:
    """A convolution or linear layer by its rule."""
    rule = scope.rules.get(node, EPSILON)
    activation, live = _sole_activation(node, scope), node.args[0] in scope.live
    if node not in scope.spread and (not live or rule.follows(EpsilonRule)):
        return _kernel(node, scope, rule.stabilizer_or(scope.eps), activation, live)
    if rule.follows(Pass):
        _passed(node, scope)  # refuses what cannot be
    layer = _kernel(node, scope, scope.eps, activation, False)
    kernel = functools.partial(_kernel, node, scope, scope.eps, None)
    return Ruled(node, scope.eps, rule, layer, kernel, node.args[0] in scope.nonnegative, scope.exact)


def _kernel(node: fx.Node, scope: Scope, eps: float, activation: fx.Node | None, needs_input: bool) -> Weighted:
    """A convolution or linear layer in the way that suits the machine."""
    arguments = node, eps, activation, needs_input
    linear = node.target is LINEAR
    if scope.policy.anything:
        return (FusedLinear if linear else FusedConvolution)(*arguments, scope.policy)
    if linear:
        return (OneLinear if scope.onednn else Linear)(*arguments)
    return (PackedConvolution if scope.onednn and packs(node) else Convolution)(*arguments)


def _keeps_shape(node: fx.Node) -> bool:
    """Whether the output has the shape of the first input, whatever the batch size."""
    before, after = (n.meta["val"].shape for n in (node.args[0], node))
    return len(before) == len(after) and all(map(same_size, before, after))


def _shape(node: fx.Node) -> str:
    return f"[N, {', '.join(map(str, node.meta['val'].shape[1:]))}]"


def _products(node: fx.Node, scope: Scope) -> int:
    """How many factors carry relevance, at least one; a tensor times itself counts twice."""
    factors = node.args[1] if packet(node) == "einsum" else node.args[:2]
    return max(1, sum(isinstance(n, fx.Node) and n in scope.carrying for n in factors))


def _sole_activation(node: fx.Node, scope: Scope) -> fx.Node | None:
    """The activation that alone reads the node, if `ops.epsilon` can take it along.

    Where relevance comes to outputs that it made 0, its input is needed, which taking it along would write over.
    """
    if node in scope.spread:
        return None
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return user if user is not None and fused_activation(user) is not None else None
