"""A captured network under masks."""

from __future__ import annotations

import dataclasses

from torch import Tensor, fx

from ..lrp.graph import Captured


def with_parameters(captured: Captured, tensors: dict[str, Tensor]) -> Captured:
    """The capture with other values of some parameters, and of what is computed from these alone."""
    constants = dict(captured.constants)
    changed: set[fx.Node] = set()
    for node, name in captured.parameters.items():
        if name in tensors:
            constants[node] = tensors[name]
            changed.add(node)
    for node in captured.graph.nodes:
        if node.op == "call_function" and node in constants and changed.intersection(node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), constants.__getitem__)
            constants[node] = node.target(*args, **kwargs)
            changed.add(node)
    return dataclasses.replace(captured, constants=constants)
