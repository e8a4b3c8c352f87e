"""Gradient and Taylor: brute force on single units, autograd on the networks themselves, and LRP-0."""

import pytest
import torch
from criteria_networks import CLASSES, SIZE, at_modules, batch, cnn, folding, heads, vit
from oracles.engine import by_unit
from oracles.explicit_vit import from_timm
from oracles.networks import pictures, randomise
from torch import nn

from pxp_fast.criteria import criterion
from pxp_fast.lrp import Composite


def explained(model, images, labels, of):
    logits = model(images)
    if of == "loss":
        return nn.functional.cross_entropy(logits, labels, reduction="none")
    return logits[range(len(labels)), labels]


@torch.no_grad()
def slope(model, change, images, labels, of, step=1e-5):
    """The derivative of each sample's logit (or loss) by what ``change(step)`` does to the parameters and undoes."""
    sides = []
    for sign in (1, -1):
        undo = change(sign * step)
        sides.append(explained(model, images, labels, of))
        undo()
    return (sides[0] - sides[1]) / (2 * step)


def scaling(model, group, unit):
    """All that makes or reads a unit's output, times ``1 + step``: the last norm, or else weight and bias."""
    parameters = dict(model.named_parameters())
    roles = {piece.role for piece in group.slices}
    pieces = [p for p in group.slices if p.role == ("norm" if "norm" in roles else "layer")]

    def change(step):
        before = [parameters[p.parameter].clone() for p in pieces]
        for piece in pieces:
            own = slice(unit * piece.block, (unit + 1) * piece.block)
            parameters[piece.parameter].movedim(piece.dim, 0)[own] *= 1 + step
        return lambda: [parameters[p.parameter].copy_(b) for p, b in zip(pieces, before, strict=True)]

    return change


def shifting(model, group, unit):
    """A unit's output plus `step` at every position: through the last bias."""
    name = [p.parameter for p in group.slices if p.parameter.endswith("bias")][-1]
    bias = dict(model.named_parameters())[name]

    def change(step):
        before = bias.clone()
        bias[unit] += step
        return lambda: bias.copy_(before)

    return change


@pytest.mark.parametrize("of", ["logit", "loss"])
@pytest.mark.parametrize("network", [cnn, folding, vit])
def test_taylor_is_the_slope_when_a_unit_is_scaled_and_gradient_when_it_is_shifted(network, of):
    model, (images, labels) = network(), batch()
    for name, change in (("taylor", scaling), ("gradient", shifting)):
        found = criterion(name, model, images, of=of)
        sums = by_unit(found, found.run(images, labels))
        compared = 0
        for group in found.units:
            shared = group.name == "shared"  # scaled, its second use also reads what the first scaled
            if (name == "gradient" and not any(p.parameter.endswith("bias") for p in group.slices)) or (
                shared and name == "taylor"
            ):
                continue
            for unit in range(group.count):
                truth = slope(model, change(model, group, unit), images, labels, of)
                torch.testing.assert_close(sums[group.name][0, :, unit], truth, rtol=1e-6, atol=1e-9)
                compared += 1
        assert compared >= 9


def test_taylor_at_a_layer_used_twice_is_the_sum_over_its_uses():
    model, (images, labels) = folding(), batch()
    found = criterion("taylor", model, images)
    sums = by_unit(found, found.run(images, labels))["shared"]
    uses, outputs = [], []
    model.shared.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    logits = explained(model, images.clone().requires_grad_(), labels, "logit")
    uses = torch.autograd.grad(logits.sum(), outputs)
    assert len(uses) == 2
    for row, truth in enumerate((lambda product: product, torch.abs)):
        products = sum(truth(out.detach() * gradient) for out, gradient in zip(outputs, uses, strict=True))
        expected = products.sum((2, 3)).unflatten(0, (len(images), -1)).sum(1)
        torch.testing.assert_close(sums[row], expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("of", ["logit", "loss"])
def test_sums_of_absolute_values_over_positions_are_those_that_autograd_finds(of):
    model, (images, labels) = cnn(), batch()
    values, gradients = at_modules(model, images, labels, of)
    for name in ("gradient", "taylor"):
        found = criterion(name, model, images, of=of)
        sums = by_unit(found, found.run(images, labels))
        assert set(sums) == {"left", "right", "inner", "mlp"}
        for unit, module in (("left", "norm"), ("right", "right"), ("inner", "inner_norm"), ("mlp", "mlp")):
            at = gradients[module] if name == "gradient" else gradients[module] * values[module]
            at = at.flatten(2) if at.dim() == 4 else at.unsqueeze(-1)
            torch.testing.assert_close(sums[unit], torch.stack((at.sum(2), at.abs().sum(2))), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("of", ["logit", "loss"])
def test_a_transformers_neurons_and_heads_are_those_that_autograd_finds(of):
    model, (images, labels) = vit(), batch()
    values, gradients = at_modules(from_timm(model), images, labels, of)
    for name in ("gradient", "taylor"):
        found = criterion(name, model, images, of=of)
        sums = by_unit(found, found.run(images, labels))
        for block in range(2):
            for layer in ("fc1", "fc2"):
                at = gradients[f"blocks.{block}.{layer}"]
                at = at if name == "gradient" else at * values[f"blocks.{block}.{layer}"]
                truth = torch.stack((at.sum(1), at.abs().sum(1)))
                torch.testing.assert_close(sums[f"blocks.{block}.mlp.{layer}"], truth, rtol=1e-9, atol=1e-13)
            at = heads(gradients[f"blocks.{block}.attn.out.input"], 3)
            if name == "taylor":  # features of a query are summed before anything is absolute
                at = (at * heads(values[f"blocks.{block}.attn.out.input"], 3)).sum(3, keepdim=True)
            truth = torch.stack((at.sum((1, 3)), at.abs().sum((1, 3))))
            torch.testing.assert_close(sums[f"blocks.{block}.attn"], truth, rtol=1e-9, atol=1e-13)


def test_without_biases_lrp_0_of_a_relu_network_is_taylor_over_the_logit():
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, CLASSES),
    )  # fmt: skip
    model = randomise(model, pictures(16, SIZE, seed=1)[0], zero_bias=True).double()
    images, labels = batch(5)
    lrp = criterion("lrp", model, images, composite=Composite(stabilizer=0.0))
    taylor = criterion("taylor", model, images)
    logit = explained(model, images, labels, "logit").detach()
    torch.testing.assert_close(
        lrp.run(images, labels)[0], taylor.run(images, labels)[0] / logit[:, None], rtol=1e-9, atol=1e-12
    )
    torch.testing.assert_close(
        lrp.run(images, labels, initial="logit"), taylor.run(images, labels), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize(("network", "dtype"), [(cnn, torch.float32), (vit, torch.float32), (cnn, torch.bfloat16)])
def test_less_precision_rounds_and_changes_nothing_else(network, dtype):
    model, (images, labels) = network(), batch()
    truth = criterion("taylor", model, images).run(images, labels)
    found = criterion("taylor", model, images, dtype=dtype).run(images, labels)
    assert found.dtype == torch.float32
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert (found - truth).abs().sum() < tolerance * truth.abs().sum()
