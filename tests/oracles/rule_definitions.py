"""What each rule says of one affine map, from its definition: every contribution ``w_ji a_i`` of its own, in a matrix.

``stab(z) = z + eps * sgn(z)`` with ``sgn(0) = +1``. Biases are contributions that nothing receives.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .definition import stab


def dense(affine: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix ``[outputs, inputs]`` and bias ``[outputs]`` of an affine map that treats every sample alike."""
    zero = torch.zeros_like(x[:1])
    matrix = torch.autograd.functional.jacobian(affine, zero)
    bias = affine(zero).flatten()
    return matrix.reshape(len(bias), zero.numel()), bias


def plus(t: Tensor) -> Tensor:
    return t.clamp(min=0)


def minus(t: Tensor) -> Tensor:
    return t.clamp(max=0)


def fractions(matrix: Tensor, bias: Tensor, a: Tensor, eps: float, rule: str, **parameters) -> Tensor:
    """The fraction of output j's relevance that input i receives, ``[outputs, inputs]``, for one sample's input `a`."""
    parts = matrix * a
    z = parts.sum(1) + bias
    eps = parameters.get("stabilizer", eps)

    def shares(numerator: Tensor, of_bias: Tensor) -> Tensor:
        return numerator / stab(numerator.sum(1) + of_bias, eps)[:, None]

    if rule in ("epsilon", "norm"):
        return parts / stab(z, parameters.get("epsilon", eps))[:, None]
    if rule == "z-plus":
        return shares(plus(parts), plus(bias))
    if rule == "alpha-beta":
        alpha, beta = parameters.get("alpha", 2), parameters.get("beta", 1)
        return alpha * shares(plus(parts), plus(bias)) - beta * shares(minus(parts), minus(bias))
    if rule == "gamma":
        gamma = parameters.get("gamma", 0.25)
        favoured = {sign: [t + gamma * sign(t) for t in (parts, bias)] for sign in (plus, minus)}
        positive, negative = (shares(*favoured[sign]) for sign in (plus, minus))
        return positive * (z > 0)[:, None] + negative * (z < 0)[:, None]
    if rule == "flat":
        return shares((matrix != 0).to(matrix), torch.zeros_like(bias))
    if rule == "w-square":
        return shares(matrix.square(), bias.square())
    if rule == "pass":
        return torch.eye(len(bias), dtype=bias.dtype)
    assert rule == "block"
    return torch.zeros_like(matrix)


def definition_of(described: Callable[[str], dict]) -> Callable:
    """For `Definition`: the rules of the affine maps, as `described` gives them by module name."""

    def rule(name: str, affine: Callable[[Tensor], Tensor], x: Tensor, relevance: Tensor, eps: float) -> Tensor:
        parameters = dict(described(name))
        matrix, bias = dense(affine, x)
        received = [
            r.flatten() @ fractions(matrix, bias, a.flatten(), eps, **parameters)
            for a, r in zip(x, relevance, strict=True)
        ]
        return torch.stack(received).reshape(x.shape)

    return rule
