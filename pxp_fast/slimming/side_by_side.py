"""A network and its masked version run side by side, up to one layer after another, over images that come in batches.

What later layers need of a batch is kept between two layers as long as it fits into memory; where it does not, the
batch starts again from where it last did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, fx

from ..lrp.graph import Captured
from .readers import changed_values

Values = dict[fx.Node, tuple[object, object]]


@dataclasses.dataclass
class _Batch:
    """How far a batch is: the position of the operator that comes next, and what is left of those before it."""

    position: int
    values: Values
    size: int


class SideBySide:
    """Two networks of one graph.

    Parameters
    ----------
    whole, masked
        The captures; they differ in constants alone.
    images
        Batches ``[N, C, H, W]``; they are held.
    limit
        Bytes of activations to keep between two layers.
    """

    def __init__(self, whole: Captured, masked: Captured, images: Iterable[Tensor], limit: int) -> None:
        self.whole, self.masked = whole, masked
        self.limit = limit
        self.nodes = list(whole.nodes())
        self._changed = changed_values(whole, masked)
        self._last = {}
        for position, node in enumerate(self.nodes):
            for source in node.all_input_nodes:
                self._last[source] = position
        self._batches = [_Batch(0, {whole.images: (one, one)}, 0) for one in images]
        self._kept = 0
        self._layers: dict[fx.Node, tuple[Tensor, Tensor | None]] = {}

    def replace(self, node: fx.Node, weight: Tensor, bias: Tensor | None) -> None:
        """Let a layer of the masked network have another weight and bias from now on."""
        self._layers[node] = weight, bias

    def until(self, node: fx.Node) -> Iterator[tuple[Tensor, Tensor]]:
        """For every batch, a layer's input in the whole network and in the masked one."""
        position = self.nodes.index(node)
        for batch in self._batches:
            yield self._advance(batch, position)[node.args[0]]

    def _advance(self, batch: _Batch, position: int) -> Values:
        values = dict(batch.values)
        for place in range(batch.position, position):
            node = self.nodes[place]
            result = self._run(node, values)
            for source in node.all_input_nodes:
                if self._last[source] == place:
                    values.pop(source, None)
            if self._last.get(node, -1) > place:
                values[node] = result
        size = _size(values)
        if self._kept - batch.size + size <= self.limit:
            self._kept += size - batch.size
            batch.position, batch.values, batch.size = position, values, size
        return values

    def _run(self, node: fx.Node, values: Mapping[fx.Node, tuple[object, object]]) -> tuple[object, object]:
        one = _call(node, values, self.whole, 0, None)
        if node not in self._changed and node not in self._layers:
            return one, one
        return one, _call(node, values, self.masked, 1, self._layers.get(node))


def output(node: fx.Node, captured: Captured, source: Tensor) -> Tensor:
    """A layer's output for some input, with the weights that it has in a capture."""
    return _call(node, {node.args[0]: (source,)}, captured, 0, None)


def _call(
    node: fx.Node, values: Mapping, captured: Captured, side: int, layer: tuple[Tensor, Tensor | None] | None
) -> object:
    def value(one: fx.Node) -> object:
        return values[one][side] if one in values else captured.constants[one]

    args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
    if layer is not None:
        kwargs = {key: one for key, one in kwargs.items() if key != "bias"}
        args = (args[0], *layer, *args[3:])
    return node.target(*args, **kwargs)


def _size(values: Values) -> int:
    """Bytes of memory that values hold; what two of them share counts once."""
    found = {}
    for leaf in torch.utils._pytree.tree_leaves(list(values.values())):
        if isinstance(leaf, Tensor):
            storage = leaf.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())
