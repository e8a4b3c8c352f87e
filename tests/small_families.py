"""Small networks of every family that can be slimmed, by the constructors that build them again."""

from __future__ import annotations

import functools
import json

import torch
from oracles.networks import pictures, randomise
from torch import Tensor, nn

import pxp_fast as pxp
from pxp_fast.models import build

TORCHVISION = "torchvision.models"
SWIN = {"patch_size": [4, 4], "embed_dim": 24, "depths": [2], "num_heads": [3], "window_size": [4, 4]}
VIT = {"image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 32, "mlp_dim": 64}
SWIN_OF_TIMM = {"img_size": 56, "depths": [2], "num_heads": [4], "embed_dim": 48}
TINY = {"img_size": 32, "depth": 2, "embed_dim": 48}
# constructor, arguments, image size
FAMILIES = {
    "vgg": ("demo:vgg", {}, 28),
    "resnet, basic": ("demo:resnet", {}, 28),
    "resnet, bottleneck": ("timm:test_resnet", {}, 32),
    "densenet": (f"{TORCHVISION}.densenet:DenseNet", {"growth_rate": 8, "block_config": [2, 2]}, 32),
    "mobilenet": ("timm:mobilenetv3_small_050", {"num_classes": 10}, 32),
    "regnet": ("torchvision:regnet_y_400mf", {}, 32),
    "convnext": ("timm:test_convnext", {}, 32),
    "vit": (f"{TORCHVISION}.vision_transformer:VisionTransformer", VIT, 32),
    "deit": ("timm:deit_tiny_distilled_patch16_224", TINY, 32),
    "swin": (f"{TORCHVISION}.swin_transformer:SwinTransformer", SWIN, 40),
    "swin of timm": ("timm:swin_tiny_patch4_window7_224", SWIN_OF_TIMM, 56),
}


@functools.cache
def network(family: str) -> tuple[nn.Module, Tensor, pxp.Slimmer, pxp.Scores]:
    """A random network, images, what can be cut out of it, and scores that say nothing; shared: not to be changed."""
    name, arguments, size = FAMILIES[family]
    torch.manual_seed(0)
    model, _ = build(name, json.loads(json.dumps(arguments)))
    images, _ = pictures(2, size, 1 if name.startswith("demo:") else 3)
    if not name.startswith("demo:"):
        randomise(model, images)
    scores = pxp.score(model.eval(), criterion="random", example=images, model_name=name)
    return model, images, pxp.Slimmer(model, images), scores


def slimmed(family: str, rate: float) -> tuple[nn.Module, Tensor, pxp.Plan]:
    """A slimmed network, images and the plan."""
    _, images, slimmer, scores = network(family)
    plan = pxp.plan(scores, rate)
    return slimmer.slim(plan), images, plan


def logits(model: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return model(images)
