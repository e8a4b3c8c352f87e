"""Plans: which units go at which rate, checked by hand."""

import dataclasses
import json
import random

import pytest
import torch
from oracles.networks import pictures, randomise
from torch import nn

import pxp_fast as pxp
from pxp_fast.errors import PlanError, PxpError


@pytest.fixture(scope="module")
def scores():
    """Scores of 8 filters and 12 neurons."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 12),
        nn.ReLU(),
        nn.Linear(12, 4),
    )
    images, labels = pictures(5, 8, classes=4)
    return pxp.score(randomise(model, images).double(), [(images.double(), labels)], model_name="tiny")


def with_values(scores, values: torch.Tensor):
    """The same scores with other numbers: `values` per unit, signed."""
    values = values.double() * scores.samples
    return dataclasses.replace(scores, totals=torch.stack((values, values.abs(), values.abs(), values.square())))


def removed(plan) -> set[tuple[str, int]]:
    return {(group.name, unit) for group in plan.groups for unit in group.removed}


def brute_force(scores, k: int, reverse: bool = False, magnitude: bool = True) -> set[tuple[str, int]]:
    entries, offset = [], 0
    values = scores.values(magnitude=magnitude).tolist()
    for group in scores.units:
        for unit in range(group.count):
            value = values[offset]
            entries.append((-value if reverse else value, offset, group.name, unit))
            offset += 1
    return {(name, unit) for _, _, name, unit in sorted(entries)[:k]}


@pytest.mark.parametrize("rate", [0, 0.05, 0.24, 0.25, 0.5, 0.95, 0.9999])
@pytest.mark.parametrize("order", ["least", "most"])
def test_a_global_plan_takes_the_first_k_of_the_ranking(scores, rate, order):
    plan = pxp.plan(scores, rate, scope="global", order=order)
    assert removed(plan) == brute_force(scores, int(20 * rate), reverse=order == "most")
    assert (plan.removed_count, plan.total_count) == (int(20 * rate), 20)


def test_each_kind_is_ranked_by_itself(scores):
    plan = pxp.plan(scores, 0.3)
    counts = {group.kind: len(group.removed) for group in plan.groups}
    assert counts == {"filter": int(8 * 0.3), "neuron": int(12 * 0.3)}
    filters = pxp.plan(scores, 0.3, units=["filter"])
    assert removed(filters) == {entry for entry in removed(plan) if entry[0] == "0"}
    assert filters.total_count == 8


def test_signed_and_absolute_rankings_differ_as_they_should(scores):
    values = torch.linspace(-1.0, 0.9, 20)
    signed = with_values(scores, values)
    assert removed(pxp.plan(signed, 0.25, scope="global", magnitude=False)) == {("0", i) for i in range(5)}
    nearest_zero = values.abs().argsort(stable=True)[:5].tolist()
    expected = {("0", i) if i < 8 else ("4", i - 8) for i in nearest_zero}
    assert removed(pxp.plan(signed, 0.25, scope="global")) == expected


@pytest.mark.parametrize("order", ["least", "most"])
def test_ties_go_by_index(scores, order):
    tied = with_values(scores, torch.ones(20))
    assert removed(pxp.plan(tied, 0.45, scope="global", order=order)) == {("0", i) for i in range(8)} | {("4", 0)}
    partly = torch.ones(20)
    partly[[3, 15]] = 0.5 if order == "least" else 2
    tied = with_values(scores, partly)
    assert removed(pxp.plan(tied, 0.2, scope="global", order=order)) == {("0", 3), ("4", 7), ("0", 0), ("0", 1)}


def test_k_is_rounded_down(scores):
    values = with_values(scores, torch.arange(20).double())
    for rate in pxp.RATES:
        assert pxp.plan(values, rate, scope="global").removed_count == int(20 * rate)


def test_the_twenty_rates():
    assert len(pxp.RATES) == 20 and list(pxp.RATES) == pytest.approx([0.05 * i for i in range(20)])
    assert pxp.RATES[0] == 0


def test_random_plans_follow_their_seed_and_ignore_the_scores(scores):
    other = with_values(scores, torch.arange(20).double())
    for seed in range(3):
        plan = pxp.plan(scores, 0.5, order="random", seed=seed, scope="global")
        assert plan.removed_count == 10
        assert removed(plan) == removed(pxp.plan(scores, 0.5, order="random", seed=seed, scope="global"))
        assert removed(plan) == removed(pxp.plan(other, 0.5, order="random", seed=seed, scope="global"))
        smaller = pxp.plan(scores, 0.3, order="random", seed=seed, scope="global")
        assert removed(smaller) < removed(plan), "one random order, cut at different places"
    plans = {frozenset(removed(pxp.plan(scores, 0.5, order="random", seed=s, scope="global"))) for s in range(8)}
    assert len(plans) > 6


def test_planning_leaves_the_global_random_state_alone(scores):
    torch.manual_seed(3)
    random.seed(3)
    before = torch.get_rng_state(), random.getstate()
    pxp.plan(scores, 0.5, order="random", seed=1)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == random.getstate()


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, 2, float("nan"), float("inf")])
def test_a_rate_outside_its_range_is_refused(scores, rate):
    with pytest.raises(PxpError, match="rate"):
        pxp.plan(scores, rate)


@pytest.mark.parametrize(
    "options", [{"order": "best"}, {"scope": "layers"}, {"norm": "some"}, {"absolute": "maybe"}, {"units": ["weight"]}]
)
def test_an_option_that_does_not_exist_is_named(scores, options):
    (name, value), *_ = options.items()
    with pytest.raises(PxpError, match=value[0] if isinstance(value, list) else value):
        pxp.plan(scores, 0.3, **options)


def test_a_file_brings_everything_back(scores, tmp_path):
    plan = pxp.plan(scores, 0.3)
    path = tmp_path / "plan.json"
    plan.save(path)
    assert json.loads(path.read_text())["rate"] == 0.3
    loaded = pxp.Plan.load(path, model_name="tiny")
    assert loaded == plan
    assert (loaded.rate, loaded.model, loaded.order) == (0.3, "tiny", "least")
    with pytest.raises(PlanError, match="tiny"):
        pxp.Plan.load(path, model_name="huge")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rate": 0.1}'])
def test_a_damaged_file_is_refused_by_its_path(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(PlanError, match="plan.json"):
        pxp.Plan.load(path)


def test_a_plan_that_removes_units_that_do_not_exist_is_refused(scores, tmp_path):
    path = tmp_path / "plan.json"
    pxp.plan(scores, 0.3).save(path)
    content = json.loads(path.read_text())
    content["groups"][0]["removed"] = [8]
    path.write_text(json.dumps(content))
    with pytest.raises(PlanError, match="plan.json"):
        pxp.Plan.load(path)
