"""Rules by name, what cannot be one, and rules of one's own."""

import dataclasses
import inspect
import textwrap
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from oracles.definition import Definition
from oracles.engine import relative_l1
from oracles.networks import pictures
from oracles.operators import Sandwich, build_network, conv
from torch import nn

from pxp_fast.criteria import attribute
from pxp_fast.errors import PxpError
from pxp_fast.lrp import Composite, registry
from pxp_fast.lrp.registry import RULES, Part, Rule, register, rule
from pxp_fast.lrp.weighted_rules import Block, Epsilon, Gamma, Pass


def everywhere(given, **options) -> Composite:
    return Composite(layers=(("*", rule(given)),), **options)


@pytest.fixture
def rules_restored():
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def example_of(place: str) -> str:
    """The code of a rule of one's own, as a place of the documentation has it."""
    if place == "docstring":
        return textwrap.dedent(inspect.getdoc(Rule).split("is one small class::")[1].split("and from then on")[0])
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()
    return page.split("A rule of your own is one class:")[1].split("```python\n")[1].split("```")[0]


@pytest.mark.parametrize(
    ("dtype", "place"), [(torch.float64, "docstring"), (torch.float32, "docstring"), (torch.float64, "page")]
)
def test_the_rule_of_the_documentation_works(rules_restored, tmp_path, dtype, place):
    """The examples of `Rule` and of the page, as they stand there, against what they say they are."""
    namespace = {"dataclasses": dataclasses, "ClassVar": ClassVar, "Rule": Rule, "Part": Part, "register": register}
    exec(example_of(place), namespace)
    if place == "page":
        namespace["composite"].save(tmp_path / "mine.json")
        assert Composite.load(tmp_path / "mine.json").low == rule("magnitude")
    torch.manual_seed(0)
    model, images, labels = build_network(Sandwich, lambda: conv(6, 3, padding=1))

    def magnitude(name, affine, x, relevance, eps):
        from oracles.rule_definitions import dense

        matrix, _ = dense(affine, x)
        parts = (matrix * x.flatten(1)[:, None]).abs()
        shares = parts / (parts.sum(2, keepdim=True) + eps)
        return torch.einsum("nj,nji->ni", relevance.flatten(1), shares).view(x.shape)

    truth = Definition(model, affine=magnitude)(images, labels)
    found = attribute(model.to(dtype), images.to(dtype), labels, composite=everywhere("magnitude"))
    assert relative_l1(found, truth.input) < (1e-10 if dtype == torch.float64 else 1e-5)


def test_rules_by_name_mapping_and_back():
    for name in ("epsilon", "z-plus", "gamma", "alpha-beta", "flat", "w-square", "pass", "norm", "block"):
        assert rule(name).name == name
        assert rule(rule(name).describe()) == rule(name) == rule(rule(name))
    assert rule("gamma").describe() == {"rule": "gamma", "gamma": 0.25}
    assert rule({"rule": "gamma", "gamma": 1, "stabilizer": 0.1}).describe() == {
        "rule": "gamma", "gamma": 1, "stabilizer": 0.1,
    }  # fmt: skip
    assert (rule("alpha-beta").alpha, rule("alpha-beta").beta) == (2, 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("zplus", "rule 'zplus' is not known; choose one of epsilon, norm, z-plus"),
        ({"rule": "gamma", "gama": 1}, "rule gamma has no parameter gama; its parameters are gamma, stabilizer"),
        ({"rule": "block", "gamma": 1}, "rule block has no parameter gamma; it has none"),
        ({"gamma": 1}, "pass a name, or a mapping"),
        (3, "pass a name, or a mapping"),
        ({"rule": "gamma", "gamma": -1}, "gamma is -1; it must be a finite number >= 0"),
        ({"rule": "gamma", "gamma": "big"}, "gamma is 'big'"),
        ({"rule": "epsilon", "epsilon": float("nan")}, "epsilon is nan"),
        ({"rule": "z-plus", "stabilizer": float("inf")}, "stabilizer is inf"),
        ({"rule": "alpha-beta", "alpha": 2, "beta": 2}, "alpha is 2 and beta 2; alpha - beta must be 1"),
        ({"rule": "alpha-beta", "alpha": None}, "alpha is None; it must be a finite number >= 0"),
        ({"rule": "gamma", "gamma": None}, "gamma is None"),
        ({"rule": "gamma", "gamma": 10**400}, "gamma is 1000.*it must be a finite number"),
        ({"rule": "epsilon", "epsilon": True}, "epsilon is True"),
    ],
)
def test_rules_that_cannot_be(given, message):
    with pytest.raises(PxpError, match=message):
        rule(given)


def test_a_name_belongs_to_one_rule(rules_restored):
    @dataclasses.dataclass(frozen=True)
    class Another(Rule):
        name: ClassVar[str] = "gamma"

    with pytest.raises(PxpError, match="'gamma' is already that of pxp_fast.lrp.weighted_rules.Gamma"):
        registry.register(Another)
    Another.__qualname__ = "Gamma"  # a user's own, in a module of its own
    with pytest.raises(PxpError, match="test_registry.Gamma: the name 'gamma' is already that of pxp_fast"):
        registry.register(Another)
    assert RULES["gamma"] is Gamma
    with pytest.raises(PxpError, match="the name '' is empty"):
        registry.register(type("Nameless", (Rule,), {}))


class Doubled:
    """Hands on twice what the rule it is mixed into does."""

    def propagate(self, layer):
        found = super().propagate(layer)
        return 2 * (layer.relevance if found is None else found if isinstance(found, torch.Tensor) else found.tensor())


@pytest.mark.parametrize(("base", "factor"), [(Epsilon, 2), (Pass, 2), (Block, 0)])
def test_a_rule_made_of_a_built_in_one_is_not_taken_for_it(rules_restored, base, factor):
    """Only what changes nothing of how a rule propagates may go the quick way."""
    plain = type("Plain", (base,), {"name": "plain"})
    own = type("Own", (Doubled, base) if factor else (Everything, base), {"name": "own"})
    for one in (plain, own):
        register(dataclasses.dataclass(frozen=True)(one))
    torch.manual_seed(0)
    images, labels = pictures(2, 6, classes=3)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(), nn.Linear(108, 3)).double()
    heat = {
        name: attribute(model, images.double(), labels, composite=Composite(layers={"0": name}))
        for name in (base.name, "plain", "own")
    }
    assert torch.equal(heat["plain"], heat[base.name])
    if factor:
        assert relative_l1(heat["own"], factor * heat[base.name]) < 1e-12 and heat["own"].any()
    else:
        assert heat["own"].any() and not heat["plain"].any()


class Everything:
    """Lets all of the relevance through what lets none."""

    spreads = True

    def propagate(self, layer):
        return layer.relevance


def test_a_rule_that_goes_by_another_ones_name_is_refused():
    class Sharper(Epsilon):
        def propagate(self, layer):
            return super().propagate(layer)

    with pytest.raises(PxpError, match="Sharper is not registered as rule 'epsilon'"):
        Composite(low=Sharper())
