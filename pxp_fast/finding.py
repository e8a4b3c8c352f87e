"""The units of a network, found on its captured graph.

Any classifier has them without a table of names: the filters of every convolution, the neurons of every MLP, the heads
of every attention. A unit is removed as a mask by zeroing entries of parameters, which for heads means the columns of
the projection that reads them: the same numbers as zeroing the head's attention matrix after the softmax, and nothing
in the model need be patched.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import fx

from .errors import CaptureError
from .heads import REARRANGING, heads_of
from .lrp.fold import CONVOLUTIONS, LINEAR
from .lrp.graph import ATEN, Captured, argument, module_of, packet, same_size
from .lrp.rules import ACTIVATIONS
from .units import KINDS, ParameterSlice, UnitGroup

ATTENTION = {"scaled_dot_product_attention", "softmax", "_softmax"}
GATES = {"sigmoid", "hardsigmoid", "softplus"}
POOLING = {"adaptive_avg_pool2d", "avg_pool2d", "mean", "max_pool2d", "adaptive_max_pool2d", "amax"}
# What may stand between the classifier and the logits.
KEEPING_CLASSES = {
    "softmax", "log_softmax", "mul", "div", "add", "sub", "neg", "batch_norm", "stack", "cat", "getitem", "expand",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Site:
    """Where a group's relevance is read: a node of the graph and the dimension of its output that holds samples."""

    group: UnitGroup
    node: fx.Node
    batch_dim: int
    scale: float = 1.0


def find_units(captured: Captured, kinds: tuple[str, ...] | None = None) -> list[Site]:
    """The prunable units of a captured classifier, in execution order.

    - *filters*: the outputs of every convolution, except a patch embedding (a convolution whose stride is its kernel,
      reading the image of a network with attention): its outputs are the tokens themselves.
    - *neurons*: the outputs of linear layers that feed an activation, and of those that are fed by one; not the
      classifier, and not the projections of attention.
    - *heads*: of attention, fused or written out as softmax and product. Heads that are mixed before the projection
      cannot be told apart and are not units.

    Parameters
    ----------
    captured
        Before any folding.
    kinds
        Of the units wanted; None: all of :data:`KINDS`.

    Raises
    ------
    CaptureError
        A unit layer's output does not hold the samples in a dimension of its own.
    """
    wanted = KINDS if kinds is None else kinds
    last = classifiers(captured)
    heads = {node: group for node in captured.nodes() if (group := heads_of(captured, node)) is not None}
    attends = any(packet(node) in ATTENTION for node in captured.nodes())
    by_node: dict[fx.Node, Site | None] = {}
    if "head" in wanted:
        by_node = {node: Site(group, node, 0, scale=0.5) for node, group in heads.items()}
    for node in captured.nodes():
        if node in last:
            continue
        if node.target in CONVOLUTIONS and "filter" in wanted and not (attends and _embeds_patches(captured, node)):
            by_node[node] = _weighted(captured, node, "filter")
        elif node.target is LINEAR and "neuron" in wanted and _is_neuron_layer(captured, node):
            by_node[node] = _weighted(captured, node, "neuron")
    lost = [module_of(node) for node, site in by_node.items() if site is None]
    if lost:
        warnings.warn(
            f"{len(lost)} layers compute their weights and are not units: {', '.join(lost[:4])} ...", stacklevel=3
        )
    sites = [by_node[node] for node in captured.nodes() if by_node.get(node) is not None]
    _check_samples_outermost(captured, sites)
    return sites


def _weighted(captured: Captured, node: fx.Node, kind: str) -> Site | None:
    weight, bias = node.args[1], argument(node, "bias")
    name = captured.parameters.get(weight) or _row_parameter(captured, weight)
    if name is None:
        return None
    slices = [ParameterSlice(name, 0)]
    if bias in captured.parameters:
        slices.append(ParameterSlice(captured.parameters[bias], 0))
    norm = next(iter(node.users)) if len(node.users) == 1 else None
    by_channel = node.target in CONVOLUTIONS or node.meta["val"].dim() == 2
    if norm is not None and norm.target is ATEN.batch_norm.default and by_channel:
        affine = (argument(norm, "weight"), argument(norm, "bias"))
        own = [p for p in affine if p in captured.parameters and len(p.users) == 1]  # not another layer's as well
        slices += [ParameterSlice(captured.parameters[p], 0, role="norm") for p in own]
    layer = name.rpartition(".")[0] if weight in captured.parameters else module_of(node)
    group = UnitGroup(layer or name, kind, captured.constants[weight].shape[0], tuple(slices))
    return Site(group, node, _batch_dim(captured, node))


def _row_parameter(captured: Captured, weight: fx.Node) -> str | None:
    """The parameter whose rows are those of a computed weight (standardised, normalised, pruned), found by trying.

    Zeroing its first row must zero the weight's first row and leave all others as they are.
    """
    if weight not in captured.constants:
        return None
    path, pending = [], [weight]
    while pending:
        node = pending.pop()
        if node not in path:
            path.append(node)
            pending += node.all_input_nodes
    path.sort()
    value = captured.constants[weight]
    for source in (n for n in path if n in captured.parameters):
        if captured.constants[source].dim() == 0 or len(captured.constants[source]) != len(value):
            continue
        env = {n: captured.constants[n] for n in path if n.op == "placeholder"}
        env[source] = env[source].detach().clone()
        env[source][0] = 0
        with torch.no_grad():
            for node in (n for n in path if n.op == "call_function"):
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
                env[node] = node.target(*args, **kwargs)
        if not bool(env[weight][0].any()) and torch.equal(env[weight][1:], value[1:]):
            return captured.parameters[source]
    return None


def _batch_dim(captured: Captured, node: fx.Node) -> int:
    """The dimension of the node's output whose size is the batch, or a multiple of it with samples outermost."""
    shape = captured.shape(node)
    symbolic = [dim for dim, size in enumerate(shape) if not isinstance(size, int)]
    whole = [dim for dim in symbolic if same_size(shape[dim], captured.batch)]
    if whole:
        return whole[0]
    if symbolic[:1] == [0]:
        return 0
    raise CaptureError(
        f"{module_of(node)} yields {list(shape)}, where no dimension holds the images; "
        "it mixes samples, and per-sample relevance is not defined"
    )


def _check_samples_outermost(captured: Captured, sites: list[Site]) -> None:
    """Refuse folded batch dimensions whose rows are not grouped by sample: changing one image must not reach others.

    Windows, tokens or frames may be folded into the batch with the samples outermost or innermost; only running the
    graph tells.
    """
    folded = [s for s in sites if s.batch_dim == 0 and not same_size(captured.shape(s.node)[0], captured.batch)]
    if not folded:
        return
    like = captured.images.meta["val"]
    random = torch.Generator().manual_seed(0)
    device = next(iter(captured.constants.values())).device
    first, second, other = (torch.randn(1, *like.shape[1:], generator=random).to(device, like.dtype) for _ in range(3))
    nodes = {site.node for site in folded}
    before, after = (captured.values(torch.cat((first, last)), nodes) for last in (second, other))
    for site in folded:
        half = len(before[site.node]) // 2
        if not torch.equal(before[site.node][:half], after[site.node][:half]):
            raise CaptureError(
                f"{site.group.name} folds {list(captured.shape(site.node))[0]} rows into the batch with images side by "
                "side, so relevance per image is not defined; fold with the images outermost, as flatten(0, 1) does"
            )


def _embeds_patches(captured: Captured, node: fx.Node) -> bool:
    kernel = list(captured.constants[node.args[1]].shape[2:])
    stride = argument(node, "stride")
    stride = [stride] * len(kernel) if isinstance(stride, int) else list(stride)
    return node.args[0] is captured.images and max(kernel) > 1 and stride * (len(kernel) // len(stride)) == kernel


def classifiers(captured: Captured) -> set[fx.Node]:
    """The layers whose outputs are the classes: met first on the way up from the logits, through what keeps classes."""
    found, seen, pending = set(), set(), [captured.logits]
    while pending:
        node = pending.pop()
        if node in seen or node in captured.constants or node.op != "call_function":
            continue
        seen.add(node)
        if node.target is LINEAR or node.target in CONVOLUTIONS:
            found.add(node)
        elif packet(node) in REARRANGING | POOLING | KEEPING_CLASSES or node.target in ACTIVATIONS:
            pending += node.all_input_nodes
    return found


def _is_neuron_layer(captured: Captured, node: fx.Node) -> bool:
    return _reads_activation(node.args[0]) or any(_is_activation(user) for user in _readers(node))


def _is_activation(node: fx.Node) -> bool:
    return node.target in ACTIVATIONS or packet(node) in GATES


def _reads_activation(node: fx.Node) -> bool:
    """Whether the value is an activation's output, possibly rearranged, gated, or normalised on the way."""
    while packet(node) in REARRANGING | {"layer_norm"} and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    if packet(node) == "mul":
        return any(isinstance(n, fx.Node) and _is_activation(n) for n in node.args)
    return _is_activation(node)


def _readers(node: fx.Node) -> list[fx.Node]:
    """Who reads the value, looking through rearrangements."""
    found = []
    for user in node.users:
        found += _readers(user) if packet(user) in REARRANGING | {"chunk", "split", "getitem"} else [user]
    return found
