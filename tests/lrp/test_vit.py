"""Vision transformers: LXT's relevance, and PXP's definitions for heads and neurons, written out slowly."""

import pytest
import torch
import torchvision
from oracles.engine import by_unit, relative_l1, unit_sums
from oracles.explicit_vit import from_timm, from_torchvision, pxp_sums
from oracles.lxt_oracle import lxt_relevance
from oracles.networks import pictures, randomise
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pxp_fast.criteria import Relevance
from pxp_fast.lrp import Composite

CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 4, "num_classes": 10}


@pytest.fixture
def small():
    torch.manual_seed(0)
    images, labels = pictures(3, 32, classes=10)
    return randomise(VisionTransformer(**CONFIG), images).double(), images.double(), labels


def test_neurons_equal_lxt(small, tmp_path):
    """LXT has no stabilizer (LRP-0), so the rules are set alike; with one, the definition decides."""
    model, images, labels = small
    truth = lxt_relevance(CONFIG, model, images, labels, tmp_path)
    explicit = from_timm(model)
    assert torch.equal(explicit(images), model(images))
    lrp_0 = unit_sums(model, images, labels, composite=Composite(stabilizer=0.0))
    found = unit_sums(model, images, labels)
    without, stabilised = pxp_sums(explicit, images, labels, epsilon=0.0), pxp_sums(explicit, images, labels)
    for block in range(CONFIG["depth"]):
        for layer in ("fc1", "fc2"):
            name = f"blocks.{block}.mlp.{layer}"
            assert relative_l1(lrp_0[name], truth[name]) < 1e-7  # what LXT itself carries
            assert relative_l1(without[f"{block}.{layer}"], truth[name]) < 1e-7
            assert relative_l1(lrp_0[name], without[f"{block}.{layer}"]) < 1e-9
            assert relative_l1(found[name], stabilised[f"{block}.{layer}"]) < 1e-9
        assert relative_l1(lrp_0[f"blocks.{block}.attn"], without[f"{block}.heads"]) < 1e-9
        assert relative_l1(found[f"blocks.{block}.attn"], stabilised[f"{block}.heads"]) < 1e-9


def check_torchvision(model, images, labels) -> Relevance:
    explicit = from_torchvision(model)
    assert relative_l1(explicit(images), model(images)) < 1e-12
    truth = pxp_sums(explicit, images, labels)
    relevance = Relevance(model, images)
    found = by_unit(relevance, relevance.run(images, labels))
    names = {f"encoder.layers.encoder_layer_{i}" for i in range(len(explicit.blocks))}
    units = {"mlp.0": "fc1", "mlp.3": "fc2", "self_attention": "heads"}
    assert found.keys() == {f"{name}.{unit}" for name in names for unit in units}
    for block in range(len(explicit.blocks)):
        for unit, layer in units.items():
            error = relative_l1(found[f"encoder.layers.encoder_layer_{block}.{unit}"], truth[f"{block}.{layer}"])
            assert error < 1e-9, f"{block}.{layer}"
    return relevance


def test_heads_and_neurons_of_a_torchvision_vit_equal_their_definition():
    torch.manual_seed(0)
    images, labels = pictures(3, 32, classes=10)
    model = torchvision.models.VisionTransformer(32, 8, 3, 4, 48, 96, num_classes=10)
    check_torchvision(randomise(model, images).double(), images.double(), labels)


def test_heads_and_neurons_of_vit_b_16_equal_their_definition():
    torch.manual_seed(0)
    images, labels = pictures(1, 224)
    model = randomise(torchvision.models.vit_b_16(weights=None), images).double()
    relevance = check_torchvision(model, images.double(), labels)
    counted = {"neuron": 0, "head": 0}
    for group in relevance.units:
        counted[group.kind] += group.count
    assert counted == {"neuron": 46080, "head": 144}


def test_a_pooled_vit_needs_every_token(small):
    """Without a class token nothing may be cut away: the mean over tokens reads all of them."""

    class Pooled(nn.Module):
        def __init__(self, explicit):
            super().__init__()
            self.patch, self.blocks, self.norm, self.head = (
                explicit.patch,
                explicit.blocks,
                explicit.norm,
                explicit.head,
            )

        def forward(self, images):
            return self.head(self.norm(self.blocks(self.patch(images).flatten(2).transpose(1, 2)).mean(1)))

    model, images, labels = small
    pooled = Pooled(from_timm(model)).eval()
    truth = pxp_sums(pooled, images, labels)
    found = unit_sums(pooled, images, labels)
    for block in range(CONFIG["depth"]):
        assert relative_l1(found[f"blocks.{block}.fc1"], truth[f"{block}.fc1"]) < 1e-9
        assert relative_l1(found[f"blocks.{block}.fc2"], truth[f"{block}.fc2"]) < 1e-9
        assert relative_l1(found[f"blocks.{block}.attn"], truth[f"{block}.heads"]) < 1e-9


def test_attention_written_out_and_fused_score_alike(small):
    """timm computes the same attention with one operator or with two products and a softmax.

    The split of a query's product with a key is stabilised only where it is written out, hence the tolerance.
    """
    model, images, labels = small
    fused = unit_sums(model, images, labels)
    for block in model.blocks:
        block.attn.fused_attn = False
    written_out = unit_sums(model, images, labels)
    assert fused.keys() == written_out.keys()
    for name, sums in fused.items():
        assert relative_l1(written_out[name], sums) < 1e-4, name


def test_heads_of_windows_are_those_of_their_image():
    """Swin attends within windows, which it lays out along the batch: a head's relevance is that of all its windows."""
    torch.manual_seed(0)
    images, labels = pictures(3, 32, classes=10)
    model = torchvision.models.SwinTransformer([4, 4], 24, [4], [3], [4, 4], num_classes=10)
    model = randomise(model, images).double()
    relevance, at_softmax = Relevance(model, images.double()), []

    def observe(node, value, carry):
        if "softmax" in node.name:
            at_softmax.append((value * carry).unflatten(0, (3, -1)))  # image, window, head, query, key

    found = by_unit(relevance, relevance.run(images.double(), labels, observe=observe))
    heads = [group.name for group in relevance.units if group.kind == "head"]
    assert len(heads) == 4 and len(at_softmax) >= 3  # below the first of them nothing is propagated
    for name, truth in zip(reversed(heads), at_softmax, strict=False):
        per_query = truth.sum(-1)
        expected = torch.stack((per_query.sum((1, 3)), per_query.abs().sum((1, 3))))
        assert relative_l1(found[name], expected) < 1e-9, name
