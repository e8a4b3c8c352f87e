"""Rules by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from ..errors import PxpError


@dataclasses.dataclass(frozen=True)
class Rule:
    """How relevance passes an affine operator; its fields are its parameters."""

    name: ClassVar[str]

    def describe(self) -> dict:
        """The mapping that :func:`rule` makes this rule of."""
        return {"rule": self.name, **dataclasses.asdict(self)}


@dataclasses.dataclass(frozen=True)
class Epsilon(Rule):
    """The epsilon rule."""

    name: ClassVar[str] = "epsilon"


RULES: dict[str, type[Rule]] = {"epsilon": Epsilon}


def rule(given: Rule | str | Mapping) -> Rule:
    """A rule from itself, its name, or a mapping."""
    if isinstance(given, Rule):
        return given
    values = {"rule": given} if isinstance(given, str) else dict(given)
    name = values.pop("rule")
    if name not in RULES:
        raise PxpError(f"rule {name!r} is not known; choose from {', '.join(RULES)}")
    return RULES[name](**values)
