"""Where the entries of a tensor end up: labels sent through the views of a captured graph instead of activations."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from .fold import VIEWS
from .graph import ATEN, Captured

SAMPLES = 2


class Probe:
    """A part of a captured graph run on labels, for a batch of two.

    Parameters
    ----------
    captured
        The graph.
    start
        Nodes and the labels that stand for their values; shapes as :meth:`shape` gives them.
    """

    def __init__(self, captured: Captured, start: dict[fx.Node, Tensor]) -> None:
        self.captured = captured
        self.values: dict[fx.Node, object] = dict(start)

    @staticmethod
    def shape(captured: Captured, node: fx.Node) -> list[int]:
        """The node's shape for a batch of two."""
        return [size_of(size, captured) for size in captured.shape(node)]

    def run(self, node: fx.Node) -> object:
        """Compute the node from what is known."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        # The labels' strides are not those of the activations, which a view may rely on.
        self.values[node] = (ATEN.reshape.default if node.target in VIEWS else node.target)(*args, **kwargs)
        return self.values[node]

    def _value(self, node: fx.Node) -> object:
        """What is known of a node, or the shape computation that it is."""
        if node not in self.values:
            known = node in self.captured.constants
            value = self.captured.constants[node] if known else size_of(node.meta["val"], self.captured)
            self.values[node] = value
        return self.values[node]


def size_of(size: int | torch.SymInt, captured: Captured) -> int:
    """A size of the graph, of which the batch size is a divisor where it is not fixed, for a batch of two."""
    if isinstance(size, int):
        return size
    return SAMPLES * math.ceil(size.node.hint / captured.batch.node.hint)
