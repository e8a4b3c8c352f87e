"""Which operators of a captured network the rules of a composite go to."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import fx

from .composites import Composite
from .graph import Captured, module_of, packet
from .groups import groups, layer_names
from .registry import Rule
from .weighted_rules import UNWEIGHTED, EpsilonRule

TRANSPOSED = {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
# Sums, pools and norms, which may be named; and transposed convolutions, whose weights no other rule looks at.
NAMEABLE = TRANSPOSED | {
    "add", "sub", "rsub", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "mean", "sum", "batch_norm", "layer_norm", "group_norm", "rms_norm", "max_pool1d",
    "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax",
}  # fmt: skip


def rules_of_layers(captured: Captured, composite: Composite) -> tuple[dict[fx.Node, Rule], list[str]]:
    """The rule of every convolution and linear layer, and their modules; before batch norms are folded."""
    names = layer_names(captured)
    rules = {node: composite.rule_of(group, names[node]) for node, group in groups(captured).items()}
    return rules, list(dict.fromkeys(names.values()))


def rules_of_others(captured: Captured, composite: Composite, layers: Collection[str]) -> dict[fx.Node, Rule]:
    """The rules of sums, pools and norms whose module is named; after batch norms are folded, which then have none.

    Parameters
    ----------
    layers
        The modules of the convolutions and linear layers.

    Raises
    ------
    PxpError
        A pattern of the composite names nothing that its rule could act on.
    """
    modules = {node: module_of(node) for node in captured.nodes() if packet(node) in NAMEABLE}
    composite.check_patterns(layers, modules.values())
    named = {node: composite.named(module) for node, module in modules.items()}
    rules = {node: rule for node, rule in named.items() if rule is not None and rule.follows(UNWEIGHTED)}
    left = dict.fromkeys(m for n, m in modules.items() if packet(n) in TRANSPOSED and n not in rules)
    if left and not all(rule.follows(EpsilonRule) for rule in composite.group_rules):
        warnings.warn(
            f"no relevance rule of composite {composite.name!r} is for transposed convolutions, epsilon used for: "
            f"{', '.join(left)}",
            stacklevel=4,
        )
    return rules
