"""The groups of layers that a composite gives rules to."""

from __future__ import annotations

from torch import fx

from .fold import CONVOLUTIONS, LINEAR
from .graph import Captured


def groups(captured: Captured) -> dict[fx.Node, str]:
    """Of every convolution and linear node, its group: by depth among the convolutions, or fully connected."""
    convolutions = [n for n in captured.nodes() if n.target in CONVOLUTIONS]
    found = {n: "fully_connected" for n in captured.nodes() if n.target is LINEAR}
    for position, node in enumerate(convolutions):
        found[node] = ("low", "mid", "high")[3 * position // len(convolutions)]
    return found
