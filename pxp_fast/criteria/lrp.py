"""Layer-wise relevance as a criterion: the engine, pointed at a network's units."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..lrp import Composite, Program, capture
from .base import ImageCriterion


class Relevance(ImageCriterion):
    """Relevance of every unit of a classifier, batch by batch.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; left as it is.
    example
        A batch that the model accepts; only its shape matters.
    composite
        Rules, or their name.
    kinds
        Kinds of units to score, of ``"filter"``, ``"neuron"``, ``"head"``; None: all.
    dtype, device
        Of the computation; default: the model's.
    fused
        Whether products and passes are one kernel; see :class:`pxp_fast.lrp.Program`.
    exact
        Slower kernels for float32, with smaller rounding errors; see :class:`pxp_fast.lrp.Program`.

    Attributes
    ----------
    units
        The unit groups, in execution order; their units are the table's columns, in this order.
    """

    name = "lrp"

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        composite: str | Composite = "epsilon",
        kinds: tuple[str, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        exact: bool = False,
        fused: bool | None = None,
    ) -> None:
        captured, found = self.look_at(model, example, kinds)
        self.program = Program(captured, found.readers, composite, dtype=dtype, device=device, exact=exact, fused=fused)

    def run(self, images: Tensor, targets: Tensor, initial: str = "one", observe=None) -> Tensor:
        """Table ``[2, N, U]`` of signed and absolute relevance; see :meth:`pxp_fast.lrp.Program.run`."""
        return self.program.run(images, targets, initial, observe)


def attribute(model: nn.Module, images: Tensor, targets: Tensor, *, composite: str | Composite = "epsilon") -> Tensor:
    """Relevance of every input pixel, for heat maps.

    Parameters
    ----------
    model
        Left as it is.
    images
        ``[N, C, H, W]``.
    targets
        ``[N]`` int64: the class explained.

    Returns
    -------
    Tensor
        ``[N, C, H, W]``, dtype of the model; its sum is the relevance 1 that entered at the logit, less what biases
        and attention's softmax took.
    """
    captured = capture(model, images)
    program = Program(captured, {}, composite, input_relevance=True)
    heat: list[Tensor] = []

    def keep(node, value: Tensor, carry: Tensor) -> None:
        if node is captured.images:
            heat.append(value * carry)

    program.run(images, targets, observe=keep)
    return heat[0]
