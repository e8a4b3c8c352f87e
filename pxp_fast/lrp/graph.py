"""A captured classifier: a flat graph of ATen operators, and the values of those that do not depend on the images."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterator

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import statically_known_true

ATEN = torch.ops.aten


@dataclasses.dataclass
class Captured:
    """A captured classifier.

    Attributes
    ----------
    graph
        Nodes in execution order; every ``call_function`` node is functional.
    constants
        Value of each node that does not depend on the images.
    parameters, buffers
        Name in the model of each node that is a parameter, or a buffer.
    images, logits
        The input node ``[N, C, H, W]`` and the output node ``[N, classes]``.
    """

    graph: fx.Graph
    constants: dict[fx.Node, Tensor]
    parameters: dict[fx.Node, str]
    images: fx.Node
    logits: fx.Node
    buffers: dict[fx.Node, str] = dataclasses.field(default_factory=dict)

    def shape(self, node: fx.Node) -> tuple:
        """The node's shape as traced; the batch size is a symbol in it."""
        return tuple(node.meta["val"].shape)

    @property
    def batch(self) -> torch.SymInt:
        """The symbol that stands for the batch size."""
        return self.shape(self.images)[0]

    @property
    def num_classes(self) -> int:
        return int(self.shape(self.logits)[1])

    def nodes(self) -> Iterator[fx.Node]:
        """The operators that depend on the images, in execution order."""
        return (n for n in self.graph.nodes if n.op == "call_function" and n not in self.constants)

    def forward(self, images: Tensor) -> Tensor:
        """The model's logits, computed operator by operator: bit-equal to the model in eval mode."""
        return self.values(images, {self.logits})[self.logits]

    @torch.no_grad()
    def values(self, images: Tensor, wanted: set[fx.Node]) -> dict[fx.Node, Tensor]:
        """The values of some nodes."""
        env: dict[fx.Node, object] = {**self.constants, self.images: images}
        for node in self.nodes():
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
        return {node: env[node] for node in wanted}

    def eliminate_dead(self) -> None:
        """Drop the nodes that the logits do not depend on."""
        needed = {self.logits, self.images}
        for node in reversed(self.graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
            elif node.op == "output":
                node.args = ((self.logits,),)
        for node in reversed(self.graph.nodes):
            if node not in needed and node.op != "output":
                self.graph.erase_node(node)
                self.constants.pop(node, None)
                self.parameters.pop(node, None)
                self.buffers.pop(node, None)


def is_view(node: object) -> bool:
    """Whether the node's output may share memory with its first argument."""
    if not isinstance(node, fx.Node) or not isinstance(node.target, torch._ops.OpOverload):
        return isinstance(node, fx.Node) and node.target is operator.getitem
    first = node.target._schema.arguments[:1]
    return bool(first) and first[0].alias_info is not None and not first[0].alias_info.is_write


def module_of(node: fx.Node) -> str:
    """The path of the user's innermost module that made this node, such as ``blocks.3.attn``."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack and stack[-1][0] else node.name


def packet(node: fx.Node) -> str:
    overloads = getattr(node.target, "overloadpacket", None)
    return overloads.__name__ if overloads is not None else getattr(node.target, "__name__", str(node.target))


def argument(node: fx.Node, name: str, default: object = None) -> object:
    """An operator's argument by its schema name, however it was passed."""
    if name in node.kwargs:
        return node.kwargs[name]
    for position, formal in enumerate(node.target._schema.arguments):
        if formal.name == name:
            if position < len(node.args):
                return node.args[position]
            return formal.default_value if formal.has_default_value() else default
    return default


def same_size(a: int | torch.SymInt, b: int | torch.SymInt) -> bool:
    """Whether two sizes are equal whatever the batch size."""
    return bool(statically_known_true(a == b))
