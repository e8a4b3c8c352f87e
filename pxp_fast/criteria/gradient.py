"""The gradient at a unit's output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .base import ImageCriterion, choice
from .differentiation import EXPLAINED, Differentiation, Reading


class Gradient(ImageCriterion):
    """How steeply the label's logit depends on a unit: the gradient at the unit's output, summed over positions.

    For a sample, a unit ``u`` and its outputs ``a_p`` at the positions ``p``, the signed number is ``sum_p g_p`` and
    the absolute one ``sum_p |g_p|``, with ``g_p = d f / d a_p`` and ``f`` the label's logit. Outputs are those at which
    relevance is read, so that they differ from relevance in this alone: of a convolution after its batch norm and
    before its activation, of a linear layer, and of a head what attention yields before the projection, of which every
    feature of every query is a position. It is captum's ``LayerGradientXActivation(multiply_by_inputs=False)``, and
    one step of the integrated gradients of PXP's public code.

    Parameters
    ----------
    model, example, kinds, dtype, device, exact
        As for :class:`pxp_fast.criteria.Relevance`.
    of
        What ``f`` is: the label's ``"logit"``, or the ``"loss"``, the cross-entropy with the label.

    References
    ----------
    Simonyan, Vedaldi, Zisserman, Deep Inside Convolutional Networks, 2014, arXiv 1312.6034, section 3.
    """

    name = "gradient"

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        of: str = "logit",
        kinds: tuple[str, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> None:
        self.of = choice("of", of, EXPLAINED)
        captured, found = self.look_at(model, example, kinds)
        self.program = Differentiation(captured, found, self.measure, dtype=dtype, device=device, exact=exact)

    def options(self) -> dict[str, Any]:
        return {"of": self.of}

    def measure(self, images: Tensor, targets: Tensor, table: Tensor) -> None:
        """Fill the table of one batch."""

        def visit(reading: Reading, value: Tensor, gradient: Tensor) -> None:
            reading.add(table, self.contribution(reading, value, gradient))

        self.program.gradients(images, targets, visit, self.of)

    def contribution(self, reading: Reading, value: Tensor, gradient: Tensor) -> Tensor:
        """What each position of a unit layer says, given its output and the gradient there."""
        return gradient
