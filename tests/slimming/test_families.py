"""Families of timm and torchvision made smaller: the same logits as under masks, the costs as counted."""

import os
from functools import partial

import pytest
import timm
import torch
from oracles.networks import pictures, randomise
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models
from torchvision.models.convnext import CNBlockConfig as Stage

import pxp_fast as pxp

# PXP_EVERY_RATE=1 takes all of 0.05, 0.1 ... 0.95, which takes some minutes.
RATES = pxp.RATES[1:] if os.environ.get("PXP_EVERY_RATE") else (0.05, 0.25, 0.5, 0.75, 0.9)


def torchvision_vgg() -> nn.Module:
    model = models.VGG(models.vgg.make_layers([8, "M", 16, "M", 24], True), init_weights=False)
    model.classifier[0], model.classifier[3] = nn.Linear(24 * 49, 32), nn.Linear(32, 32)
    model.classifier[6] = nn.Linear(32, 7)
    return model


TIMM = {
    "test_resnet": ({}, 32),
    "resnet10t": ({}, 32),
    "mobilenetv3_small_050": ({}, 32),
    "regnetx_002": ({}, 32),
    "test_convnext": ({}, 32),
    "vit_tiny_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "deit_tiny_distilled_patch16_224": ({"img_size": 32, "depth": 2}, 32),
    "swin_tiny_patch4_window7_224": ({"img_size": 56, "depths": (2, 2), "embed_dim": 24, "num_heads": (3, 6)}, 56),
}
TORCHVISION = {"resnet18": 32, "mobilenet_v3_small": 32, "regnet_y_400mf": 32}
MADE = {
    "timm vgg": (
        lambda: timm.models.vgg.VGG([8, "M", 16, "M", 32, "M"], 7, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d),
        56,
    ),
    "timm densenet": (lambda: timm.models.densenet.DenseNet(8, (2, 3, 2), 7), 32),
    "torchvision vgg": (torchvision_vgg, 32),
    "torchvision bottlenecks": (lambda: models.ResNet(models.resnet.Bottleneck, [2, 1, 1, 1], 7), 32),
    "torchvision densenet": (lambda: models.DenseNet(8, (2, 3, 2), 16, num_classes=7), 32),
    "torchvision convnext": (lambda: models.ConvNeXt([Stage(16, 24, 1), Stage(24, None, 2)], num_classes=7), 32),
    "torchvision vit": (lambda: models.VisionTransformer(32, 8, 3, 4, 32, 64, num_classes=7), 32),
    "torchvision swin": (lambda: models.SwinTransformer([4, 4], 24, [2, 2], [3, 6], [4, 4], num_classes=7), 40),
}
FAMILIES = MADE | {
    **{
        f"timm {name}": (partial(timm.create_model, name, num_classes=7, **o), size) for name, (o, size) in TIMM.items()
    },
    **{f"torchvision {name}": (partial(models.get_model, name, num_classes=7), s) for name, s in TORCHVISION.items()},
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def network(request):
    """A random network of a family, images, scores that say nothing, and the network ready for cuts."""
    make, size = FAMILIES[request.param]
    torch.manual_seed(0)
    images, _ = pictures(2, size)
    model, images = randomise(make(), images).double(), images.double()
    scores = pxp.score(model, criterion="random", example=images)
    return model, images, scores, pxp.Slimmer(model, images)


def check(network, plan):
    """The slimmed model's logits on images that it has not been compared on; its costs by PyTorch's own counter."""
    model, images, _, slimmer = network
    small = slimmer.slim(plan)
    fresh = pictures(2, images.shape[-1], seed=9)[0].double()
    with torch.no_grad(), pxp.masked(model, plan):
        expected = model(fresh)
    # With gradients: without them some attentions run as one operator that the counter does not know.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        found = small(fresh).detach()
    assert float((found - expected).abs().max()) < 1e-9 * float(expected.abs().max())
    assert type(small) is type(model) and small.pxp_slim.after.flops == counter.get_total_flops() // 2
    assert small.pxp_slim.after.parameters == sum(p.numel() for p in small.parameters())
    return small


@pytest.mark.parametrize("rate", RATES)
def test_rates(network, rate):
    check(network, pxp.plan(network[2], rate))


@pytest.mark.parametrize("seed", range(2))
def test_random_plans(network, seed):
    """Layers that lose nothing beside layers that lose all."""
    scores = network[2]
    one = pxp.plan(scores, 0.5, order="random", seed=seed)
    random = torch.Generator().manual_seed(seed)
    groups = []
    for group in one.groups:
        share = float(torch.rand(1, generator=random)) * 1.5 - 0.25
        removed = (torch.rand(group.count, generator=random) < share).nonzero().flatten().tolist()
        groups.append(group.model_copy(update={"removed": tuple(removed)}))
    check(network, one.model_copy(update={"groups": tuple(groups)}))
