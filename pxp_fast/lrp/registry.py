"""The relevance rules of weighted layers by name, as data: which rule, with which parameters."""

from __future__ import annotations

import dataclasses
import math
import reprlib
from collections.abc import Mapping
from typing import ClassVar

from ..errors import PxpError

RULES: dict[str, type[Rule]] = {}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule; its parameters are its fields."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise PxpError(f"{field.name} of rule {self.name!r} is {reprlib.repr(value)}; it must be a number")

    def describe(self) -> dict:
        """The mapping from which :func:`rule` makes the same rule again."""
        return {"rule": self.name, **dataclasses.asdict(self)}


def register(kind: type[Rule]) -> type[Rule]:
    """Make a rule known by its name."""
    RULES[kind.name] = kind
    return kind


def rule(given: Rule | str | Mapping) -> Rule:
    """A rule from its name, from a mapping such as ``{"rule": "gamma", "gamma": 0.25}``, or as it is."""
    if isinstance(given, Rule):
        return given
    parameters = dict(given) if isinstance(given, Mapping) else {"rule": given}
    name = parameters.pop("rule", None)
    if not isinstance(name, str) or name not in RULES:
        raise PxpError(f"rule {reprlib.repr(name)} is not known; choose one of {', '.join(RULES)}")
    known = {field.name for field in dataclasses.fields(RULES[name])}
    if unknown := [key for key in parameters if key not in known]:
        raise PxpError(
            f"rule {name!r} has no parameter {reprlib.repr(unknown[0])}; it has {', '.join(sorted(known)) or 'none'}"
        )
    return RULES[name](**parameters)
