"""Composites: which rule each operator of a network gets."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import PxpError
from ..files import atomic_write
from .registry import Epsilon, Rule, rule

GROUPS = ("low", "mid", "high", "fully_connected")


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
    """

    name: str = "epsilon"
    stabilizer: float = 1e-6
    low: Rule = Epsilon()
    mid: Rule = Epsilon()
    high: Rule = Epsilon()
    fully_connected: Rule = Epsilon()
    softmax: str = "epsilon"
    layers: tuple[tuple[str, Rule], ...] = ()

    def __post_init__(self) -> None:
        if not (math.isfinite(self.stabilizer) and self.stabilizer >= 0):
            raise PxpError(f"stabilizer is {self.stabilizer}; it must be a finite number >= 0 (default 1e-6)")

    def describe(self) -> dict:
        """The mapping that :meth:`from_mapping` makes this composite of."""
        values = {"name": self.name, "stabilizer": self.stabilizer}
        values |= {group: getattr(self, group).describe() for group in GROUPS}
        return values | {"softmax": self.softmax}

    @classmethod
    def from_mapping(cls, mapping: Mapping) -> Composite:
        """The composite that a mapping describes."""
        values = dict(mapping)
        values |= {group: rule(values[group]) for group in GROUPS if group in values}
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; replaced atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.describe(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Composite:
        """Read a composite."""
        return cls.from_mapping(json.loads(Path(path).read_text(encoding="utf-8")))


PRESETS = {"epsilon": Composite()}


def composite(given: str | Composite) -> Composite:
    """A composite by name, from a file, or as it is."""
    if isinstance(given, Composite):
        return given
    if given not in PRESETS and given.endswith(".json"):
        return Composite.load(given)
    if given not in PRESETS:
        raise PxpError(f"composite {given!r} is not known; choose one of {', '.join(PRESETS)}")
    return PRESETS[given]
