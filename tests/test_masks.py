"""Masks: what is masked is gone, exactly as if its output were zeroed by hand; everything comes back, bit for bit."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from oracles.networks import pictures, randomise
from timm.models.maxxvit import Attention2d
from torch import Tensor, nn

import pxp_fast as pxp


def zero(units, dim: int):
    """A forward hook that zeroes the given entries of a module's output."""

    def hook(module, inputs, output):
        output = output.clone()
        output.index_fill_(dim, torch.tensor(sorted(units), dtype=torch.long), 0)
        return output

    return hook


def half_plan(model, images, labels, **options):
    return pxp.plan(pxp.score(model, [(images, labels)]), 0.5, **options)


def ready(model, size: int, classes: int = 10):
    images, labels = pictures(3, size, classes=classes)
    return randomise(model, pictures(8, size, seed=1)[0]).double(), images.double(), labels


class Network(nn.Module):
    """Convolutions with and without batch norm and bias, a residual sum, and a classifier with an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.second, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.third = nn.Conv2d(8, 6, 3)
        self.fc1, self.fc2 = nn.Linear(6, 12), nn.Linear(12, 10)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.first(x)))
        x = self.relu(self.bn2(self.second(x)) + x)
        x = self.relu(self.third(x)).mean((2, 3))
        return self.fc2(self.relu(self.fc1(x)))


NORM_OF = {"first": "bn", "second": "bn2", "third": None, "fc1": None}


@pytest.mark.parametrize("norm", ["both", "layer", "norm"])
@pytest.mark.parametrize("order", ["least", "most"])
def test_filters_and_neurons_are_zeroed_with_what_follows_them(norm, order):
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    plan = half_plan(model, images, labels, norm=norm, order=order)
    assert {g.name: len(g.removed) for g in plan.groups}.keys() == NORM_OF.keys()
    brute = copy.deepcopy(model)
    for group in plan.groups:
        following = NORM_OF[group.name]
        # "both" and "norm" silence the norm's output; "layer" alone leaves the norm's shift in place.
        silent = following if following is not None and norm != "layer" else group.name
        brute.get_submodule(silent).register_forward_hook(zero(group.removed, 1))
    with torch.no_grad():
        expected, before = brute(images), model(images)
        with pxp.masked(model, plan):
            torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
        assert torch.equal(model(images), before)
        assert (expected - before).abs().max() > 1e-3


def test_torchvision_resnet_filters():
    torch.manual_seed(0)
    model, images, labels = ready(torchvision.models.resnet18(num_classes=10), 64)
    plan = pxp.plan(pxp.score(model, [(images, labels)]), 0.2)
    brute = copy.deepcopy(model)
    for group in plan.groups:
        parent, _, leaf = group.name.rpartition(".")
        following = f"{parent}.1" if leaf == "0" else f"{parent}.bn{leaf[-1]}".lstrip(".")
        brute.get_submodule(following).register_forward_hook(zero(group.removed, 1))
    with torch.no_grad(), pxp.masked(model, plan):
        torch.testing.assert_close(model(images), brute(images), rtol=1e-10, atol=1e-10)


def test_timm_heads_by_zeroing_attention_after_the_softmax():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 6, "num_classes": 10}
    model, images, labels = ready(timm.models.vision_transformer.VisionTransformer(**options), 32)
    plan = half_plan(model, images, labels, units=["head"])
    assert sum(len(g.removed) for g in plan.groups) == 9
    brute = copy.deepcopy(model)
    for group in plan.groups:
        attention = brute.get_submodule(group.name)
        attention.fused_attn = False
        attention.attn_drop.register_forward_hook(zero(group.removed, 1))
    check(model, images, plan, brute)


def check(model, images, plan, brute) -> None:
    with torch.no_grad():
        before, expected = model(images), brute(images)
        assert (expected - before).abs().max() > 1e-4
        with pxp.masked(model, plan):
            torch.testing.assert_close(model(images), expected, rtol=1e-9, atol=1e-10)


class ExplicitMultihead(nn.Module):
    """`nn.MultiheadAttention` written out, with heads to be zeroed after the softmax."""

    def __init__(self, original: nn.MultiheadAttention, removed) -> None:
        super().__init__()
        self.original, self.removed = original, list(removed)

    def forward(self, query: Tensor, *unused, **ignored) -> tuple[Tensor, None]:
        of = self.original
        projected = F.linear(query, of.in_proj_weight, of.in_proj_bias).unflatten(-1, (3, of.num_heads, of.head_dim))
        q, k, v = projected.permute(2, 0, 3, 1, 4).unbind(0)
        attention = (q @ k.transpose(-2, -1) / of.head_dim**0.5).softmax(-1)
        attention[:, self.removed] = 0
        return of.out_proj((attention @ v).transpose(1, 2).flatten(2)), None


def test_torchvision_heads_by_zeroing_attention_after_the_softmax():
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 48, num_classes=10)
    model, images, labels = ready(model, 32)
    plan = half_plan(model, images, labels, units=["head"])
    brute = copy.deepcopy(model)
    for group in plan.groups:
        block = brute.get_submodule(group.name.removesuffix(".self_attention"))
        block.self_attention = ExplicitMultihead(block.self_attention, group.removed)
    check(model, images, plan, brute)


class Separate(nn.Module):
    """Attention with a layer for each of q, k, v; explicit or fused; the value's width differs from the query's."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 24)
        self.out, self.drop, self.fused = nn.Linear(24, 16), nn.Dropout(0.1), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (4, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = self.drop((q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class SeparateNetwork(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.patch, self.norm, self.attn, self.head = (
            nn.Conv2d(3, 16, 4, 4),
            nn.LayerNorm(16),
            Separate(fused),
            nn.Linear(16, 10),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return self.head((x + self.attn(self.norm(x))).mean(1))


@pytest.mark.parametrize("fused", [True, False])
def test_separate_layers_for_q_k_and_v(fused):
    torch.manual_seed(0)
    model, images, labels = ready(SeparateNetwork(fused), 16)
    plan = half_plan(model, images, labels, units=["head"])
    assert [(g.name, g.count, len(g.removed)) for g in plan.groups] == [("attn", 4, 2)]
    brute = copy.deepcopy(model)
    brute.attn.fused = False
    brute.attn.drop.register_forward_hook(zero(plan.groups[0].removed, 1))
    check(model, images, plan, brute)


class OnMaps(nn.Module):
    """Attention between the positions of a feature map, with convolutions for q, k, v and the output."""

    def __init__(self, head_first: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 10)
        self.attn = Attention2d(16, dim_head=4, head_first=head_first)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.attn(x)).mean((2, 3)))


@pytest.mark.parametrize("head_first", [True, False])
def test_attention_on_maps(head_first):
    torch.manual_seed(0)
    model, images, labels = ready(OnMaps(head_first), 16)
    plan = half_plan(model, images, labels, units=["head"])
    assert [(g.name, g.count, len(g.removed)) for g in plan.groups] == [("attn", 4, 2)]
    brute = copy.deepcopy(model)
    brute.attn.fused_attn = False
    brute.attn.attn_drop.register_forward_hook(zero(plan.groups[0].removed, 1))
    check(model, images, plan, brute)


def test_vit_neurons():
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 10}
    model, images, labels = ready(timm.models.vision_transformer.VisionTransformer(**options), 32)
    plan = half_plan(model, images, labels, units=["neuron"])
    brute = copy.deepcopy(model)
    for group in plan.groups:
        brute.get_submodule(group.name).register_forward_hook(zero(group.removed, -1))
    check(model, images, plan, brute)


def snapshot(model: nn.Module) -> dict:
    return {name: (tensor.data_ptr(), tensor.clone()) for name, tensor in model.state_dict().items()}


def assert_unchanged(model: nn.Module, before: dict) -> None:
    for name, tensor in model.state_dict().items():
        address, value = before[name]
        assert tensor.data_ptr() == address, name
        same = tensor.view(torch.int64) if tensor.dtype == torch.float64 else tensor
        assert torch.equal(same, value.view(same.dtype)), name  # bits: a -0.0 stays -0.0


def test_everything_comes_back_bit_for_bit():
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    with torch.no_grad():
        model.first.weight[:, 0, 0, 0] = -0.0
    plan = half_plan(model, images, labels)
    before, flags = snapshot(model), [(p.requires_grad, p.grad) for p in model.parameters()]
    for _ in range(3):
        with pxp.masked(model, plan):
            assert any(not torch.equal(t, before[n][1]) for n, t in model.state_dict().items())
        assert_unchanged(model, before)
    assert [(p.requires_grad, p.grad) for p in model.parameters()] == flags


def test_everything_comes_back_after_an_exception():
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    plan = half_plan(model, images, labels)
    before = snapshot(model)
    for error in (RuntimeError, KeyboardInterrupt):
        with pytest.raises(error), pxp.masked(model, plan):
            raise error
        assert_unchanged(model, before)


def test_masks_nest():
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    scores = pxp.score(model, [(images, labels)])
    before = snapshot(model)
    with pxp.masked(model, pxp.plan(scores, 0.2)):
        outer = snapshot(model)
        with pxp.masked(model, pxp.plan(scores, 0.2, order="most")):
            pass
        assert_unchanged(model, outer)
    assert_unchanged(model, before)


def test_training_and_evaluation_mode_work_alike():
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    plan = half_plan(model, images, labels)
    model.train()
    with pxp.masked(model, plan):
        assert all(m.training for m in model.modules())
    assert all(m.training for m in model.modules())


def test_a_permanent_mask_is_the_reversible_one_made_permanent():
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    plan = half_plan(model, images, labels)
    with pxp.masked(model, plan):
        masked = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permanent = copy.deepcopy(model)
    pxp.apply_mask(permanent, plan)
    for name, tensor in permanent.state_dict().items():
        assert torch.equal(tensor, masked[name]), name


def test_rate_zero_masks_nothing():
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    before = snapshot(model)
    with pxp.masked(model, pxp.plan(pxp.score(model, [(images, labels)]), 0)):
        assert_unchanged(model, before)


def test_a_plan_that_does_not_fit_the_model_is_refused_and_nothing_is_changed():
    torch.manual_seed(0)
    model, images, labels = ready(Network(), 12)
    plan = half_plan(model, images, labels)
    other = Network()
    other.third = nn.Conv2d(8, 4, 3)
    before = snapshot(other)
    with pytest.raises(pxp.errors.PxpError, match="third"), pxp.masked(other, plan):
        pass
    assert_unchanged(other, before)
