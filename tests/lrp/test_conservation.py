"""Relevance is conserved: the sum over every cut of a network without biases is the initial relevance.

Biases, stabilizers and, in attention and gates, softmax and sigmoid absorb relevance; the rest hands on what it got.
"""

import pytest
import torch
import torchvision
from oracles.definition import ATTENTION, SOFTMAX, Definition
from oracles.engine import observed, unit_sums
from oracles.explicit_vit import from_timm
from oracles.networks import pictures, randomise
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pxp_fast.criteria import attribute
from pxp_fast.lrp import Composite

LRP_0 = Composite(stabilizer=0.0)


def total(relevance: torch.Tensor) -> torch.Tensor:
    return relevance.flatten(1).sum(1)


def test_every_layer_of_a_chain_sums_to_one():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 12, 3, groups=2, dilation=2, padding=2), nn.GELU(), nn.AvgPool2d(2), nn.GroupNorm(3, 12),
        nn.Conv2d(12, 6, 1), nn.Hardswish(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.LayerNorm(54),
        nn.Linear(54, 20), nn.SiLU(), nn.Linear(20, 5),
    )  # fmt: skip
    images, labels = pictures(4, 32, classes=5)
    model = randomise(model, pictures(16, 32, seed=1)[0], zero_bias=True).double()
    seen = observed(model, images.double(), labels, composite=LRP_0)
    assert len(seen) >= 10
    for name, relevance in seen:
        torch.testing.assert_close(total(relevance), torch.ones(4).double(), rtol=0, atol=1e-9, msg=name)
    for sums in unit_sums(model, images.double(), labels, composite=LRP_0).values():
        torch.testing.assert_close(sums[0].sum(1), torch.ones(4).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["vgg16_bn", "resnet18"])
def test_every_cut_of_a_real_architecture_sums_to_one(name):
    """With the default stabilizer, to 1e-6: activations are of ordinary size, as in a trained network.

    Cuts of a ResNet lie between its blocks; within one, relevance is split between the branch and the shortcut.
    """
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10)
    model = randomise(model, pictures(8, 64, seed=3)[0], zero_bias=True).double()
    images, labels = pictures(2, 64, classes=10)
    images = (
        images.double() * 1e6
    )  # a network of ReLUs without biases only scales: this takes the stabilizer's share away
    one = torch.ones(2).double()
    torch.testing.assert_close(total(attribute(model, images, labels)), one, rtol=0, atol=1e-6)
    sums = {layer: s[0].sum(1) for layer, s in unit_sums(model, images, labels).items()}
    if name == "resnet18":
        seen = [(n, r) for n, r in observed(model, images, labels) if n.startswith("relu")]
        blocks = [total(r) for n, r in seen if (total(r) - 1).abs().max() < 1e-6]
        assert len(blocks) >= 9, "the stem and the outputs of eight blocks are cuts"
        for stage in (2, 3, 4):  # the first block of a stage: last convolution and shortcut together are a cut
            cut = sums[f"layer{stage}.0.conv2"] + sums[f"layer{stage}.0.downsample.0"]
            torch.testing.assert_close(cut, one, rtol=0, atol=1e-6)
            torch.testing.assert_close(sums[f"layer{stage}.0.conv1"], sums[f"layer{stage}.0.conv2"], rtol=0, atol=1e-6)
        sums = {"conv1": sums["conv1"]}
    for layer, sum_of_layer in sums.items():
        torch.testing.assert_close(sum_of_layer, one, rtol=0, atol=1e-6, msg=layer)


def test_a_transformer_loses_relevance_in_its_softmax_alone():
    torch.manual_seed(0)
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 10}
    images, labels = pictures(3, 32, classes=10)
    model = randomise(VisionTransformer(**config), images, zero_bias=True).double()
    with torch.no_grad():
        model.cls_token.copy_(torch.randn(1, 1, 24))
        model.pos_embed.zero_()
    images = images.double()
    explicit = Definition(from_timm(model), epsilon=0.0)
    truth = explicit(images, labels)
    lost = torch.zeros(3).double()
    for node in explicit.graph.graph.nodes:
        if node.name in truth.absorbed:
            if explicit.kind(node) is ATTENTION:
                lost += truth.absorbed[node.name]
            elif explicit.kind(node) is not torch.cat:  # the class token is a constant and keeps its share
                assert truth.absorbed[node.name].abs().max() < 1e-9, node.name
    token = next(v for n, v in truth.absorbed.items() if n.startswith("cat"))
    assert lost.abs().max() > 1e-3
    found = total(attribute(model, images, labels, composite=LRP_0))
    torch.testing.assert_close(found + lost + token, torch.ones(3).double(), rtol=0, atol=1e-9)


class Decomposed(nn.Module):
    """Attention as two products around a softmax: what enters and leaves the softmax can be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4, bias=False)
        self.q, self.k, self.v = (nn.Linear(12, 12, bias=False) for _ in range(3))
        self.softmax, self.head = nn.Softmax(-1), nn.Linear(12, 5, bias=False)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        attention = self.softmax(self.q(x) @ self.k(x).transpose(1, 2) * 0.5)
        return self.head((x + attention @ self.v(x)).mean(1))


def test_both_products_of_attention_conserve():
    torch.manual_seed(0)
    model = Decomposed().double().eval()
    images, labels = pictures(3, 16, classes=5)
    seen = dict(observed(model, images.double(), labels, composite=LRP_0))
    (softmax,) = (n for n in seen if "softmax" in n)
    order = list(seen)
    after = total(seen[softmax])
    before = total(seen[order[order.index(softmax) + 1]])  # the scaled logits
    images_share = total(seen[order[-1]])
    torch.testing.assert_close(images_share + (after - before), torch.ones(3).double(), rtol=0, atol=1e-9)
    truth = Definition(model, epsilon=0.0)(images.double(), labels)
    assert len([n for n in SOFTMAX if n is nn.Softmax]) == 1
    torch.testing.assert_close(after, total(truth.attention[0]), rtol=1e-9, atol=1e-12)
