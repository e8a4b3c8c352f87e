"""Planning in steps, against doing each of them by hand."""

import pytest
import torch
from test_plan import removed
from torch import nn

import pxp_fast as pxp
from pxp_fast.demo import network
from pxp_fast.errors import PlanError


def by_rate(rate, **options):
    return lambda scores, part, after: pxp.plan(scores, part * rate, after=after, **options)


def batch():
    generator = torch.Generator().manual_seed(3)
    return [(torch.randn(6, 1, 28, 28, generator=generator), torch.arange(6))]


@pytest.mark.parametrize("name", ["vgg", "vit"])
def test_every_step_scores_what_the_steps_before_left(name):
    model, images = network(name), batch()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = pxp.plan_in_steps(model, lambda left: pxp.score(left, images), 3, by_rate(0.45))
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(found.scores) == 3

    by_hand = network(name)
    gone: dict[str, set[int]] = {}
    for step in (1, 2, 3):
        scores = pxp.score(by_hand, images)
        assert torch.equal(scores.totals, found.scores[step - 1].totals)
        for kind in {group.kind for group in scores.units}:
            groups = [group for group in scores.units if group.kind == kind]
            count = int(sum(group.count for group in groups) * step / 3 * 0.45)
            entries = sorted(
                (-1.0 if unit in gone.get(g.name, ()) else float(value), order, unit, g.name)
                for order, g in enumerate(groups)
                for unit, value in enumerate(scores.of(g.name))
            )
            for _, _, unit, owner in entries[:count]:
                gone.setdefault(owner, set()).add(unit)
        planned = [
            group.model_copy(update={"removed": tuple(sorted(gone.get(group.name, ())))}) for group in found.plan.groups
        ]
        by_hand = network(name)
        pxp.apply_mask(by_hand, found.plan.model_copy(update={"groups": tuple(planned)}))
    assert removed(found.plan) == {(owner, unit) for owner, units in gone.items() for unit in units}
    assert removed(found.plan) != removed(pxp.plan(found.scores[0], 0.45)), "steps change the plan"


def test_one_step_is_scoring_once():
    model, images = network("vgg"), batch()
    found = pxp.plan_in_steps(model, lambda left: pxp.score(left, images), 1, by_rate(0.3))
    assert found.plan == pxp.plan(pxp.score(model, images), 0.3)


def test_paths_that_stand_in_for_each_other_do_not_go_together():
    """Two filters compute the same, and each looks dispensable while there is the other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2, bias=False)
    )

    def redundancy(left):
        """Scores a filter by how far it is from all others that are left."""
        rows = left[0].weight.detach().flatten(1)
        alive = rows.abs().sum(1) > 0
        apart = torch.cdist(rows, rows).fill_diagonal_(torch.inf)[:, alive].amin(1)
        scores = pxp.score(left, criterion="random", example=torch.zeros(1, 1, 4, 4))
        totals = torch.zeros_like(scores.totals) + apart.where(apart.isfinite(), 9.0)
        return type(scores)(scores.header, totals)

    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 1.0, 5.0, 7.0]).view(4, 1, 1, 1))
    at_once = pxp.plan_in_steps(model, redundancy, 1, by_rate(0.5))
    stepped = pxp.plan_in_steps(model, redundancy, 2, by_rate(0.5))
    assert removed(at_once.plan) == {("0", 0), ("0", 1)}
    assert removed(stepped.plan) == {("0", 0), ("0", 2)}


@pytest.mark.parametrize("steps", [0, 1.5])
def test_no_steps_are_refused(steps):
    with pytest.raises(PlanError, match="give a whole number from 1"):
        pxp.plan_in_steps(nn.Linear(2, 2), None, steps, None)
