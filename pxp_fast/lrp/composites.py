"""Composites: which rule each operator of a network gets."""

from __future__ import annotations

import dataclasses
import fnmatch
import math

from ..errors import PxpError
from .registry import Rule
from .weighted_rules import Epsilon


@dataclasses.dataclass(frozen=True)
class Composite:
    """The rules of one attribution, and their parameters.

    Attributes
    ----------
    name
        ``"epsilon"``: the epsilon rule on every affine operator, attention by the rules of AttnLRP (Achtibat et al.,
        2024, arXiv 2402.05602), activations passed.
    stabilizer
        The epsilon added, with the sign of the value, to every denominator (Bach et al., 2015, eq. 58). 0 gives LRP-0,
        which on a ReLU network is activation times gradient.
    layers
        Patterns of module names and the rules of the layers that match, the first that does; epsilon for the others.
    """

    name: str = "epsilon"
    stabilizer: float = 1e-6
    layers: tuple[tuple[str, Rule], ...] = ()

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise PxpError(f"composite {self.name!r} is not known; choose one of {', '.join(NAMES)}")
        if not (math.isfinite(self.stabilizer) and self.stabilizer >= 0):
            raise PxpError(f"stabilizer is {self.stabilizer}; it must be a finite number >= 0 (default 1e-6)")

    def rule_of(self, group: str, module: str) -> Rule:
        """The rule of a layer, by the first pattern that its module's name matches."""
        return next((rule for pattern, rule in self.layers if fnmatch.fnmatch(module, pattern)), Epsilon())


NAMES = ("epsilon",)


def composite(given: str | Composite) -> Composite:
    """A composite by name, or as it is."""
    return given if isinstance(given, Composite) else Composite(given)
