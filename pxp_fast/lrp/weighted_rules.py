"""The rules of convolutions and linear layers, as data."""

from __future__ import annotations

import dataclasses

from .registry import Rule, register


@register
@dataclasses.dataclass(frozen=True)
class Epsilon(Rule):
    name = "epsilon"


@register
@dataclasses.dataclass(frozen=True)
class ZPlus(Rule):
    name = "z-plus"


@register
@dataclasses.dataclass(frozen=True)
class Gamma(Rule):
    name = "gamma"
    gamma: float = 0.25


@register
@dataclasses.dataclass(frozen=True)
class AlphaBeta(Rule):
    name = "alpha-beta"
    alpha: float = 2.0
    beta: float = 1.0


@register
@dataclasses.dataclass(frozen=True)
class Flat(Rule):
    name = "flat"


@register
@dataclasses.dataclass(frozen=True)
class WSquare(Rule):
    name = "w-square"


@register
@dataclasses.dataclass(frozen=True)
class Pass(Rule):
    name = "pass"


@register
@dataclasses.dataclass(frozen=True)
class Norm(Rule):
    name = "norm"


@register
@dataclasses.dataclass(frozen=True)
class Block(Rule):
    name = "block"
