"""The activation of a unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from ..lrp.rules import ACTIVATIONS
from .base import ImageCriterion, choice
from .differentiation import Differentiation

READ_AT = ("activation", "output")


class Activation(ImageCriterion):
    """How active a unit is: the mean of its output over positions, and the mean of its absolute value.

    Needs no gradient; labels only tell classes apart. Positions are those of :class:`Gradient`, so of a head every
    feature of every query is one.

    Parameters
    ----------
    model, example, kinds, dtype, device, exact
        As for :class:`pxp_fast.criteria.Relevance`.
    at
        Where the output is read. ``"activation"``: after the activation function, where one alone reads the unit's
        layer, so that a filter that ReLU always switches off counts as silent; elsewhere as ``"output"``: before it,
        where relevance is read, and where PXP's public code reads activations.

    References
    ----------
    Polyak, Wolf, Channel-Level Acceleration of Deep Face Representations, IEEE Access 2015. Molchanov et al., 2017,
    arXiv 1611.06440, section 2.2.
    """

    name = "activation"

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        at: str = "activation",
        kinds: tuple[str, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> None:
        self.at = choice("at", at, READ_AT)
        captured, found = self.look_at(model, example, kinds)
        self.program = Differentiation(
            captured, found, self.measure, every_token=True, dtype=dtype, device=device, exact=exact
        )
        self.functions = {node: self._function(node) for node in self.program.readings}

    def options(self) -> dict[str, Any]:
        return {"at": self.at}

    def _function(self, node: fx.Node) -> fx.Node | None:
        """The activation function that alone reads the node, if it is to be taken along."""
        user = next(iter(node.users)) if len(node.users) == 1 else None
        return user if self.at == "activation" and user is not None and user.target in ACTIVATIONS else None

    def measure(self, images: Tensor, targets: Tensor, table: Tensor) -> None:
        """Fill the table of one batch."""

        def arrive(node: fx.Node, value: Tensor) -> Tensor:
            reading, function = self.program.readings[node], self.functions[node]
            read = value if function is None else function.target(value, *function.args[1:], **function.kwargs)
            reading.add(table, read, scale=table.shape[1] * reading.count / read.numel())
            return value

        self.program.forward(images, arrive)
