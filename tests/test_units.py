"""Units: which ones a network has, how they are called, and which parameters each of them owns."""

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from pxp_fast.finding import find_units
from pxp_fast.lrp import capture
from pxp_fast.units import ParameterSlice


def groups(model, size: int, kinds=None):
    return [site.group for site in find_units(capture(model.eval(), torch.zeros(2, 3, size, size)), kinds)]


def counts(model, size: int) -> dict[str, int]:
    found = {"filter": 0, "neuron": 0, "head": 0}
    for group in groups(model, size):
        found[group.kind] += group.count
    return found


@pytest.mark.parametrize(
    ("name", "filters", "neurons", "heads"),
    [
        ("vgg16", 4224, 8192, 0),
        ("vgg16_bn", 4224, 8192, 0),
        ("resnet18", 4800, 0, 0),
        ("resnet50", 26560, 0, 0),
        ("vit_b_16", 0, 46080, 144),
    ],
)
def test_counts_of_torchvision(name, filters, neurons, heads):
    with torch.device("meta"):
        skeleton = torchvision.models.get_model(name)
    model = skeleton.to_empty(device="cpu")  # nothing is computed, only counted
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert counts(model, 224) == {"filter": filters, "neuron": neurons, "head": heads}


def test_every_convolution_of_a_resnet_is_a_group_named_after_its_module():
    model = torchvision.models.resnet18()
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    found = groups(model, 64)
    assert sorted(group.name for group in found) == sorted(convolutions)
    assert found[0].name == "conv1" and "layer2.0.downsample.0" in convolutions
    for group in found:
        module = model.get_submodule(group.name)
        norm = {"conv1": "bn1", "conv2": "bn2", "0": "1"}[group.name.rpartition(".")[2]]
        norm = f"{group.name.rpartition('.')[0]}.{norm}".lstrip(".")
        assert (group.kind, group.count) == ("filter", module.out_channels)
        assert set(group.slices) == {
            ParameterSlice(f"{group.name}.weight", 0),
            ParameterSlice(f"{norm}.weight", 0, role="norm"),
            ParameterSlice(f"{norm}.bias", 0, role="norm"),
        }


def test_a_convolution_with_a_bias_and_no_norm():
    (first, *_) = groups(torchvision.models.vgg11(), 32)
    assert (first.name, first.kind, first.count) == ("features.0", "filter", 64)
    assert set(first.slices) == {ParameterSlice("features.0.weight", 0), ParameterSlice("features.0.bias", 0)}


def test_units_of_a_timm_vit():
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 10}
    found = groups(timm.models.vision_transformer.VisionTransformer(**options), 32)
    assert {(g.name, g.kind, g.count) for g in found} == {
        *((f"blocks.{i}.mlp.fc1", "neuron", 96) for i in range(2)),
        *((f"blocks.{i}.mlp.fc2", "neuron", 24) for i in range(2)),
        *((f"blocks.{i}.attn", "head", 4) for i in range(2)),
    }
    by_name = {g.name: g for g in found}
    fc1 = {ParameterSlice("blocks.1.mlp.fc1.weight", 0), ParameterSlice("blocks.1.mlp.fc1.bias", 0)}
    assert set(by_name["blocks.1.mlp.fc1"].slices) == fc1
    assert by_name["blocks.1.attn"].slices == (ParameterSlice("blocks.1.attn.proj.weight", 1, block=6),)


def test_units_of_a_torchvision_vit():
    found = groups(torchvision.models.VisionTransformer(32, 8, 1, 3, 24, 36, num_classes=10), 32)
    base = "encoder.layers.encoder_layer_0"
    assert {(g.name, g.kind, g.count) for g in found} == {
        (f"{base}.mlp.0", "neuron", 36),
        (f"{base}.mlp.3", "neuron", 24),
        (f"{base}.self_attention", "head", 3),
    }


def test_kinds_can_be_chosen():
    model = torchvision.models.vgg11()
    assert {g.kind for g in groups(model, 32, ("neuron",))} == {"neuron"}
    assert [g.name for g in groups(model, 32, ("neuron",))] == ["classifier.0", "classifier.3"]
    assert {g.kind for g in groups(model, 32, ("filter",))} == {"filter"}


class Mixed(nn.Module):
    """A patch embedding before attention, a gated MLP, a layer used twice, and a classifier with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 12, 4, 4)
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.gate, self.value, self.down = nn.Linear(12, 20), nn.Linear(12, 20), nn.Linear(20, 12)
        self.twice = nn.Linear(12, 12)
        self.hidden, self.head = nn.Linear(12, 9), nn.Linear(9, 5)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(x).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(F.silu(self.gate(x)) * self.value(x))
        x = F.gelu(self.twice(F.gelu(self.twice(x))))
        return self.head(F.relu(self.hidden(x.mean(1))))


def test_what_is_a_unit_and_what_is_not():
    found = {g.name: (g.kind, g.count) for g in groups(Mixed(), 16)}
    (heads,) = (name for name, (kind, _) in found.items() if kind == "head")
    assert found.pop(heads) == ("head", 3)
    assert {"gate", "down", "twice", "hidden"} <= found.keys() <= {"gate", "value", "down", "twice", "hidden"}
    assert all(kind == "neuron" for kind, _ in found.values())


def test_the_order_is_that_of_execution():
    names = [g.name for g in groups(torchvision.models.resnet18(), 64)]
    assert names.index("layer1.0.conv1") < names.index("layer1.0.conv2") < names.index("layer4.1.conv2")


def test_every_slice_names_a_parameter_of_the_right_size():
    for model, size in ((timm.create_model("test_convnext", num_classes=4), 64), (timm.create_model("test_vit2"), 160)):
        state = model.state_dict()
        for group in groups(model, size):
            for piece in group.slices:
                assert state[piece.parameter].shape[piece.dim] == group.count * piece.block, group.name


def test_a_convolution_that_yields_the_logits_is_a_classifier_and_no_unit():
    found = groups(torchvision.models.squeezenet1_1(num_classes=10), 64)
    assert "features.12.expand3x3" in {group.name for group in found}
    assert "classifier.1" not in {group.name for group in found}
