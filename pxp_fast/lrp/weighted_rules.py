"""The rules that share relevance among the inputs of convolutions and linear layers.

With ``z = W a + b`` the layer, positive and negative contributions add up to ``P = W+ a+ + W- a- + b+`` and
``N = z - P``. All rules that tell them apart need only one product besides the layer itself, that of the magnitudes,
``M = |W| |a| + |b|``, since ``P = (M + z) / 2`` and ``N = (z - M) / 2``; and on the way back only two, since the carry
is ``W^T u + sgn(a) |W|^T v``. Inputs that are never negative need fewer or none of them.

These differences are as exact as their larger term: where ``P`` is a hundred-thousandth of ``M``, in float32 nothing of
it is left. z-plus of inputs that are never negative subtracts nothing, and gamma nowhere does. For z-plus of signed
inputs and for alpha-beta, float64 and ``exact=True`` make P and N of products of their own, so that each is exact
however small; the quicker precisions trust that contributions of both signs are of about the same size.

Biases are treated as in zennit 0.5.1: positive ones are positive contributions, negative ones negative.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import PxpError
from .carry import Carry, Held
from .registry import Part, Rule, Situation, register
from .ruled import Layer

OTHER = {"positive": "negative", "negative": "positive"}


def magnitudes(layer: Layer) -> Tensor:
    """``M = |W| |a| + |b|``, with whatever factor the part has."""
    return layer.product("magnitude", layer.source if layer.nonnegative else layer.source.abs())


def signed_carry(layer: Layer, u: Tensor, v: Tensor) -> Carry:
    """``W^T u + sgn(a) |W|^T v``."""
    magnitude = layer.carry("magnitude", v)
    if not layer.nonnegative:
        magnitude = Held(magnitude.tensor().mul_(layer.source.sign()), 1)
    return layer.carry("weight", u).joined(magnitude)


def positive(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clamp(min=0)


def negative(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clamp(max=0)


def magnitude(tensor: Tensor | None, factor: float = 1) -> Tensor | None:
    return None if tensor is None else tensor.abs() * factor


def apart(weight: Tensor, bias: Tensor | None, nonnegative: bool) -> dict[str, Part]:
    """The parts from which :func:`contributions` are made, none of which is a difference."""
    parts = {"positive": Part(positive(weight), positive(bias)), "negative": Part(negative(weight), negative(bias))}
    if not nonnegative:
        parts |= {f"{sign} alone": Part(part.weight, back=False) for sign, part in parts.items()}
    return parts


def contributions(layer: Layer, of: str) -> Tensor:
    """P (of ``"positive"``) or N, from :func:`apart`."""
    if layer.nonnegative:
        return layer.product(of, layer.source)
    other = f"{OTHER[of]} alone"
    return layer.product(of, positive(layer.source)).add_(layer.product(other, negative(layer.source)))


def quotient(layer: Layer, total: Tensor) -> Tensor:
    """Relevance divided by what contributed, never negative; 0 where nothing did."""
    return torch.where(total > 0, layer.relevance / (total + layer.stabilizer), 0)


def carry_apart(layer: Layer, shared: Tensor, of: str) -> Tensor:
    """What shares per positive or negative contribution make of the input's carry, from :func:`apart`."""
    carry = layer.transposed(of, shared)
    return carry if layer.nonnegative else torch.where(layer.source > 0, carry, layer.transposed(OTHER[of], shared))


class EpsilonRule(Rule):
    """The epsilon rule, whatever its parameter is called. The engine has a quicker way for it than this one."""

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        return {"weight": Part(weight, forward=False)}

    def propagate(self, layer: Layer) -> Carry:
        return layer.carry("weight", layer.share(torch.zeros_like(layer.output), "gamma", first=1)[0])


@register
@dataclasses.dataclass(frozen=True)
class Epsilon(EpsilonRule):
    """In proportion to the contributions: ``c_a = W^T (R / stab(z))`` (Bach et al., 2015, equation 58).

    Attributes
    ----------
    epsilon
        Added to the output, with its sign; None: the composite's stabilizer. Large values suppress weak outputs.
    """

    name: ClassVar[str] = "epsilon"
    epsilon: float | None = None

    def stabilizer_or(self, default: float) -> float:
        return default if self.epsilon is None else self.epsilon


@register
@dataclasses.dataclass(frozen=True)
class Norm(EpsilonRule):
    """The epsilon rule with an epsilon that only stabilizes: what sums and average pools follow too."""

    name: ClassVar[str] = "norm"
    stabilizer: float | None = None


@register
@dataclasses.dataclass(frozen=True)
class ZPlus(Rule):
    """In proportion to the positive contributions alone (Montavon et al., 2017, arXiv 1512.02479, equation 15).

    ``s = R / stab(P)``, and ``c_a = W+^T s`` where ``a > 0``, ``W-^T s`` where ``a < 0``.
    """

    name: ClassVar[str] = "z-plus"
    stabilizer: float | None = None

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        if situation.nonnegative:
            return {"positive": Part(positive(weight), positive(bias))}
        if situation.exact:
            return apart(weight, bias, nonnegative=False)
        return {"magnitude": Part(magnitude(weight), magnitude(bias)), "weight": Part(weight, forward=False)}

    def propagate(self, layer: Layer) -> Carry | Tensor:
        if layer.nonnegative:
            total = layer.product("positive", layer.source)
            return layer.carry("positive", layer.share(total, "plain")[0])
        if layer.exact:
            shared, _ = layer.share(contributions(layer, "positive"), "plain")
            return carry_apart(layer, shared, "positive")
        half, _ = layer.share(magnitudes(layer), "positive", factor=2)
        return signed_carry(layer, half, half)


@register
@dataclasses.dataclass(frozen=True)
class Gamma(Rule):
    """Contributions of the output's sign count ``1 + gamma`` times (Montavon et al., 2019; signed form: zennit's).

    ``s = R / stab(z + gamma P)`` where ``z > 0``, shared by ``W + gamma W+`` (``W-`` where ``a < 0``), and
    ``s = R / stab(z + gamma N)`` where ``z < 0``, shared by ``W + gamma W-`` (``W+`` where ``a < 0``).

    Attributes
    ----------
    gamma
        0 gives the epsilon rule, infinity would give z-plus.
    """

    name: ClassVar[str] = "gamma"
    gamma: float = 0.25
    stabilizer: float | None = None

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        if situation.nonnegative and situation.rectified:
            scaled = (None if t is None else t + self.gamma * positive(t) for t in (weight, bias))
            return {"scaled": Part(*scaled)}
        half = self.gamma / 2
        return {
            "magnitude": Part(magnitude(weight, half), magnitude(bias, half)),
            "weight": Part((1 + half) * weight, forward=False),
        }

    def propagate(self, layer: Layer) -> Carry:
        if layer.nonnegative and layer.rectified:
            total = layer.product("scaled", layer.source)
            return layer.carry("scaled", layer.share(total, "plain")[0])
        # |z + gamma P| and |z + gamma N| are both this sum of magnitudes: nothing cancels.
        return signed_carry(layer, *layer.share(magnitudes(layer), "gamma", first=1 + self.gamma / 2))


@register
@dataclasses.dataclass(frozen=True)
class AlphaBeta(Rule):
    """``alpha`` of the relevance to positive contributions, ``-beta`` to negative (Bach et al., 2015, equation 60).

    Attributes
    ----------
    alpha, beta
        ``alpha - beta = 1``, so that relevance is conserved. ``beta = 0`` is the z-plus rule.
    """

    name: ClassVar[str] = "alpha-beta"
    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise PxpError(
                f"rule alpha-beta: alpha is {self.alpha} and beta {self.beta}; alpha - beta must be 1, for relevance "
                "to be conserved"
            )

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        if situation.exact and self.beta:
            return apart(weight, bias, situation.nonnegative)
        parts = ZPlus().parts(weight, bias, situation)
        if situation.nonnegative and self.beta:
            parts["negative"] = Part(negative(weight), forward=False)
        return parts

    def propagate(self, layer: Layer) -> Carry | Tensor:
        if not self.beta:
            return ZPlus.propagate(self, layer)
        if layer.exact:
            gains = self.alpha * quotient(layer, contributions(layer, "positive"))
            losses = self.beta * quotient(layer, contributions(layer, "negative").neg_())
            return carry_apart(layer, gains, "positive").add_(carry_apart(layer, losses, "negative"))
        factors = {"first": self.alpha, "second": self.beta}
        if layer.nonnegative:
            gains, losses = layer.share(layer.product("positive", layer.source), "both", **factors)
            return layer.carry("positive", gains).joined(layer.carry("negative", losses))
        return signed_carry(layer, *layer.share(magnitudes(layer), "both signed", factor=2, **factors))


class Spread(Rule):
    """Relevance in proportion to a weight alone, whatever the inputs are."""

    spreads = True

    def propagate(self, layer: Layer) -> Tensor:
        return layer.transposed("spread", layer.relevance / (layer.of_ones("spread") + layer.stabilizer))


@register
@dataclasses.dataclass(frozen=True)
class Flat(Spread):
    """Equally among all inputs that an output sees (Lapuschkin et al., 2019, arXiv 1902.10178)."""

    name: ClassVar[str] = "flat"
    stabilizer: float | None = None

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        return {"spread": Part(torch.ones_like(weight))}


@register
@dataclasses.dataclass(frozen=True)
class WSquare(Spread):
    """In proportion to the squared weights, the squared bias keeping its part (Montavon et al., 2017, equation 12)."""

    name: ClassVar[str] = "w-square"
    stabilizer: float | None = None

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        return {"spread": Part(weight.square(), None if bias is None else bias.square())}


@register
@dataclasses.dataclass(frozen=True)
class Pass(Rule):
    """The input has the relevance of the output, entry by entry: for operators that leave the shape as it is."""

    name: ClassVar[str] = "pass"
    spreads = True

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        return {}

    def propagate(self, layer: Layer) -> Tensor:
        return layer.relevance


@register
@dataclasses.dataclass(frozen=True)
class Block(Rule):
    """Relevance goes no further."""

    name: ClassVar[str] = "block"

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        return {}

    def propagate(self, layer: Layer) -> None:
        return None


UNWEIGHTED = (Pass, Norm, Block)
"""What acts on sums, pools and norms too."""
