"""Activation times gradient at a unit's output."""

from __future__ import annotations

from torch import Tensor

from .differentiation import Reading
from .gradient import Gradient


class Taylor(Gradient):
    """What removing a unit changes, to first order: its output times the gradient there.

    For a sample, a unit and its outputs ``a_p`` at the positions ``p``, the signed number is ``sum_p a_p g_p`` with
    ``g_p = d f / d a_p``: setting the outputs to zero changes ``f`` by its negative, to first order. Its absolute value
    over the sample (``absolute="sample"``, PXP's choice for filters) is the criterion of Molchanov et al., 2017, eq. 8,
    but for their division by the number of positions; their later one (2019, eq. 7) is its square, with ``of="loss"``.
    The absolute number of the table is ``sum_p |a_p g_p|``; a head's positions are its queries, whose features are
    summed first, as for relevance.

    On a network of ReLUs without biases the logit's is the relevance of LRP-0 times the logit. Elsewhere they differ:
    this is the true gradient, through activations, normalisations and attention as they are.

    Parameters
    ----------
    model, example, of, kinds, dtype, device, exact
        As for :class:`Gradient`; outputs as there.

    References
    ----------
    Molchanov, Tyree, Karras, Aila, Kautz, Pruning Convolutional Neural Networks for Resource Efficient Inference,
    ICLR 2017, arXiv 1611.06440. Molchanov, Mallya, Tyree, Frosio, Kautz, Importance Estimation for Neural Network
    Pruning, CVPR 2019, arXiv 1906.10771.
    """

    name = "taylor"

    def contribution(self, reading: Reading, value: Tensor, gradient: Tensor) -> Tensor:
        return reading.by_position(value * gradient)
