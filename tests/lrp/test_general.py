"""Families of timm and torchvision: captured bit for bit, scored without an error, with the units that one expects."""

import warnings

import pytest
import timm
import torch
import torchvision
from oracles.networks import pictures, randomise

from pxp_fast.criteria import Relevance
from pxp_fast.lrp import capture

# name -> (options, image size, kinds of units); None: the size that the model was made for.
TIMM = {
    "vgg11_bn": ({}, 32, {"filter"}),  # its classifier is made of convolutions
    "test_resnet": ({}, 64, {"filter"}),
    "resnet26d": ({}, 64, {"filter"}),
    "seresnet18": ({}, 64, {"filter"}),
    "densenet121": ({}, 64, {"filter"}),
    "regnety_002": ({}, 64, {"filter"}),
    "mobilenetv3_small_050": ({}, 64, {"filter"}),
    "mobilenetv2_050": ({}, 64, {"filter"}),
    "test_efficientnet": ({}, 64, {"filter"}),
    "test_efficientnet_gn": ({}, 64, {"filter"}),
    "test_nfnet": ({}, 64, {"filter"}),
    "test_convnext": ({}, 64, {"filter", "neuron"}),
    "test_convnext2": ({}, 64, {"filter", "neuron"}),
    "convnextv2_atto": ({}, 64, {"filter"}),
    "dla34": ({}, 64, {"filter"}),
    "test_vit": ({}, None, {"neuron", "head"}),
    "test_vit2": ({}, None, {"neuron", "head"}),
    "test_vit3": ({}, None, {"neuron", "head"}),
    "test_vit4": ({}, None, {"neuron", "head"}),
    "test_vit_relpos": ({}, None, {"neuron", "head"}),
    "deit_tiny_patch16_224": ({"img_size": 64, "depth": 3}, 64, {"neuron", "head"}),
    "deit_tiny_distilled_patch16_224": ({"img_size": 64, "depth": 3}, 64, {"neuron", "head"}),
    "deit3_small_patch16_224": ({"img_size": 64, "depth": 2}, 64, {"neuron", "head"}),
    "vit_base_patch14_dinov2": ({"img_size": 56, "depth": 2}, 56, {"neuron", "head"}),
    "vit_base_patch16_siglip_224": ({"img_size": 64, "depth": 2}, 64, {"neuron", "head"}),
    "swin_tiny_patch4_window7_224": ({"img_size": 56, "depths": (1, 1, 2, 1)}, 56, {"neuron", "head"}),
    "swinv2_tiny_window8_256": ({"img_size": 64, "depths": (1, 2, 1, 1)}, 64, {"neuron", "head"}),
    "beit_base_patch16_224": ({"img_size": 64, "depth": 2}, 64, {"neuron", "head"}),
    "eva02_tiny_patch14_224": ({"img_size": 56, "depth": 2}, 56, {"neuron", "head"}),
    "cait_xxs24_224": ({"img_size": 64, "depth": 2}, 64, {"neuron", "head"}),
    "xcit_nano_12_p16_224": ({"img_size": 64, "depth": 2}, 64, {"filter", "neuron", "head"}),
    "test_maxvit": ({}, None, {"filter", "neuron", "head"}),
    "test_coatnet": ({}, None, {"filter", "head"}),
    "mixer_s32_224": ({"img_size": 64}, 64, {"filter", "neuron"}),
    "poolformer_s12": ({}, 64, {"filter"}),
    "test_mambaout": ({}, 64, {"filter", "neuron"}),
    "inception_v3": ({}, 96, {"filter"}),
}
TORCHVISION = {
    "vgg11": ({}, 32, {"filter", "neuron"}),
    "resnet18": ({}, 64, {"filter"}),
    "densenet121": ({}, 64, {"filter"}),
    "regnet_y_400mf": ({}, 64, {"filter"}),
    "mobilenet_v3_small": ({}, 64, {"filter", "neuron"}),
    "shufflenet_v2_x0_5": ({}, 64, {"filter"}),
    "squeezenet1_1": ({}, 64, {"filter"}),
    "efficientnet_b0": ({}, 64, {"filter"}),
    "convnext_tiny": ({}, 64, {"filter", "neuron"}),
    "swin_t": ({}, 64, {"neuron", "head"}),
    "vit_b_16": ({"image_size": 64}, 64, {"neuron", "head"}),
    "googlenet": ({"aux_logits": False, "init_weights": False}, 64, {"filter"}),
}
CASES = [pytest.param(timm.create_model, name, *case, id=f"timm-{name}") for name, case in TIMM.items()]
CASES += [
    pytest.param(torchvision.models.get_model, name, *case, id=f"torchvision-{name}")
    for name, case in TORCHVISION.items()
]


@pytest.mark.parametrize(("create", "name", "options", "size", "kinds"), CASES)
def test_family(create, name, options, size, kinds):
    torch.manual_seed(0)
    model = create(name, num_classes=10, **options)
    size = size or model.default_cfg["input_size"][-1]
    images, labels = pictures(2, size, classes=10)
    model = randomise(model, pictures(6, size, seed=2)[0])

    # Kernels are chosen by whether gradients are wanted, and round differently: the model itself has two answers.
    captured, with_gradients = capture(model, images).forward(images), model(images)
    with torch.no_grad():
        without = model(images)
    assert torch.equal(captured, with_gradients) or torch.equal(captured, without)

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # an operator without a rule may fall back here; what matters is that it says so
        relevance = Relevance(model, images)
    sums = relevance.run(images, labels)
    assert torch.isfinite(sums).all()
    assert {group.kind for group in relevance.units} == kinds
    modules = dict(model.named_modules())
    for group, part in zip(relevance.units, sums.split([g.count for g in relevance.units], dim=2), strict=True):
        assert group.name in modules
        assert (part[1] >= part[0].abs() * (1 - 1e-4) - 1e-12).all(), group.name
    reached = [part[1].any() for part in sums.split([g.count for g in relevance.units], dim=2)]
    assert all(reached), f"no relevance at {[g.name for g, r in zip(relevance.units, reached, strict=True) if not r]}"
