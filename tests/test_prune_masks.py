"""Masks of torch.nn.utils.prune made from a plan: the logits of the masked model, while training and for good."""

import copy

import pytest
import torch
from small_families import logits, network
from torch import nn
from torch.nn.utils import prune

import pxp_fast as pxp


def pruned_parameters(model):
    return [
        (m, name.removesuffix("_orig")) for m in model.modules() for name in m._parameters if name.endswith("_orig")
    ]


@pytest.mark.parametrize("norm", ["both", "layer"])
@pytest.mark.parametrize("family", ["vgg", "resnet, bottleneck", "densenet", "deit", "vit", "swin"])
def test_logits_are_those_of_the_masked_model(family, norm):
    model, images, _, scores = network(family)
    plan = pxp.plan(scores, 0.4, norm=norm)
    with pxp.masked(model, plan):
        expected = logits(model, images)
    held = {name: p.detach().clone() for name, p in model.named_parameters()}
    found = copy.deepcopy(model)
    assert pxp.prune_masks(found, plan) is found
    assert torch.equal(logits(found, images), expected)
    touched = pruned_parameters(found)
    assert touched and all(prune.is_pruned(module) for module, _ in touched)
    for module, name in touched:
        prune.remove(module, name)
    assert torch.equal(logits(found, images), expected)
    assert found.state_dict().keys() == model.state_dict().keys() and not prune.is_pruned(found)
    assert all(torch.equal(held[name], p) for name, p in model.named_parameters())


def test_training_leaves_what_is_masked_at_zero():
    model, images, _, scores = network("deit")
    plan = pxp.plan(scores, 0.4)
    found = pxp.prune_masks(copy.deepcopy(model), plan)
    optimiser = torch.optim.SGD(found.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        found(images).square().sum().backward()
        optimiser.step()
    trained = logits(found, images)
    for module, name in pruned_parameters(found):
        prune.remove(module, name)
    assert not torch.allclose(trained, logits(model, images))
    with pxp.masked(found, plan):
        assert torch.equal(logits(found, images), trained)


def test_tied_weights_are_masked_wherever_they_are_used():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.one, self.two = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1)
            self.two.weight = self.one.weight
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            return self.head(self.two(self.one(self.stem(x)).relu()).relu().mean((2, 3)))

    model, images = Tied().eval(), torch.randn(2, 3, 5, 5)
    groups = pxp.plan(pxp.score(model, criterion="magnitude", example=images), 0.5)
    with pxp.masked(model, groups):
        expected = logits(model, images)
    found = pxp.prune_masks(model, groups)
    assert torch.equal(logits(found, images), expected)
    assert found.one.weight_orig is found.two.weight_orig


def test_a_plan_for_another_model_changes_nothing():
    model = copy.deepcopy(network("deit")[0])
    plan = pxp.plan(network("vit")[3], 0.4)
    with pytest.raises(pxp.PxpError, match="plan for this model"):
        pxp.prune_masks(model, plan)
    assert not prune.is_pruned(model)
