"""Scopes, rounding, and plans that go on from others, against what sorting by hand gives."""

import math

import pytest
import torch
from test_plan import removed, with_values
from torch import nn

import pxp_fast as pxp
from pxp_fast.errors import PlanError
from pxp_fast.ranking import rounding
from pxp_fast.scopes import positions


class Block(nn.Module):
    """Half as many filters in the second convolution, whose input is kept for the next block."""

    def __init__(self, inputs, width):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(inputs, width, 3, padding=1), nn.Conv2d(width, inputs, 1)

    def forward(self, x):
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x))))


@pytest.fixture(scope="module")
def scores():
    """Of 6 + (20 + 6) + (30 + 6) filters and 10 neurons, all with different values."""
    torch.manual_seed(0)
    blocks = nn.Sequential(Block(6, 20), Block(6, 30))
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3)
    )
    found = pxp.score(model, [(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))], model_name="blocks")
    values = torch.rand(sum(group.count for group in found.units), generator=torch.Generator().manual_seed(1))
    return with_values(found, values)


def least(scores, among, rate):
    """The first of all units of some groups, by sorting."""
    ranked = sorted((float(v), n, u) for n in among for u, v in enumerate(scores.of(n)))
    return {(name, unit) for _, name, unit in ranked[: int(len(ranked) * rate)]}


POOLS = {
    "global": [["0", "1.0.conv1", "1.0.conv2", "1.1.conv1", "1.1.conv2", "4"]],
    "kind": [["0", "1.0.conv1", "1.0.conv2", "1.1.conv1", "1.1.conv2"], ["4"]],
    "layer": [["0"], ["1.0.conv1"], ["1.0.conv2"], ["1.1.conv1"], ["1.1.conv2"], ["4"]],
    "isomorphic": [["0"], ["1.0.conv1", "1.1.conv1"], ["1.0.conv2", "1.1.conv2"], ["4"]],
}


@pytest.mark.parametrize("scope", POOLS)
@pytest.mark.parametrize("rate", [0.1, 0.35, 0.9])
def test_a_scope_ranks_the_units_that_it_says(scores, scope, rate):
    expected = set().union(*(least(scores, pool, rate) for pool in POOLS[scope]))
    plan = pxp.plan(scores, rate, scope=scope)
    assert removed(plan) == expected
    assert plan.scope == scope and pxp.Plan.model_validate_json(plan.model_dump_json()) == plan


NAMES = {
    "layer1.0.conv1": "layer*.*.conv1", "layer1.0.conv2": "layer*.*.conv2", "layer1.1.conv1": "layer*.*.conv1",
    "layer1.1.conv2": "layer*.*.conv2", "layer2.0.conv1": "layer*.*.conv1", "layer2.0.conv2": "layer*.*.conv2",
    "layer2.0.downsample.0": "layer*.*.downsample.0", "conv1": "conv*",
}, {
    "features.0": "features.*", "features.3": "features.*", "classifier.0": "classifier.*",
}, {
    "blocks.0.attn": "blocks.*.attn", "blocks.0.mlp.0": "blocks.*.mlp.0", "blocks.0.mlp.3": "blocks.*.mlp.3",
    "blocks.1.attn": "blocks.*.attn", "blocks.1.mlp.0": "blocks.*.mlp.0", "blocks.1.mlp.3": "blocks.*.mlp.3",
}, {
    "stem.conv": "stem.conv", "s1.b1.conv1.conv": "s*.b*.conv1.conv", "s1.b1.conv2.conv": "s*.b*.conv2.conv",
    "s2.b1.conv1.conv": "s*.b*.conv1.conv", "s2.b1.conv2.conv": "s*.b*.conv2.conv",
    "s2.b2.conv1.conv": "s*.b*.conv1.conv", "s2.b2.conv2.conv": "s*.b*.conv2.conv",
}, {
    "features.1.block.0.0": "features.*.block.0.0", "features.1.block.1.0": "features.*.block.1.0",
    "features.2.block.0.0": "features.*.block.0.0", "features.2.block.1.0": "features.*.block.1.0",
    "features.0.0": "features.*.0",
}  # fmt: skip


@pytest.mark.parametrize("expected", NAMES)
def test_positions_of_the_names_that_networks_have(expected):
    assert positions(expected) == expected


@pytest.mark.parametrize("multiple", [4, 8])
@pytest.mark.parametrize("scope", ["kind", "global"])
def test_rounding_keeps_the_most_relevant_of_what_would_go(scores, multiple, scope):
    for rate in (0, 0.2, 0.5, 0.75, 0.99):
        plain, rounded = pxp.plan(scores, rate, scope=scope), pxp.plan(scores, rate, scope=scope, round_to=multiple)
        for before, after in zip(plain.groups, rounded.groups, strict=True):
            planned, width = before.count - len(before.removed), after.count - len(after.removed)
            assert width == min(max(math.ceil(planned / multiple) * multiple, multiple), before.count)
            by_relevance = scores.of(before.name).argsort()[: len(after.removed)].tolist()
            assert set(after.removed) == set(by_relevance) <= set(before.removed)


def test_heads_are_as_wide_as_their_channels():
    from pxp_fast.demo import network

    scores = pxp.score(network("vit"), criterion="random", example=torch.zeros(1, 1, 28, 28))
    widths = {g.name: 16 for g in scores.units if g.kind == "head"}  # of 64 channels in 4 heads
    for multiple, heads in ((16, 1), (32, 2), (64, 4), (24, 3)):
        plan = pxp.plan(scores, 0.4, units="head", scope="layer", round_to=multiple)
        for group in plan.groups:
            left = group.count - len(group.removed)
            assert left == max(heads, math.ceil(3 / heads) * heads) if heads < 4 else left == 4
            assert left == 4 or left * widths[group.name] % multiple == 0


def test_32_bytes_of_every_type():
    assert {dtype: rounding(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)} == {
        torch.float64: 4, torch.float32: 8, torch.bfloat16: 16, torch.float16: 16
    }  # fmt: skip


@pytest.mark.parametrize("order", ["least", "most", "random"])
def test_a_plan_goes_on_from_another(scores, order):
    first = pxp.plan(scores, 0.3, order="random", seed=7)
    plan = pxp.plan(scores, 0.5, order=order, after=first)
    assert removed(first) < removed(plan)
    assert [len(g.removed) for g in plan.groups if g.kind == "neuron"] == [5]
    own = [(n, u) for n in POOLS["kind"][0] for u in range(len(scores.of(n))) if (n, u) not in removed(first)]
    more = sum(len(g.removed) for g in plan.groups[:5]) - sum(len(g.removed) for g in first.groups[:5])
    assert more == int(68 * 0.5) - int(68 * 0.3)
    if order != "random":
        ranked = sorted(own, key=lambda at: float(scores.of(at[0])[at[1]]), reverse=order == "most")
        assert {at for at in removed(plan) if at[0] != "4"} == set(ranked[:more]) | {
            at for at in removed(first) if at[0] != "4"
        }
    assert removed(pxp.plan(scores, 0.1, after=first)) == removed(first), "what is gone stays gone"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"units": "removable"}, "pass slimmer=Slimmer"),
        ({"round_to": 0}, "round_to is 0; give a whole number"),
        ({"round_to": 2.5}, "round_to is 2.5"),
        ({"units": ["filter", "weights"]}, r"units \['weights'\] were not scored"),
    ],
)
def test_what_cannot_be_planned_is_refused(scores, options, message):
    with pytest.raises(PlanError, match=message):
        pxp.plan(scores, 0.3, **options)
