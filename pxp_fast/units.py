"""What can be removed from a network, and which parameters go with it.

Units are found on the captured graph, so any classifier has them without a table of names: the filters of every
convolution, the neurons of every MLP, the heads of every attention. A unit is removed as a mask by zeroing entries of
parameters, which for heads means the columns of the projection that reads them: the same numbers as zeroing the head's
attention matrix after the softmax, and nothing in the model need be patched.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, fx

from .errors import CaptureError
from .lrp.capture import ATEN, Captured, argument, module_of, same_size
from .lrp.dispatch import packet
from .lrp.fold import CONVOLUTIONS, LINEAR, VIEWS
from .lrp.rules import ACTIVATIONS

KINDS = ("filter", "neuron", "head")
GATES = {"sigmoid", "hardsigmoid", "softplus"}
POOLING = {"adaptive_avg_pool2d", "avg_pool2d", "mean", "max_pool2d", "adaptive_max_pool2d", "amax"}
# What may stand between the classifier and the logits.
KEEPING_CLASSES = {
    "softmax", "log_softmax", "mul", "div", "add", "sub", "neg", "batch_norm", "stack", "cat", "getitem", "expand",
}  # fmt: skip
# What keeps or merely rearranges values on the way from an attention to the layer that reads its heads.
REARRANGING = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous", "clone", "squeeze", "unsqueeze",
    "_unsafe_view", "movedim", "select", "slice",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ParameterSlice:
    """Entries of one parameter that belong to units: unit ``u`` owns ``u * block ... (u + 1) * block - 1`` of `dim`.

    Attributes
    ----------
    parameter
        Name in the model's ``state_dict``.
    dim
        Dimension that the units lie along.
    block
        Entries per unit.
    index
        Where a unit's entries are not one block, the entries of each unit.
    role
        ``"layer"``: the layer's own weight or bias. ``"norm"``: those of the normalisation that follows it.
    """

    parameter: str
    dim: int
    block: int = 1
    index: tuple[tuple[int, ...], ...] | None = None
    role: str = "layer"

    def keep(self, kept: Tensor) -> Tensor:
        """Which entries along `dim` stay, as a bool tensor, given which units stay (bool ``[count]``)."""
        if self.index is None:
            return kept.repeat_interleave(self.block)
        entries = torch.ones(sum(map(len, self.index)), dtype=torch.bool)
        for unit, own in enumerate(self.index):
            entries[list(own)] = bool(kept[unit])
        return entries


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """The units of one layer.

    Attributes
    ----------
    name
        The user's module, such as ``layer1.0.conv1``, ``blocks.3.mlp.fc1``, ``blocks.3.attn``.
    kind
        ``"filter"``, ``"neuron"`` or ``"head"``.
    count
        How many units.
    slices
        The parameters that masking zeroes.
    """

    name: str
    kind: str
    count: int
    slices: tuple[ParameterSlice, ...]


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
    classifiers = _classifiers(captured)
    heads = [site for node in captured.nodes() if (site := _heads(captured, node)) is not None]
    by_node = {site.node: site for site in heads} if "head" in wanted else {}
    for node in captured.nodes():
        if node in classifiers:
            continue
        if node.target in CONVOLUTIONS and "filter" in wanted and not (heads and _embeds_patches(captured, node)):
            by_node[node] = _weighted(captured, node, "filter")
        elif node.target is LINEAR and "neuron" in wanted and _is_neuron_layer(captured, node):
            by_node[node] = _weighted(captured, node, "neuron")
    sites = [by_node[node] for node in captured.nodes() if by_node.get(node) is not None]
    _check_samples_outermost(captured, sites)
    return sites


def _weighted(captured: Captured, node: fx.Node, kind: str) -> Site | None:
    weight, bias = node.args[1], argument(node, "bias")
    if weight not in captured.parameters:
        return None  # computed weights cannot be masked as one parameter
    name = captured.parameters[weight]
    slices = [ParameterSlice(name, 0)]
    if bias in captured.parameters:
        slices.append(ParameterSlice(captured.parameters[bias], 0))
    norm = next(iter(node.users)) if len(node.users) == 1 else None
    by_channel = node.target in CONVOLUTIONS or node.meta["val"].dim() == 2
    if norm is not None and norm.target is ATEN.batch_norm.default and by_channel:
        affine = (argument(norm, "weight"), argument(norm, "bias"))
        own = [p for p in affine if p in captured.parameters and len(p.users) == 1]  # not another layer's as well
        slices += [ParameterSlice(captured.parameters[p], 0, role="norm") for p in own]
    group = UnitGroup(name.rpartition(".")[0] or name, kind, captured.constants[weight].shape[0], tuple(slices))
    return Site(group, node, _batch_dim(captured, node))


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


def _classifiers(captured: Captured) -> set[fx.Node]:
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


def _heads(captured: Captured, node: fx.Node) -> Site | None:
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
    group = UnitGroup(module_of(node), "head", int(shape[1]), (piece,))
    return Site(group, node, 0, scale=0.5)


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
