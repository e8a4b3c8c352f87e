"""Which layers read what a plan removes, and what of them may be changed to make up for it."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn

from ..lrp.fold import CONVOLUTIONS, LINEAR, WEIGHTED
from ..lrp.graph import ATEN, Captured, argument, module_of
from .constancy import constants_of
from .labels import read_channels


@dataclasses.dataclass(frozen=True)
class Reader:
    """A layer that can make up for what it no longer gets.

    Attributes
    ----------
    node, name
        The operator and the module of its weight.
    weight
        The weight's name.
    bias
        The name of what a shift of the outputs is added to: a bias that the layer has or is given, or, subtracted, the
        running mean of the batch norm that follows.
    subtracted
        Whether it is such a running mean.
    groups
        Of a convolution.
    columns
        ``[groups, inputs per group]``, bool: channels whose weights may change.
    rows
        ``[O]``, bool: outputs that stay.
    constants
        The values of the input channels under the masks, NaN where they depend on the images.
    loses
        Whether it reads something that is removed: channels that are constant now, or weights that are masked.
    """

    node: fx.Node
    name: str
    weight: str
    bias: str
    subtracted: bool
    groups: int
    columns: Tensor
    rows: Tensor
    constants: Tensor
    loses: bool

    def without(self, source: Tensor) -> Tensor:
        """The layer's input of the unpruned network, but for the channels that are constant under the masks."""
        shape = [1] * source.dim()
        shape[-1 if self.node.target is LINEAR else 1] = -1
        constants = self.constants.view(shape)
        return torch.where(constants.isnan(), source, constants)


@dataclasses.dataclass(frozen=True)
class LeftAlone:
    """A layer that reads what was removed, but is not changed, and why."""

    name: str
    reason: str


def readers(model: nn.Module, whole: Captured, masked: Captured) -> Iterator[Reader | LeftAlone]:
    """The layers of a network whose inputs a plan's masks change, in execution order.

    Layers with a filter for each channel are not among them: what they read of a channel goes with that channel.
    """
    before, after = constants_of(whole).inputs, constants_of(masked).inputs
    uses = Counter(node for layer in whole.nodes() for node in layer.all_input_nodes)
    held = Counter(id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False))
    named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    changed = changed_values(whole, masked)
    for node in whole.nodes():
        if node.target not in WEIGHTED or node.args[1] not in whole.constants:
            continue
        weight = masked.constants[node.args[1]]
        groups = argument(node, "groups") if node.target in CONVOLUTIONS else 1
        if weight.shape[1] == 1 and groups > 1:
            continue
        used = read_channels(whole.constants[node.args[1]], groups), read_channels(weight, groups)
        lost = bool((used[0] & ~used[1]).any())
        if node.args[0] not in changed and not lost:
            continue
        rows = weight.flatten(1).any(1)
        constants = after[node].to(weight.device)
        if not bool(rows.any()) or not bool((used[1].flatten() & constants.isnan()).any()):
            continue  # a layer that always yields the same can be cut out, unless that is changed
        found = _adjustable(model, whole, node, uses, held, named)
        if isinstance(found, str):
            yield LeftAlone(module_of(node), found)
            continue
        name, bias, subtracted = found
        fixed = (before[node].to(weight.device).isnan() & ~constants.isnan()).view(groups, -1)
        columns = used[1] & (constants.view(groups, -1) != 0)
        loses = lost or bool((fixed & used[0]).any())
        owner = name.rpartition(".")[0]
        yield Reader(node, owner, name, bias, subtracted, groups, columns, rows, constants, loses)


def changed_values(whole: Captured, masked: Captured) -> set[fx.Node]:
    """The nodes whose values masks change."""
    changed: set[fx.Node] = set()
    for node in whole.graph.nodes:
        if node in whole.constants:
            one, other = whole.constants[node], masked.constants[node]
            if one is not other and not (isinstance(one, Tensor) and torch.equal(one, other)):
                changed.add(node)
        elif changed.intersection(node.all_input_nodes):
            changed.add(node)
    return changed


def _adjustable(
    model: nn.Module, captured: Captured, node: fx.Node, uses: Counter, held: Counter, named: dict[str, Tensor]
) -> tuple[str, str, bool] | str:
    """The names of a layer's weight and of what shifts its outputs, and whether that is a mean; or why not."""

    def own(one: object) -> bool:
        return one in captured.parameters and uses[one] == 1 and held[id(named[captured.parameters[one]])] == 1

    weight, bias = node.args[1], argument(node, "bias")
    if weight not in captured.parameters:
        return "its weight is computed"
    if not own(weight):
        return "its weight is shared"
    name = captured.parameters[weight]
    if bias is not None:
        if bias not in captured.parameters:
            return "its bias is computed"
        return (name, captured.parameters[bias], False) if own(bias) else "its bias is shared"
    norm = next(iter(node.users), None)
    if len(node.users) == 1 and norm.target is ATEN.batch_norm.default and norm.args[0] is node:
        mean = argument(norm, "running_mean")
        if mean in captured.buffers and uses[mean] == 1:
            return name, captured.buffers[mean], True
    module = model.get_submodule(name.rpartition(".")[0])
    if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) and module.bias is None:
        return name, f"{name.rpartition('.')[0]}.bias".lstrip("."), False
    return "it has no place for a bias"
