"""Composites: which rule each operator of a network gets."""

from __future__ import annotations

import dataclasses
import os
import reprlib
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from ..errors import PxpError
from .composite_files import read, write
from .groups import GROUPS
from .registry import Rule, is_size, rule
from .softmax import SOFTMAX_RULES
from .weighted_rules import UNWEIGHTED, AlphaBeta, Epsilon, Gamma, ZPlus


@dataclasses.dataclass(frozen=True)
class Composite:
    """The rules of one attribution, and their parameters.

    What is not weighted has one rule in every composite: activations pass, sums and average pools get the norm rule,
    batch norms are part of the layer before them, products are split evenly (AttnLRP, Achtibat et al., 2024,
    arXiv 2402.05602).

    Attributes
    ----------
    name
        For people. The name of a preset stands for that preset's rules (with any stabilizer) and for no others.
    stabilizer
        The epsilon added, with the sign of the value, to every denominator (Bach et al., 2015, eq. 58). 0 gives LRP-0,
        which on a ReLU network with the epsilon rule is activation times gradient.
    low, mid, high, fully_connected
        The rules of the four groups of layers; see :mod:`pxp_fast.lrp.groups`. A :class:`Rule`, its name, or a mapping
        such as ``{"rule": "gamma", "gamma": 0.1}``.
    softmax
        The rule of attention's softmax: ``"epsilon"``, ``"z-plus"``, ``"z-plus-bias"`` or ``"cp"``; see
        :mod:`pxp_fast.lrp.softmax`.
    layers
        Rules of single layers: pairs, or a mapping, of a pattern of module names (``"blocks.0.*"``, ``"*.fc1"``; as in
        :mod:`fnmatch`) and a rule. The first pattern that matches counts, before the layer's group.
    """

    name: str = "custom"
    stabilizer: float = 1e-6
    low: Rule = Epsilon()
    mid: Rule = Epsilon()
    high: Rule = Epsilon()
    fully_connected: Rule = Epsilon()
    softmax: str = "epsilon"
    layers: tuple[tuple[str, Rule], ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise PxpError(f"the name of a composite is {reprlib.repr(self.name)}; give it a few letters")
        if not is_size(self.stabilizer):
            found = reprlib.repr(self.stabilizer)
            raise PxpError(f"stabilizer is {found}; it must be a finite number >= 0 (default 1e-6)")
        if self.softmax not in SOFTMAX_RULES:
            found = reprlib.repr(self.softmax)
            raise PxpError(f"softmax rule {found} is not known; choose one of {', '.join(SOFTMAX_RULES)}")
        for group in GROUPS:
            object.__setattr__(self, group, _rule(getattr(self, group), f"group {group}"))
        object.__setattr__(self, "layers", _layers(self.layers))
        preset = PRESETS.get(self.name)
        if preset is not None and preset.describe() | {"stabilizer": self.stabilizer} != self.describe():
            raise PxpError(
                f"a composite named {self.name!r} must have the rules of that preset: give these rules another name, "
                f"or take the preset itself, composite({self.name!r})"
            )

    def rule_of(self, group: str, module: str) -> Rule:
        """The rule of a layer, given its group and the name of its module."""
        return self.named(module) or getattr(self, group)

    def named(self, module: str) -> Rule | None:
        """The rule that `layers` has for a module; None: none."""
        return next((found for pattern, found in self.layers if fnmatchcase(module, pattern)), None)

    @property
    def group_rules(self) -> tuple[Rule, ...]:
        """The rules of the groups."""
        return tuple(getattr(self, group) for group in GROUPS)

    def check_patterns(self, layers: Collection[str], others: Collection[str]) -> None:
        """Raise PxpError unless every rule of `layers` can act somewhere; a preset's need not.

        Parameters
        ----------
        layers
            The modules of a network's convolutions and linear layers.
        others
            Those of its sums, pools and norms.
        """
        for pattern, found in () if self.name in PRESETS else self.layers:
            if any(fnmatchcase(module, pattern) for module in layers):
                continue
            other = next((module for module in others if fnmatchcase(module, pattern)), None)
            if other is None:
                known = ", ".join(list(layers)[:8]) + (" ..." if len(layers) > 8 else "")
                raise PxpError(
                    f"composite {self.name!r} has a rule for layers {pattern!r}, but none is called so (batch norms "
                    f"belong to the layer before them); the convolutions and linear layers are {known}"
                )
            if not found.follows(UNWEIGHTED):
                raise PxpError(
                    f"composite {self.name!r} has rule {found.name} for {pattern!r}, but {other} is no convolution or "
                    f"linear layer: there {', '.join(kind.name for kind in UNWEIGHTED)} act, and no other"
                )

    def describe(self) -> dict:
        """The composite as JSON-able data, from which :meth:`from_mapping` makes it again."""
        described = {"name": self.name, "stabilizer": self.stabilizer}
        described |= {group: _short(getattr(self, group)) for group in GROUPS}
        described["softmax"] = self.softmax
        if self.layers:
            described["layers"] = {pattern: _short(found) for pattern, found in self.layers}
        return described

    @classmethod
    def from_mapping(cls, given: Mapping) -> Composite:
        """The composite that :meth:`describe` described; whatever is left out has its default.

        Raises
        ------
        PxpError
            An unknown key, group, rule or parameter, or a value that cannot be.
        """
        if not isinstance(given, Mapping):
            raise PxpError(
                f"a composite is {reprlib.repr(given)}; it must be a mapping such as "
                '{"name": "mine", "low": "z-plus", "mid": {"rule": "gamma", "gamma": 0.1}}'
            )
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [key for key in given if key not in known]:
            raise PxpError(f"a composite has no {reprlib.repr(unknown[0])}; it has {', '.join(known)}")
        values = dict(given)
        if "stabilizer" in values:
            values["stabilizer"] = _number(values["stabilizer"])
        return cls(**values)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the composite as a small file, YAML where `path` ends in .yaml or .yml (needs PyYAML), else JSON."""
        write(self.describe(), path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Composite:
        """Read a composite from a YAML or JSON file.

        Raises
        ------
        PxpError
            The file cannot be read, is too large, or holds no composite; or it is YAML and PyYAML is not installed.
        """
        content = read(path)
        try:
            return cls.from_mapping(content)
        except PxpError as error:
            raise PxpError(f"{os.fspath(path)}: {error}") from error


def _rule(given: object, where: str) -> Rule:
    if isinstance(given, Mapping):
        given = {key: value if key == "rule" else _number(value) for key, value in given.items()}
    try:
        return rule(given)
    except PxpError as error:
        raise PxpError(f"{where}: {error}") from error


def _layers(given: object) -> tuple[tuple[str, Rule], ...]:
    pairs = given.items() if isinstance(given, Mapping) else given
    try:
        pairs = [(pattern, found) for pattern, found in pairs]
    except (TypeError, ValueError):
        pairs = [(None, None)]
    if not all(isinstance(pattern, str) for pattern, _ in pairs):
        raise PxpError(
            f"layers is {reprlib.repr(given)}; it must map patterns of module names to rules, such as "
            '{"*.fc1": "z-plus"}'
        )
    return tuple((pattern, _rule(found, f"layers {pattern!r}")) for pattern, found in pairs)


def _number(value: object) -> object:
    """The number that is written as text: YAML 1.1 reads ``1e-6`` as such."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _short(found: Rule) -> str | dict:
    """A rule as it is written in files: its name alone where that says everything."""
    described = found.describe()
    return found.name if len(described) == 1 else described


PRESETS: dict[str, Composite] = {}
"""Composites by name. Where one is an opinion of a paper, the comment says whose."""

_PLUS = {"low": ZPlus(), "mid": ZPlus(), "high": ZPlus()}
_ATTNLRP = {group: Gamma(0.05) for group in GROUPS}
PRESETS |= {
    preset.name: preset
    for preset in (
        # The epsilon rule everywhere: Bach et al. (2015); attention by AttnLRP.
        Composite("epsilon"),
        # z-plus below the classifier: Montavon et al. (2019), as zennit's EpsilonPlus on a CNN.
        Composite("epsilon-plus", **_PLUS),
        # gamma 0.25 below the classifier: Montavon et al. (2019).
        Composite("epsilon-gamma", low=Gamma(), mid=Gamma(), high=Gamma()),
        # alpha 2, beta 1 below the classifier: Bach et al. (2015), as zennit's EpsilonAlpha2Beta1 on a CNN.
        Composite("alpha2-beta1", low=AlphaBeta(), mid=AlphaBeta(), high=AlphaBeta()),
        # Achtibat et al. (2024), for ViTs: gamma 0.05 on linear layers, 0.25 on the patch embedding.
        Composite("attnlrp", **_ATTNLRP, layers=(("*patch_embed.proj", Gamma(0.25)), ("conv_proj", Gamma(0.25)))),
        # Ali et al. (2022): attention weights are constants.
        Composite("cp-lrp", softmax="cp"),
        # Our reading of Hatefi et al. (2024): on CNNs the faithful z-plus composite prunes well.
        Composite("pxp-cnn", **_PLUS),
        # Hatefi et al. (2024): what their published configuration file sets for ViT-B/16: epsilon throughout. It does
        # not hold the composite that their search found.
        Composite("pxp-vit"),
        # Hatefi et al. (2024): the z-plus heuristic that explains ViTs faithfully and prunes them less well.
        Composite("pxp-vit-faithful", **_PLUS),
    )
}


def composite(given: str | os.PathLike[str] | Mapping | Composite) -> Composite:
    """A composite by the name of a preset, by the path of its file, from a mapping, or as it is."""
    if isinstance(given, Composite):
        return given
    if isinstance(given, Mapping):
        return Composite.from_mapping(given)
    if isinstance(given, str) and given in PRESETS:
        return PRESETS[given]
    if isinstance(given, os.PathLike) or isinstance(given, str) and (os.path.splitext(given)[1] or os.sep in given):
        return Composite.load(given)
    raise PxpError(
        f"composite {reprlib.repr(given)} is not known; choose one of {', '.join(PRESETS)}, or give a YAML or JSON file"
    )
