"""Relevance rules of convolutions and linear layers by name, and how one is added."""

from __future__ import annotations

import dataclasses
import reprlib
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from ..errors import PxpError

if TYPE_CHECKING:
    from .carry import Carry
    from .ruled import Layer

RULES: dict[str, type[Rule]] = {}
"""Every registered rule by its name."""


@dataclasses.dataclass(frozen=True)
class Part:
    """A weight that a rule multiplies with, made from the layer's once, before the first batch.

    Attributes
    ----------
    weight
        Of the shape of the layer's.
    bias
        Added by :meth:`Layer.product`, ``[features]``; None: nothing.
    forward, back
        Whether it is used in :meth:`Layer.product` and in :meth:`Layer.transposed`. Each direction may hold a copy of
        the weight in a layout of its own.
    """

    weight: Tensor
    bias: Tensor | None = None
    forward: bool = True
    back: bool = True


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the relevance of a layer's output is shared among its inputs. The parameters are the fields.

    A rule says which weights it multiplies with (:meth:`parts`) and what becomes of the relevance (:meth:`propagate`).
    A new one is one small class::

        @register
        @dataclasses.dataclass(frozen=True)
        class Magnitude(Rule):
            '''Relevance in proportion to the magnitude of each contribution: R_i = sum_j |w_ij a_i| / sum |w a| R_j.'''

            name: ClassVar[str] = "magnitude"

            def parts(self, weight, bias, situation):
                return {"magnitude": Part(weight.abs())}

            def propagate(self, layer):
                total = layer.product("magnitude", layer.source.abs())
                carry = layer.transposed("magnitude", layer.relevance / (total + layer.stabilizer))
                return carry * layer.source.sign()

    and from then on ``"magnitude"`` is a rule like the others.

    Attributes
    ----------
    name
        In composites and files.
    spreads
        Whether :meth:`propagate` returns the relevance of the inputs, not their carry (relevance divided by the input).
        For rules that give relevance to inputs that are 0, which no carry can express.
    """

    name: ClassVar[str] = ""
    spreads: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (value is None and field.default is None or is_size(value)):
                raise PxpError(
                    f"rule {self.name}: {field.name} is {reprlib.repr(value)}; it must be a finite number >= 0"
                )

    def follows(self, kinds: type[Rule] | tuple[type[Rule], ...]) -> bool:
        """Whether the rule does what one of `kinds` does; a subclass that shares relevance in another way does not."""
        own = type(self)
        return any(
            issubclass(own, kind) and own.parts is kind.parts and own.propagate is kind.propagate
            for kind in (kinds if isinstance(kinds, tuple) else (kinds,))
        )

    def stabilizer_or(self, default: float) -> float:
        """The rule's own stabilizer, or the composite's where it has none."""
        own = getattr(self, "stabilizer", None)
        return default if own is None else own

    def parameters(self) -> dict[str, float | None]:
        """Name -> value of every parameter."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def describe(self) -> dict[str, object]:
        """The mapping of which :func:`rule` makes this rule again; parameters that are None are left out."""
        return {"rule": self.name} | {k: v for k, v in self.parameters().items() if v is not None}

    def parts(self, weight: Tensor, bias: Tensor | None, situation: Situation) -> dict[str, Part]:
        """The weights that :meth:`propagate` multiplies with, by a name of the rule's choice.

        Parameters
        ----------
        weight
            ``[features, inputs / groups, ...]``, batch norm merged, in the dtype and on the device of the computation.
        bias
            ``[features]`` or None.
        situation
            What is known of the layer's input and output.
        """
        raise NotImplementedError

    def propagate(self, layer: Layer) -> Tensor | Carry | None:
        """The carry of the layer's input, of its shape: relevance divided by the input, whatever where that is 0.

        Where the rule `spreads`: the relevance itself. None: no relevance goes further.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Situation:
    """What the graph tells of a layer.

    Attributes
    ----------
    nonnegative
        No entry of the layer's input is negative, whatever the images.
    rectified
        No relevance comes to outputs that are negative: a ReLU alone reads them.
    exact
        Small rounding errors are wanted more than speed: in float64, and where `exact` was asked for in float32.
    """

    nonnegative: bool = False
    rectified: bool = False
    exact: bool = False


def register(cls: type[Rule]) -> type[Rule]:
    """Make a rule known under its name.

    Raises
    ------
    PxpError
        The class has no name, or another class has it.
    """
    taken = RULES.get(cls.name)
    if not cls.name or taken is not None and _path(taken) != _path(cls):  # a class made again replaces itself
        owner = f"is already that of {_path(taken)}" if taken else "is empty"
        raise PxpError(f"{_path(cls)}: the name {cls.name!r} {owner}; give the class a `name` of its own")
    RULES[cls.name] = cls
    return cls


def is_size(value: object) -> bool:
    """Whether a value is a finite number >= 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _path(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def rule(given: str | Rule | Mapping) -> Rule:
    """A rule from its name (``"gamma"``), a mapping (``{"rule": "gamma", "gamma": 0.1}``), or as it is.

    Raises
    ------
    PxpError
        No such rule or parameter, or a value out of its range.
    """
    if isinstance(given, Rule):
        if RULES.get(given.name) is not type(given):
            raise PxpError(
                f"{type(given).__qualname__} is not registered as rule {given.name!r}: give the class a `name` of its "
                "own and the decorator pxp_fast.lrp.registry.register"
            )
        return given
    if isinstance(given, str):
        given = {"rule": given}
    if not isinstance(given, Mapping) or not isinstance(given.get("rule"), str):
        found = reprlib.repr(given)
        raise PxpError(f"{found} is no rule; pass a name, or a mapping such as {{'rule': 'gamma', 'gamma': 0.25}}")
    name = given["rule"]
    if name not in RULES:
        raise PxpError(f"rule {reprlib.repr(name)} is not known; choose one of {', '.join(RULES)}")
    parameters = {key: value for key, value in given.items() if key != "rule"}
    known = [field.name for field in dataclasses.fields(RULES[name])]
    unknown = [str(key) for key in parameters if key not in known]
    if unknown:
        has = f"its parameters are {', '.join(known)}" if known else "it has none"
        raise PxpError(f"rule {name} has no parameter {', '.join(unknown)}; {has}")
    return RULES[name](**parameters)
