"""Blocks that do nothing once their units are gone: what comes in goes out, and nothing need be computed."""

from __future__ import annotations

from collections.abc import Iterator, Set

from torch import fx, nn

from ..lrp.graph import Captured, packet
from ..lrp.signs import nonnegative

CONTAINERS = (nn.Sequential, nn.ModuleList)


def idle_blocks(captured: Captured, model: nn.Module, zeros: Set[fx.Node]) -> list[str]:
    """The blocks that yield what they are given, outermost first; none lies in another.

    Parameters
    ----------
    captured
        The masked network.
    model
        Its modules; blocks are the children of its containers.
    zeros
        Operators whose value is always 0.
    """
    rectified = nonnegative(captured.nodes(), captured.constants)
    inside: dict[str, list[fx.Node]] = {}
    for node in captured.nodes():
        for path in _blocks(node, model):
            inside.setdefault(path, []).append(node)
    found: list[str] = []
    for path, nodes in sorted(inside.items(), key=lambda item: item[0].count(".")):
        if not any(path.startswith(f"{outer}.") for outer in found) and _idle(set(nodes), zeros, rectified, captured):
            found.append(path)
    return found


def _blocks(node: fx.Node, model: nn.Module) -> Iterator[str]:
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        if path and isinstance(model.get_submodule(path.rpartition(".")[0]), CONTAINERS):
            yield path


def _idle(nodes: set[fx.Node], zeros: Set[fx.Node], rectified: Set[fx.Node], captured: Captured) -> bool:
    given = {source for node in nodes for source in node.all_input_nodes} - nodes - captured.constants.keys()
    read = [n for n in nodes if n is captured.logits or any(u not in nodes and u.op != "output" for u in n.users)]
    if len(given) != 1 or len(read) != 1 or len(nodes) == 1:
        return False
    (start,), (current,) = given, read
    clips = False
    while current is not start:
        operands = [n for n in current.all_input_nodes if n not in zeros]
        adds_nothing = packet(current) == "add" and len(current.all_input_nodes) == 2
        if current not in nodes or len(operands) != 1 or current.kwargs.get("alpha", 1) != 1:
            return False
        if not adds_nothing and packet(current) != "relu":
            return False
        clips |= packet(current) == "relu"
        current = operands[0]
    return not clips or start in rectified
