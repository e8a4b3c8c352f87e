"""Units that can only be cut out together, ranked and removed as one."""

import pytest
import torch
from oracles.networks import pictures, randomise
from test_removable import Grouped, Squeezed
from torch import nn
from torchvision import models

import pxp_fast as pxp
from pxp_fast.errors import PlanError


def resnet():
    return models.ResNet(models.resnet.BasicBlock, [1, 2, 1, 1], num_classes=5)


def prepared(build):
    images = pictures(2, 32)[0]
    model, images = randomise(build(), images).double(), images.double()
    return model, pxp.score(model, criterion="random", example=images), pxp.Slimmer(model, images)


def test_the_classes_of_a_residual_network():
    """A stage's channels belong to its shortcut and to the last convolution of each of its blocks; others to one."""
    _, _, slimmer = prepared(resnet)
    found = slimmer.coupled()
    for members in (("conv1", "layer1.0.conv2"), ("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2")):
        first, *others = (found[name] for name in members)
        assert len(first.unique()) == len(first) and all(torch.equal(first, other) for other in others)
    every = torch.cat(list(found.values()))
    assert bool((every >= 0).all())
    counts = {name: int((every == own[0]).sum()) for name, own in found.items()}
    assert counts["layer2.1.conv1"] == counts["layer4.0.conv1"] == 1


@pytest.mark.parametrize("build", [resnet, Squeezed, Grouped])
def test_what_goes_is_cut_out(build):
    model, scores, slimmer = prepared(build)
    for rate in (0.2, 0.5, 0.8):
        plan = pxp.plan(scores, rate, units="coupled", slimmer=slimmer)
        record = slimmer.slim(plan).pxp_slim
        assert plan.removed_count > 0 and record.zeros == 0
        assert record.after.flops < record.before.flops


@pytest.mark.parametrize("coupling", ["mean", "sum", "max"])
def test_a_class_counts_by_the_scores_of_its_units(coupling):
    _, scores, slimmer = prepared(resnet)
    found = slimmer.coupled()
    classes, values = torch.cat(list(found.values())), scores.values()
    joined = {one: getattr(torch, coupling)(values[classes == one]).item() for one in classes.unique().tolist()}
    plan = pxp.plan(scores, 0.4, units="coupled", coupling=coupling, slimmer=slimmer)
    gone = torch.cat([~group.kept() for group in plan.groups])
    worst = max(joined[one] for one in classes[gone].tolist())
    # A layer's last unit stays whatever it scores, and so does a class that the rate would divide.
    firm = [g.name for g in plan.groups if g.count - len(g.removed) > 1]
    kept = [one for name in firm for one in found[name].tolist() if one not in set(classes[gone].tolist())]
    assert sum(joined[one] < worst for one in kept) == 0
    assert int(gone.sum()) > 0.35 * len(gone)


def test_what_cannot_go_stays():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(3, 6, 3), nn.LayerNorm(6), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.norm(self.conv(x).mean((2, 3))))

    _, scores, slimmer = prepared(Normed)
    assert bool((slimmer.coupled()["conv"] == -1).all())
    assert pxp.plan(scores, 0.5, units="coupled", slimmer=slimmer).removed_count == 0
    with pytest.raises(PlanError, match="pass slimmer"):
        pxp.plan(scores, 0.5, units="coupled")
    with pytest.raises(PlanError, match="coupling is 'median'"):
        pxp.plan(scores, 0.5, units="coupled", coupling="median", slimmer=slimmer)
