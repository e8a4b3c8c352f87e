"""Which entries of a network's tensors must be removed together.

Every entry of every parameter, buffer and activation carries a label. Operators that keep or rearrange values take the
labels along; operators that bring entries together (a sum of two branches, a norm, a product of queries and keys) join
their labels into one class. What a class holds can be cut out of all tensors at once, and of none alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ..lrp.fold import CONVOLUTIONS, LINEAR
from ..lrp.graph import Captured
from .coupling_rules import follow
from .labels import KEPT, NOBODY, Labels


class Coupling:
    """The classes of a captured classifier.

    Attributes
    ----------
    labels
        Of every value, parameter and buffer.
    roots
        ``[labels]``: the class of each label.
    """

    def __init__(self, captured: Captured) -> None:
        self.captured = captured
        self.labels = labels = Labels(captured)
        self._start()
        for node in captured.graph.nodes:
            if node.op == "call_function":
                labels.values[node] = follow(labels, node)
        labels.keep(labels.values[captured.logits])
        self.roots = labels.classes()

    def class_of(self, labels: Tensor) -> Tensor:
        """The classes of labels; NOBODY stays so."""
        return torch.where(labels == NOBODY, NOBODY, self.roots[labels.clamp_min(0)])

    def _start(self) -> None:
        """Label what is not computed: the images, and parameters and buffers."""
        labels, captured = self.labels, self.captured
        labels.values[captured.images] = torch.tensor(KEPT).expand(labels.shape(captured.images))
        named = captured.parameters | captured.buffers
        for node in captured.graph.nodes:
            if node.op != "placeholder" or node is captured.images:
                continue
            value = captured.constants[node]
            if not isinstance(value, Tensor):
                continue
            if node in captured.parameters and (uses := [u for u in node.users if weighs(u, node)]):
                labels.rows[node] = labels.new(value.shape[0])
                labels.columns[node] = labels.new(value.shape[1])
                labels.values[node] = torch.tensor(KEPT).expand(value.shape)
                if len(uses) < len(node.users):  # read as something else as well: its shape is not ours to change
                    labels.keep(labels.rows[node], labels.columns[node])
            elif node in named and value.numel() > 1:
                labels.values[node] = labels.new(value.numel()).view(value.shape)
            else:
                labels.values[node] = torch.tensor(NOBODY).expand(value.shape)


def weighs(user: fx.Node, weight: fx.Node) -> bool:
    """Whether an operator is a layer with this weight."""
    return (user.target in CONVOLUTIONS or user.target is LINEAR) and user.args[1] is weight
