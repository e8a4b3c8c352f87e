"""What slimming does to single constructions, each with an answer that one can see; and what it refuses."""

import copy

import pytest
import torch
import torch.nn.functional as F
from oracles.networks import pictures, randomise
from torch import nn

import pxp_fast as pxp
from pxp_fast.errors import CaptureError, PlanError, SlimError


class Net(nn.Module):
    """Some layers and a function of them."""

    def __init__(self, forward, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.head = nn.Linear(6, 4)
        self.function = forward

    def forward(self, x):
        return self.head(self.function(self, x).mean((2, 3)))


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def plan_of(model, images, **removed):
    """A plan that removes these units of these layers."""
    plan = pxp.plan(pxp.score(model, criterion="random", example=images), 0)
    groups = [g.model_copy(update={"removed": tuple(removed.get(g.name, ()))}) for g in plan.groups]
    return plan.model_copy(update={"groups": tuple(groups)})


def slimmed(model, images, **removed):
    """The model slimmed by such a plan; its logits are compared on other images."""
    plan = plan_of(model, images, **removed)
    before = copy.deepcopy(model.state_dict())
    small = pxp.slim(model, plan, images)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    fresh = pictures(3, images.shape[-1], seed=8)[0].double()
    with torch.no_grad(), pxp.masked(model, plan):
        assert torch.allclose(small(fresh), model(fresh), rtol=1e-9, atol=1e-12)
    return small


def built(forward, **layers):
    images = pictures(2, 8)[0]
    return randomise(Net(forward, **layers), images).double(), images.double()


def test_a_filter_goes_with_its_norm_and_its_readers_channels():
    model, images = built(
        lambda m, x: F.relu(m.b(F.relu(m.norm(m.a(x))))), a=conv(3, 8), norm=nn.BatchNorm2d(8), b=conv(8, 6)
    )
    small = slimmed(model, images, a=(1, 5), b=(0,))
    kept = [0, 2, 3, 4, 6, 7]
    assert torch.equal(small.a.weight, model.a.weight[kept]) and torch.equal(small.a.bias, model.a.bias[kept])
    assert torch.equal(small.norm.running_var, model.norm.running_var[kept]) and small.norm.num_features == 6
    assert torch.equal(small.b.weight, model.b.weight[1:][:, kept]) and small.b.in_channels == 6
    assert torch.equal(small.head.weight, model.head.weight[:, 1:]) and small.head.in_features == 5


def test_one_branch_of_a_sum_stays_as_zeros_and_both_go():
    def forward(m, x):
        return F.relu(m.c(F.relu(m.a(x) + m.b(x))))

    model, images = built(forward, a=conv(3, 5), b=conv(3, 5), c=conv(5, 6))
    small = slimmed(model, images, a=(2,), b=(3,))
    assert small.a.out_channels == 5 and (small.pxp_slim.cut, small.pxp_slim.zeros) == (0, 2)
    small = slimmed(model, images, a=(2, 4), b=(1, 2))
    assert small.a.out_channels == small.b.out_channels == small.c.in_channels == 4
    assert (small.pxp_slim.cut, small.pxp_slim.zeros) == (2, 2)


@pytest.mark.parametrize("kernel", [1, 3])
def test_what_a_removed_filter_leaves_behind_is_kept_in_the_bias(kernel):
    """Its channel is constant after the second norm, which is not the filter's own: 1x1 readers can do without it.

    Zeros beside the image make it a border for wider ones, which keep it.
    """

    def forward(m, x):
        return m.b(F.relu(m.second(m.a(x)[:, :4])))

    model, images = built(forward, a=conv(3, 4), second=nn.BatchNorm2d(4), b=conv(4, 6, kernel, bias=False))
    with torch.no_grad():
        model.second.bias.copy_(torch.tensor([0.5, -0.5, 1.0, 2.0]))
        model.second.running_mean.zero_()
    small = slimmed(model, images, a=(1, 3))
    assert small.a.out_channels == (2 if kernel == 1 else 3)
    assert (small.b.bias is not None) == (kernel == 1)


def test_groups_lose_as_many_channels_each():
    model, images = built(
        lambda m, x: m.c(F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 8), b=conv(8, 12, groups=4), c=conv(12, 6, 1)
    )
    small = slimmed(model, images, a=(0, 2, 4, 6), b=(0, 3, 4, 6, 9, 10))
    assert small.b.groups == 4 and small.b.weight.shape == (8, 1, 3, 3) and small.a.out_channels == 4
    assert (small.pxp_slim.cut, small.pxp_slim.zeros) == (8, 2)


def test_channelwise_layers_and_gates_go_along():
    def forward(m, x):
        x = m.b(F.relu(m.a(x)))
        return m.c(x * torch.sigmoid(m.gate(x.mean((2, 3), keepdim=True))))

    model, images = built(forward, a=conv(3, 8), b=conv(8, 8, groups=8), gate=nn.Conv2d(8, 8, 1), c=conv(8, 6))
    small = slimmed(model, images, a=(0,), b=(0, 1), gate=(0,))
    assert small.b.groups == small.b.in_channels == small.gate.out_channels == small.c.in_channels == 6 or (
        small.b.groups == 7
    )
    with torch.no_grad():  # without a bias nothing is left of the filter below
        model.b.bias.zero_()
    assert slimmed(model, images, a=(0,)).b.groups == 7


def test_concatenated_branches_shrink_apart():
    model, images = built(
        lambda m, x: m.c(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 1)), a=conv(3, 4), b=conv(3, 5), c=conv(9, 6)
    )
    small = slimmed(model, images, a=(0, 1), b=(4,))
    assert torch.equal(small.c.weight, model.c.weight[:, [2, 3, 4, 5, 6, 7]])


def test_no_layer_becomes_empty():
    model, images = built(lambda m, x: m.b(F.relu(m.a(x))) + m.c(x), a=conv(3, 4), b=conv(4, 6), c=conv(3, 6))
    small = slimmed(model, images, a=range(4), b=range(6))
    assert small.a.out_channels == 1 and small.b.weight.shape == (6, 1, 3, 3)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = conv(6, 6), conv(6, 6), nn.BatchNorm2d(6)

    def forward(self, x):
        return F.relu(self.norm(self.b(F.relu(self.a(x)))) + x)


def test_a_block_without_units_becomes_the_identity():
    model, images = built(
        lambda m, x: m.blocks(F.relu(m.stem(x))), stem=conv(3, 6), blocks=nn.Sequential(Block(), Block())
    )
    small = slimmed(model, images, **{"blocks.0.b": range(6)})
    assert isinstance(small.blocks[0], nn.Identity) and isinstance(small.blocks[1], Block)
    assert small.pxp_slim.after.parameters == sum(p.numel() for p in small.parameters())
    small = slimmed(model, images, **{"blocks.0.b": range(5)})
    assert isinstance(small.blocks[0], Block)
    model.function = lambda m, x: m.blocks(m.stem(x))  # may be negative, which the block's last ReLU takes away
    assert isinstance(slimmed(model, images, **{"blocks.0.b": range(6)}).blocks[0], Block)


def test_a_layer_used_twice_and_tied_weights_stay_consistent():
    def twice(m, x):
        return m.b(F.relu(m.a(F.relu(m.a(m.stem(x))))))

    model, images = built(twice, stem=conv(3, 5), a=conv(5, 5), b=conv(5, 6))
    small = slimmed(model, images, stem=(1,), a=(1, 2))
    assert small.stem.out_channels == small.a.in_channels == small.a.out_channels == 4
    model, images = built(
        lambda m, x: m.c(F.relu(m.a(x)) + F.relu(m.b(x)) * 0.5), a=conv(3, 5), b=conv(3, 5), c=conv(5, 6)
    )
    model.b.weight = model.a.weight
    small = slimmed(model, images, a=(0, 3), b=(0,))
    assert small.a.weight is small.b.weight


def test_a_weight_that_is_computed_is_left_alone():
    model, images = built(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 5), b=conv(5, 6))
    nn.utils.parametrizations.weight_norm(model.a)
    small = slimmed(model, images, a=(2,))
    assert small.a.out_channels == 5 and small.pxp_slim.zeros == 1


def test_a_table_that_layers_make_is_left_alone():
    """As Swin V2 makes its table of relative positions: what it is added to must keep its channels."""
    model, images = built(
        lambda m, x: m.b(F.relu(m.a(x) + m.table(m.places)[:, :, None, None])),
        a=conv(3, 5), b=conv(5, 6), table=nn.Linear(2, 5),
    )  # fmt: skip
    model.register_buffer("places", torch.randn(1, 2).double())
    assert slimmed(model, images, a=(2,)).a.out_channels == 5


def test_channels_whose_order_the_network_shuffles():
    def forward(m, x):
        x = F.relu(m.a(x)).unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return m.b(x)

    model, images = built(forward, a=conv(3, 8), b=conv(8, 6))
    assert slimmed(model, images, a=(1, 5)).a.out_channels == 8  # forward() goes on asking for two times four


def test_float32_within_1e_5():
    model, images = built(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 6))
    model, images = model.float(), images.float()
    plan = plan_of(model, images, a=(1, 5))
    small = pxp.slim(model, plan, images)
    with torch.no_grad(), pxp.masked(model, plan):
        expected = model(images)
    assert float((small(images) - expected).abs().max()) < 1e-5 * float(expected.abs().max())
    assert small.pxp_slim.difference < 1e-5


def test_code_that_insists_on_sizes_is_refused_by_name():
    def forward(m, x):
        x = F.relu(m.a(x))
        return m.b(x[:, :4] + x.shape[1] - 8)

    model, images = built(forward, a=conv(3, 8), b=conv(4, 6))
    with pytest.raises(SlimError, match="b differs by"):
        pxp.slim(model, plan_of(model, images, a=(6, 7)), images)


def test_plans_and_models_that_cannot_be_used():
    model, images = built(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 8), b=conv(8, 6))
    other, _ = built(lambda m, x: m.b(F.relu(m.a(x))), a=conv(3, 9), b=conv(9, 6))
    with pytest.raises(PlanError, match="masks 9 entries of a.weight"):
        pxp.slim(model, plan_of(other, images, a=(1,)), images)
    wild, _ = built(lambda m, x: m.b(m.a(x)) if x.sum() > 0 else m.a(x)[:, :6], a=conv(3, 8), b=conv(8, 6))
    with pytest.raises(CaptureError, match="cannot be captured"):
        pxp.slim(wild, plan_of(model, images, a=(1,)), images)
