"""The uniform split of attention, folded into the weights of the layers that make queries, keys and values."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .fold import LINEAR
from .graph import Captured, packet
from .probe import Probe

# What only rearranges values on the way from a linear layer to attention.
REARRANGING = {
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "contiguous", "clone", "squeeze", "unsqueeze",
    "_unsafe_view", "movedim", "select", "slice", "unbind", "chunk", "split", "split_with_sizes", "getitem",
}  # fmt: skip


def shares_of(
    captured: Captured, attention: fx.Node, shares: tuple[float, float, float]
) -> dict[fx.Node, Tensor] | None:
    """The share of the split carry that each output feature of attention's input layers stands for.

    Multiplying the rows of these layers' weights with it, on the way back alone, spares attention the products.

    Parameters
    ----------
    shares
        Those of queries, keys and values, all of which carry relevance.

    Returns
    -------
    dict or None
        Linear layer -> ``[features]`` float64; None where something but views lies between, or where such a layer is
        also read by something else.
    """
    sources = attention.args[:3]
    between: set[fx.Node] = set()
    layers: set[fx.Node] = set()
    for node in sources:
        while node.target is not LINEAR:
            if packet(node) not in REARRANGING or not isinstance(node.args[0], fx.Node):
                return None
            between.add(node)
            node = node.args[0]
        layers.add(node)
    if any(user not in between and user is not attention for node in layers | between for user in node.users):
        return None
    found = {}
    for layer in layers:
        shape = Probe.shape(captured, layer)
        features = torch.arange(shape[-1]).expand(shape)
        elsewhere = {other: torch.full(Probe.shape(captured, other), -1) for other in layers - {layer}}
        probe = Probe(captured, {layer: features, **elsewhere})
        for node in captured.nodes():
            if node in between:
                probe.run(node)
        share = torch.zeros(shape[-1], dtype=torch.float64)
        for source, part in zip(sources, shares, strict=True):
            columns = probe.values[source].unique()
            columns = columns[columns >= 0]
            if bool((share[columns] != 0).logical_and(share[columns] != part).any()):
                return None  # a feature that is, say, both query and value
            share[columns] = part
        found[layer] = share
    return found
