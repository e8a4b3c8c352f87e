"""Where the search looks: the rules and parameters that a composite may have."""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pydantic
from torch import fx

from ..errors import PxpError
from ..finding import find_units
from ..lrp import Composite
from ..lrp.dispatch import receivers
from ..lrp.graph import Captured, module_of, packet
from ..lrp.groups import groups as groups_of
from .cache import key_of

if TYPE_CHECKING:
    import optuna

GROUPS = ("low", "mid", "high", "fully_connected")
Range = tuple[float, float]


class Candidate(NamedTuple):
    """What a trial tries: a composite, and whether units are ranked by absolute or by signed relevance."""

    composite: Composite
    magnitude: bool


class Space(pydantic.BaseModel, extra="forbid", frozen=True):
    """The choices of a search; one that a network has no use for is not made.

    Attributes
    ----------
    rules
        Names of the rules to choose from, for every group of layers or for each by its name.
    stabilizer
        Least and greatest value, searched logarithmically; two equal values fix it.
    gamma
        The same, of the gamma rule's parameter, in each group that has this rule.
    softmax
        Rules of attention's softmax to choose from.
    magnitude
        Whether to rank by absolute relevance (true), by signed relevance (false), or either.
    """

    rules: tuple[str, ...] | dict[str, tuple[str, ...]] = ("epsilon", "z-plus", "gamma", "alpha-beta")
    stabilizer: Range = (1e-9, 1e-1)
    gamma: Range = (0.01, 1.0)
    softmax: tuple[str, ...] = ("epsilon", "z-plus", "cp")
    magnitude: tuple[bool, ...] = (True, False)

    @pydantic.field_validator("rules")
    @classmethod
    def _groups_are_known(cls, value: Any) -> Any:
        named = value if isinstance(value, dict) else {"all groups": value}
        if isinstance(value, dict) and (wrong := set(value) - set(GROUPS)):
            raise ValueError(f"there is no group {sorted(wrong)[0]!r}; the groups are {', '.join(GROUPS)}")
        for group, names in named.items():
            if not names or len(set(names)) < len(names):
                raise ValueError(f"the rules of {group} are {list(names)}; give at least one, and none twice")
        return value

    @pydantic.field_validator("softmax", "magnitude")
    @classmethod
    def _choices_are_distinct(cls, value: tuple) -> tuple:
        if not value or len(set(value)) < len(value):
            raise ValueError(f"the choices are {list(value)}; give at least one, and none twice")
        return value

    @pydantic.field_validator("stabilizer", "gamma")
    @classmethod
    def _range_is_positive(cls, value: Range) -> Range:
        low, high = value
        if not (0 < low <= high and math.isfinite(high)):
            raise ValueError(f"the range is {low:g} to {high:g}; give two positive numbers, the smaller first")
        return value

    @classmethod
    def load(cls, path: str | Path) -> Space:
        """Read a space from a JSON or YAML file.

        Raises
        ------
        PxpError
            The file cannot be read, or does not describe a space.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            content = json.loads(text) if Path(path).suffix == ".json" else _yaml(text)
        except (OSError, ValueError) as error:
            if isinstance(error, PxpError):
                raise
            raise PxpError(f"cannot read the search space {path}: {error}; give a JSON or YAML file") from error
        return cls.of(content, str(path))

    @classmethod
    def of(cls, content: object, name: str = "the search space") -> Space:
        """The space of a mapping; raises PxpError where it is none."""
        try:
            return cls.model_validate(content)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "it"
            raise PxpError(f"{name} cannot be used: {where}: {first['msg']} (found {first['input']!r})") from error

    def rules_of(self, group: str) -> tuple[str, ...]:
        """The rules that a group of layers may have."""
        return self.rules.get(group, ("epsilon",)) if isinstance(self.rules, dict) else self.rules

    def suggest(self, trial: optuna.trial.BaseTrial, uses: Uses, flat: bool = False) -> Candidate:
        """The candidate of a trial, which is asked only for what makes a difference to the network.

        `flat` asks for the gamma of a group whatever its rule is, as a sampler needs that models all parameters at
        once.
        """
        stabilizer = _rounded(trial.suggest_float("stabilizer", *self.stabilizer, log=True))
        mapping: dict[str, Any] = {"name": "tuned", "stabilizer": stabilizer}
        for group in (group for group in GROUPS if group in uses.groups):
            name = _choice(trial, f"{group}.rule", self.rules_of(group))
            mapping[group] = {"rule": name}
            if name == "gamma" or (flat and "gamma" in self.rules_of(group)):
                gamma = _rounded(trial.suggest_float(f"{group}.gamma", *self.gamma, log=True))
                mapping[group] |= {"gamma": gamma} if name == "gamma" else {}
        if uses.softmax:
            mapping["softmax"] = _choice(trial, "softmax", self.softmax)
        return Candidate(Composite.from_mapping(mapping), _choice(trial, "magnitude", self.magnitude))

    def parameters_of(self, wanted: Candidate, uses: Uses, flat: bool = False) -> dict[str, Any] | None:
        """The parameters that make :meth:`suggest` give a candidate; None where the space does not hold it.

        A gamma that has no bearing is in the middle of its range.
        """
        from optuna.trial import FixedTrial

        described = wanted.composite.describe()
        parameters = {"stabilizer": described["stabilizer"], "magnitude": wanted.magnitude}
        if flat:
            parameters |= {f"{group}.gamma": math.sqrt(self.gamma[0] * self.gamma[1]) for group in uses.groups}
        if uses.softmax:
            parameters["softmax"] = described["softmax"]
        for group in uses.groups:
            given = described[group]
            values = {"rule": given} if isinstance(given, str) else dict(given)
            parameters |= {f"{group}.{name}": value for name, value in values.items() if name in ("rule", "gamma")}
        ranges = {name: self.stabilizer if name == "stabilizer" else self.gamma for name in parameters}
        numbers = {name: value for name, value in parameters.items() if name.endswith(("stabilizer", "gamma"))}
        if not all(ranges[name][0] <= value <= ranges[name][1] for name, value in numbers.items()):
            return None
        trial = FixedTrial(parameters)
        try:
            found = self.suggest(trial, uses, flat)
        except ValueError:  # a choice that is not offered
            return None
        if found.magnitude != wanted.magnitude or uses.key_of(found.composite) != uses.key_of(wanted.composite):
            return None
        return dict(trial.params)


class Uses(NamedTuple):
    """What of a composite bears on a network's scores.

    Attributes
    ----------
    groups
        The groups with a layer that relevance passes.
    softmax
        Whether relevance passes an attention.
    modules
        The names of the layers in question.
    """

    groups: tuple[str, ...]
    softmax: bool
    modules: tuple[str, ...]

    def key_of(self, composite: Composite) -> str:
        """:func:`key_of`, but for what has no bearing."""
        described = composite.describe()
        described |= {group: None for group in GROUPS if group not in self.groups}
        described |= {} if self.softmax else {"softmax": None}
        layers = {pattern: found.describe() for pattern, found in composite.layers if self._matches(pattern)}
        return key_of({**described, "layers": layers})

    def _matches(self, pattern: str) -> bool:
        return any(fnmatch.fnmatchcase(module, pattern) for module in self.modules)


def uses_of(captured: Captured, kinds: tuple[str, ...] | None) -> Uses:
    """Find what bears on the scores: only layers that pass relevance on to units below them have a say."""
    passing = _passing(captured, {site.node for site in find_units(captured, kinds)})
    layers = {node: group for node, group in groups_of(captured).items() if node in passing}
    softmax = any("softmax" in packet(node) or "attention" in packet(node) for node in passing)
    modules = tuple(module_of(node) for node in layers)
    return Uses(tuple(group for group in GROUPS if group in layers.values()), softmax, modules)


def _passing(captured: Captured, read: set[fx.Node]) -> set[fx.Node]:
    """The operators that take relevance further down, on its way to the nodes read."""
    reached, passing = set(read), set()
    for node in captured.nodes():
        if any(source in reached for source in receivers(node)):
            reached.add(node)
            passing.add(node)
    return passing


def _choice(trial: optuna.trial.BaseTrial, name: str, choices: tuple) -> Any:
    """One of the choices; where there is only one, it is no parameter of the search."""
    return choices[0] if len(choices) == 1 else trial.suggest_categorical(name, choices)


def _rounded(value: float) -> float:
    """Two digits: more say nothing, and make a file hard to read."""
    return float(f"{value:.2g}")


def _yaml(text: str) -> Mapping:
    try:
        import yaml
    except ImportError as error:
        raise PxpError("a YAML file needs pyyaml; install it with: pip install 'pxp_fast[tune]'") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
