"""Integrated gradients against captum's internal influence and layer conductance."""

import copy

import pytest
import torch
from captum.attr import InternalInfluence, LayerConductance
from criteria_networks import batch, cnn, folding, heads, vit
from oracles.engine import by_unit
from oracles.explicit_vit import from_timm
from torch import nn

from pxp_fast.criteria import criterion
from pxp_fast.errors import PxpError

STEPS = 4


def influence(model, layer, images, labels, **options):
    method = InternalInfluence(model, layer)
    return method.attribute(images, 0.0, target=labels, n_steps=STEPS, method="riemann_right", **options)


def conductance(model, layer, images, labels, **options):
    """The trapezoid rule: the mean of the left rule and of the right one, the latter by walking the way backwards."""
    options = {"target": labels, "n_steps": STEPS, "method": "riemann_trapezoid", **options}
    forward = LayerConductance(model, layer).attribute(images, torch.zeros_like(images), **options)
    return (forward - LayerConductance(model, layer).attribute(torch.zeros_like(images), images, **options)) / 2


FORMS = {"influence": influence, "conductance": conductance}


def expected(at):
    """Signed and absolute sums over positions, of ``[N, U, positions]``."""
    return torch.stack((at.sum(2), at.abs().sum(2)))


@pytest.mark.parametrize("form", FORMS)
def test_a_convolutional_network_as_captum_says(form):
    model, (images, labels) = cnn(), batch()
    found = criterion("integrated-gradients", model, images, steps=STEPS, form=form)
    sums = by_unit(found, found.run(images, labels))
    judge = copy.deepcopy(model)
    judge.relu = nn.ReLU()
    for unit, layer in (("left", judge.norm), ("right", judge.right), ("inner", judge.inner_norm), ("mlp", judge.mlp)):
        at = FORMS[form](judge, layer, images, labels)
        at = at.flatten(2) if at.dim() == 4 else at.unsqueeze(-1)
        torch.testing.assert_close(sums[unit], expected(at), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_a_transformer_as_captum_says(form):
    model, (images, labels) = vit(), batch()
    found = criterion("integrated-gradients", model, images, steps=STEPS, form=form)
    sums = by_unit(found, found.run(images, labels))
    judge = from_timm(model)
    for block, layers in enumerate(judge.blocks):
        for name in ("fc1", "fc2"):
            at = FORMS[form](judge, getattr(layers, name), images, labels).transpose(1, 2)
            torch.testing.assert_close(sums[f"blocks.{block}.mlp.{name}"], expected(at), rtol=1e-8, atol=1e-12)
        at = FORMS[form](judge, layers.attn.out, images, labels, attribute_to_layer_input=True)
        at = heads(at, 3) if form == "influence" else heads(at, 3).sum(3, keepdim=True)
        at = at.transpose(1, 2).flatten(2)
        torch.testing.assert_close(sums[f"blocks.{block}.attn"], expected(at), rtol=1e-8, atol=1e-12)


def test_a_layer_that_all_of_the_signal_passes_conducts_the_change_of_the_logit():
    model, (images, labels) = cnn(), batch()
    found = criterion("integrated-gradients", model, images, steps=400, form="conductance", kinds=("neuron",))
    conducted = found.run(images, labels)[0].sum(1)
    with torch.no_grad():
        change = (model(images) - model(torch.zeros_like(images)))[range(3), labels]
    torch.testing.assert_close(conducted, change, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("network", [folding, vit])
def test_images_do_not_depend_on_how_they_and_their_steps_are_batched(network, form):
    """13 images of 4 or 5 points each are taken 3 or 2 at a time; windows and tokens are folded in between."""
    model, (images, labels) = network(), batch(13)
    found = criterion("integrated-gradients", model, images, steps=STEPS, form=form)
    whole = found.run(images, labels)
    single = [found.run(images[n : n + 1], labels[n : n + 1]) for n in range(13)]
    torch.testing.assert_close(whole, torch.cat(single, dim=1), rtol=1e-9, atol=1e-13)


def test_one_step_of_influence_is_the_gradient():
    model, (images, labels) = folding(), batch()
    influence = criterion("integrated-gradients", model, images, steps=1).run(images, labels)
    torch.testing.assert_close(influence, criterion("gradient", model, images).run(images, labels))


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "20"])
def test_steps_are_a_positive_number(steps):
    with pytest.raises(PxpError, match="steps is .*; pass a whole number of at least 1"):
        criterion("integrated-gradients", cnn(), batch()[0], steps=steps)
