"""The four layer groups of a composite, low, mid, high and fully connected, found by depth on the captured graph.

Hatefi et al. (2024, arXiv 2408.12568) list them by name for five networks: the first and last quarter of the feature
layers are *low* and *high*, what lies between is *mid*, the classifier is *fully connected*. One rule of depth gives
these lists, for any network:

1. A *cut* is a value that all relevance from the logits to the images passes through: the output of a layer of a VGG,
   of a residual block of a ResNet, of an attention or an MLP of a ViT. Between one cut and the next lies a *segment*.
   A segment *branches* where it adds or concatenates paths, and *skips* where one of them has no weights.
2. The classifier is the segments at the end that do not skip and are made of fully connected layers alone: linear
   layers, or convolutions that see their whole input at once, applied to one position per image.
3. Of the other segments, those that branch are *blocks*. Layers on the way to a block (stem, patch embedding,
   downsampling, transition) belong to it, layers behind the last one to that. Where nothing branches each layer is a
   block.
4. A *stage* is a run of blocks on one residual stream. A new one begins where the stream does not go on unweighted:
   with a projection shortcut, or with layers on the way to the block.
5. A quarter of the depth has to hold something, so depth is counted in the largest of stages, blocks and layers of
   which there are four or more. Low and high take a quarter of them each, rounded up.

A ResNet has four stages, the stem in the first; a VGG's 13 convolutions stand each for itself; a ViT is one stage with
two blocks, attention and MLP, in each of its encoder's layers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from torch import fx

from .dispatch import receivers
from .fold import LINEAR, WEIGHTED
from .graph import Captured, argument, module_of, packet

GROUPS = ("low", "mid", "high", "fully_connected")
JOINS = {"add", "sub", "rsub", "cat", "stack"}
FEWEST = 4


@dataclasses.dataclass
class Segment:
    """The layers between two cuts, in execution order."""

    layers: list[fx.Node]
    branches: bool
    skips: bool


def groups(captured: Captured) -> dict[fx.Node, str]:
    """The group of every convolution and linear layer, in execution order; see the module for the rule.

    Parameters
    ----------
    captured
        Before or after batch norms are folded.

    Returns
    -------
    dict
        Node -> ``"low"``, ``"mid"``, ``"high"`` or ``"fully_connected"``; never decreasing in execution order.
    """
    features = [segment for segment in _segments(captured) if segment.layers]
    classifier: list[fx.Node] = []
    while features and _classifies(captured, features[-1], last=not classifier):
        classifier = features.pop().layers + classifier
    stages, blocks = _stages(features)
    layers = [[layer] for segment in features for layer in segment.layers]
    parts = next((level for level in (stages, blocks) if len(level) >= FEWEST), layers)
    quarter = math.ceil(len(parts) / 4)
    found = {}
    for position, part in enumerate(parts):
        name = "low" if position < quarter else "high" if position >= len(parts) - quarter else "mid"
        found.update(dict.fromkeys(part, name))
    return found | dict.fromkeys(classifier, "fully_connected")


def layer_names(captured: Captured) -> dict[fx.Node, str]:
    """The module of every convolution and linear layer; its weight's, where that is a parameter.

    Attention that calls no module for its projections, as torchvision's, has them told apart by this. To be asked
    before batch norms are folded: a folded weight is no parameter.
    """
    return {
        node: captured.parameters.get(node.args[1], "").rpartition(".")[0] or module_of(node)
        for node in captured.nodes()
        if is_layer(captured, node)
    }


def is_layer(captured: Captured, node: fx.Node) -> bool:
    """Whether the node is a convolution or linear layer with weights of its own."""
    return node.target in WEIGHTED and node.args[1] in captured.constants


def _segments(captured: Captured) -> Iterator[Segment]:
    """The segments from the images to the logits, along the edges that relevance takes."""
    sources: dict[fx.Node, list[fx.Node]] = {captured.images: []}
    order = {captured.images: -1}
    for position, node in enumerate(captured.nodes()):
        order[node] = position
        if carrying := [source for source in receivers(node) if source in sources]:
            sources[node] = carrying
    last_reader = {node: order[node] for node in sources}
    needed = {captured.logits}
    for node in reversed(sources):
        if node in needed:
            needed.update(sources[node])
            for source in sources[node]:
                last_reader[source] = max(last_reader[source], order[node])
    entry, inside, furthest = captured.images, [], last_reader[captured.images]
    for node in captured.nodes():
        inside.append(node)
        if node not in needed:
            continue
        if furthest <= order[node]:  # nothing from before is read later
            yield _segment(captured, entry, inside, sources)
            entry, inside = node, []
        furthest = max(furthest, last_reader[node])


def _segment(
    captured: Captured, entry: fx.Node, inside: list[fx.Node], sources: dict[fx.Node, list[fx.Node]]
) -> Segment:
    unweighted = {entry}
    for node in inside:
        if not is_layer(captured, node) and any(source in unweighted for source in sources.get(node, ())):
            unweighted.add(node)
    branches = any(packet(node) in JOINS and len(set(sources.get(node, ()))) > 1 for node in inside)
    return Segment([node for node in inside if is_layer(captured, node)], branches, inside[-1] in unweighted)


def _classifies(captured: Captured, segment: Segment, last: bool) -> bool:
    if segment.skips:
        return False
    if last and not segment.branches and len(segment.layers) == 1:
        return True  # the layer that makes the logits, over positions or not
    return all(_is_fully_connected(captured, layer) for layer in segment.layers)


def _is_fully_connected(captured: Captured, layer: fx.Node) -> bool:
    """Whether the layer works on one position per image."""
    shape = captured.shape(layer)
    if layer.target is LINEAR:
        return all(size == 1 for size in shape[1:-1])
    padding = argument(layer, "padding")
    padded = padding == "same" if isinstance(padding, str) else any([padding] if isinstance(padding, int) else padding)
    return not padded and list(captured.shape(layer.args[0])[2:]) == list(captured.shape(layer.args[1])[2:])


def _stages(segments: list[Segment]) -> tuple[list[list[fx.Node]], list[list[fx.Node]]]:
    """The layers of each stage, and those of each block."""
    if not any(segment.branches for segment in segments):
        blocks = [[layer] for segment in segments for layer in segment.layers]
        return blocks, blocks
    stages: list[list[fx.Node]] = []
    blocks: list[list[fx.Node]] = []
    on_the_way: list[fx.Node] = []
    for segment in segments:
        if not segment.branches:
            on_the_way += segment.layers
            continue
        block = on_the_way + segment.layers
        if on_the_way or not segment.skips or not stages:
            stages.append([])
        stages[-1] += block
        blocks.append(block)
        on_the_way = []
    stages[-1] += on_the_way
    blocks[-1] = blocks[-1] + on_the_way
    return stages, blocks
