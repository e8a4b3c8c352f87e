"""Gradients at a unit's output, integrated along the way from a black image to the image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PxpError
from .base import ImageCriterion, choice
from .differentiation import Differentiation, Reading

FORMS = ("influence", "conductance")


class IntegratedGradients(ImageCriterion):
    """Gradients integrated along the straight path ``x(t) = t x``, t from 0 to 1, from zeros to the image ``x``.

    With ``a_p(t)`` a unit's output at position p for the image ``x(t)``, outputs and positions being those of
    :class:`Gradient`, ``g_p(t)`` the gradient of the label's logit there, and S steps, a position says

    - ``"influence"``: ``1/S sum_{s=1..S} g_p(s/S)``. This is what PXP's public code takes as integrated gradients of a
      component, there with S = 20: the mean gradient, not multiplied by anything. It is the internal influence of Leino
      et al., captum's ``InternalInfluence`` with ``method="riemann_right"``.
    - ``"conductance"``: ``sum_{s=1..S} (g_p((s-1)/S) + g_p(s/S)) / 2 * (a_p(s/S) - a_p((s-1)/S))``, the integral of
      ``g da`` by trapezoids, that is the integrated gradients of Sundararajan et al. as they pass through the unit
      (Dhamdhere et al.). In a layer that all of the signal passes they add up, with enough steps, to the logit of the
      image less that of zeros. A head's position is a query, whose features are summed first.

    The signed number of a sample is the sum over positions, the absolute one that of the absolute values. All steps of
    an image are computed in one batch, of as many images as leave it no larger than the batch given, or of one.

    Parameters
    ----------
    model, example, kinds, dtype, device, exact
        As for :class:`pxp_fast.criteria.Relevance`. Zeros are what the model gets, so the mean image where images are
        normalised.
    steps
        S, at least 1.
    form
        Which of the two.

    References
    ----------
    Sundararajan, Taly, Yan, Axiomatic Attribution for Deep Networks, ICML 2017, arXiv 1703.01365. Leino et al.,
    Influence-Directed Explanations for Deep Convolutional Networks, 2018, arXiv 1802.03788. Dhamdhere, Sundararajan,
    Yan, How Important Is a Neuron?, ICLR 2019, arXiv 1805.12233.
    """

    name = "integrated-gradients"

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        steps: int = 20,
        form: str = "influence",
        kinds: tuple[str, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> None:
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise PxpError(f"steps is {steps!r}; pass a whole number of at least 1, such as 20")
        self.steps = steps
        self.form = choice("form", form, FORMS)
        captured, found = self.look_at(model, example, kinds)
        self.program = Differentiation(captured, found, self.measure, dtype=dtype, device=device, exact=exact)

    def options(self) -> dict[str, Any]:
        return {"steps": self.steps, "form": self.form}

    def measure(self, images: Tensor, targets: Tensor, table: Tensor) -> None:
        """Fill the table of one batch."""
        first = 0 if self.form == "conductance" else 1
        ways = torch.arange(first, self.steps + 1, dtype=table.dtype, device=images.device) / self.steps
        ways = ways.to(images.dtype).view(-1, *[1] * (images.dim() - 1))
        size = max(1, len(images) // len(ways))
        parts = zip(images.split(size), targets.split(size), table.split(size, dim=1), strict=True)
        for some, labels, rows in parts:
            path = (some.unsqueeze(1) * ways).flatten(0, 1)
            self.program.gradients(path, labels.repeat_interleave(len(ways)), self._visit(rows, len(ways)))

    def _visit(self, table: Tensor, points: int):
        samples = table.shape[1]

        def visit(reading: Reading, value: Tensor, gradient: Tensor) -> None:
            gradient = reading.apart(gradient, samples, points)
            if self.form == "influence":
                reading.add(table, reading.together(gradient.mean(0)))
                return
            passed = reading.apart(value, samples, points).diff(dim=0) * (gradient[1:] + gradient[:-1]) / 2
            reading.add(table, reading.by_position(reading.together(passed.sum(0))))

        return visit
