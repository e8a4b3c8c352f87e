"""The class-token cut: compute only the tokens that the classifier reads.

Where a network's head reads a slice of the tokens (a vision transformer's class token), every operator between there
and the last attention acts on each token alone and need run on that slice only, forward and back. The pass asks, from
the logits down, which slice of each tensor its readers want, and narrows whatever can produce just that.
"""

from __future__ import annotations

import dataclasses

from torch import Tensor, fx

from .fold import LINEAR, VIEWS
from .graph import ATEN, Captured, argument, same_size
from .rules import ACTIVATIONS

POINTWISE = ACTIVATIONS | {ATEN.contiguous.default, ATEN.clone.default, ATEN.sigmoid.default}
BINARY = {ATEN.add.Tensor, ATEN.mul.Tensor, ATEN.sub.Tensor, ATEN.div.Tensor}
ATTENTION = ATEN.scaled_dot_product_attention.default
FULL = None


@dataclasses.dataclass(frozen=True)
class Window:
    """Entries ``start ... start + length - 1`` of dimension `dim`."""

    dim: int
    start: int
    length: int


def keep_read_tokens(captured: Captured) -> None:
    """Rewrite the graph so that tokens nobody reads are not computed. Logits and relevance stay the same."""
    wanted: dict[fx.Node, Window | None] = {captured.logits: FULL}
    narrowed: dict[fx.Node, dict[fx.Node, Window]] = {}
    for node in reversed(list(captured.nodes())):
        window = wanted.get(node, FULL)
        requests = _root_request(captured, node) if window is FULL else _push(captured, node, window)
        if requests is not None:
            narrowed[node] = requests
        for source in node.all_input_nodes:
            request = (requests or {}).get(source, FULL)
            wanted[source] = request if wanted.get(source, request) == request else FULL
    for node, requests in narrowed.items():
        if wanted.get(node, FULL) is FULL and not any(source in narrowed for source in requests):
            continue  # nothing above the slice can be spared
        _narrow(captured, node, requests, wanted, narrowed)


def _root_request(captured: Captured, node: fx.Node) -> dict[fx.Node, Window] | None:
    """What a ``select`` or ``slice`` reads of its input, if that is half of it or less."""
    if node.target not in (ATEN.select.int, ATEN.slice.Tensor):
        return None
    source, shape = node.args[0], captured.shape(node.args[0])
    dim = argument(node, "dim") % len(shape)
    size = shape[dim]
    if source in captured.constants or source is captured.images or not isinstance(size, int) or dim == 0:
        return None
    if node.target is ATEN.select.int:
        start, length = argument(node, "index") % size, 1
    else:
        start, stop, step = argument(node, "start"), argument(node, "end"), argument(node, "step")
        if step != 1 or not all(isinstance(v, int | None) for v in (start, stop)):
            return None
        start, stop, _ = slice(start, stop).indices(size)
        length = stop - start
    return {source: Window(dim, start, length)} if 0 < 2 * length <= size else None


def _push(captured: Captured, node: fx.Node, window: Window) -> dict[fx.Node, Window] | None:
    """Which windows of its inputs produce `window` of the node's output; None if the operator cannot be narrowed."""
    target, source = node.target, node.args[0] if node.args else None
    if target in POINTWISE:
        return {source: window}
    if target is LINEAR:
        return {source: window} if window.dim < len(captured.shape(node)) - 1 else None
    if target is ATEN.layer_norm.default:
        outer = len(captured.shape(node)) - len(node.args[1])
        return {source: window} if window.dim < outer else None
    if target is ATEN.transpose.int:
        swap = [d % len(captured.shape(node)) for d in node.args[1:3]]
        dim = swap[1 - swap.index(window.dim)] if window.dim in swap else window.dim
        return {source: dataclasses.replace(window, dim=dim)}
    if target is ATEN.permute.default:
        return {source: dataclasses.replace(window, dim=node.args[1][window.dim] % len(node.args[1]))}
    if target in VIEWS:
        dim = _same_dimension(captured.shape(source), captured.shape(node), window.dim)
        return {source: dataclasses.replace(window, dim=dim)} if dim is not None else None
    if target in BINARY:
        rank, requests = len(captured.shape(node)), {}
        for operand in node.all_input_nodes:
            if not isinstance(operand.meta.get("val"), Tensor) and operand not in captured.constants:
                return None
            shape = _shape(captured, operand)
            dim = window.dim - (rank - len(shape))
            if dim >= 0 and shape[dim] != 1:
                requests[operand] = dataclasses.replace(window, dim=dim)
        return requests
    if target is ATTENTION and window.dim == len(captured.shape(node)) - 2:
        plain = argument(node, "attn_mask") is None and not argument(node, "is_causal")
        return {source: window} if plain and len({*node.args[:3]}) == 3 else None
    return None


def _shape(captured: Captured, node: fx.Node) -> tuple:
    return tuple(captured.constants[node].shape) if node in captured.constants else captured.shape(node)


def _same_dimension(before: tuple, after: tuple, dim: int) -> int | None:
    """The dimension of a reshape's input that is dimension `dim` of its output, if that dimension is not mixed."""
    outer_after = 1
    for size in after[:dim]:
        outer_after = outer_after * size
    outer = 1
    for position, size in enumerate(before):
        if same_size(outer, outer_after) and same_size(size, after[dim]):
            return position
        outer = outer * size
    return None


def _narrow(captured, node, requests, wanted, narrowed) -> None:
    """Make one operator work on the windows it was asked to read."""
    for source, window in requests.items():
        if wanted.get(source) == window and source in narrowed:
            continue  # the source itself now yields the window alone
        with captured.graph.inserting_before(node):
            piece = captured.graph.call_function(
                ATEN.slice.Tensor, (source, window.dim, window.start, window.start + window.length)
            )
        if source in captured.constants:
            captured.constants[piece] = captured.constants[source].narrow(window.dim, window.start, window.length)
        piece.meta = {"val": _cut(source.meta.get("val", captured.constants.get(source)), window)}
        node.replace_input_with(source, piece)
    window = wanted.get(node, FULL)
    if window is not FULL:
        node.meta["val"] = _cut(node.meta["val"], window)
        if node.target in VIEWS:
            sizes = list(node.args[1])
            sizes[window.dim] = window.length
            node.args = (node.args[0], sizes)
    elif node.target is ATEN.select.int:
        node.args = (node.args[0], node.args[1], 0)
    elif node.target is ATEN.slice.Tensor:
        node.args = (node.args[0], node.args[1], 0, requests[next(iter(requests))].length)


def _cut(value: Tensor, window: Window) -> Tensor:
    return value.narrow(window.dim, window.start, window.length)
