"""Layer groups: the paper's lists for its five networks, and what holds of any network."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from pxp_fast.lrp import capture
from pxp_fast.lrp.groups import GROUPS, groups, layer_names
from pxp_fast.lrp.program import Program


def grouped(model: nn.Module, size: int) -> list[tuple[str, str]]:
    """(module, group) of every layer, in execution order."""
    captured = capture(model.eval(), torch.zeros(2, 3, size, size))
    names, found = layer_names(captured), groups(captured)
    assert names.keys() == found.keys()
    return [(name, found[node]) for node, name in names.items()]


def blank(create, name: str, **options) -> nn.Module:
    """A network without the time that random weights take: all are 0."""
    with torch.device("meta"):
        model = create(name, **options)
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    return model


def members(found: list[tuple[str, str]], group: str) -> set[str]:
    return {name for name, its in found if its == group}


def layers_of(model: nn.Module, *prefixes: str) -> set[str]:
    """The convolutions and linear layers in modules of these names."""
    weighted = {name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    return {name for name in weighted if any(name == p or name.startswith(f"{p}.") for p in prefixes)}


@pytest.mark.parametrize("name", ["vgg16", "vgg16_bn"])
def test_vgg_as_the_paper_lists_it(name):
    model = blank(torchvision.models.get_model, name)
    found = grouped(model, 32)
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert members(found, "low") == set(convolutions[:4])
    assert members(found, "mid") == set(convolutions[4:9])
    assert members(found, "high") == set(convolutions[9:13])
    assert members(found, "fully_connected") == {"classifier.0", "classifier.3", "classifier.6"}


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_as_the_paper_lists_it(name):
    model = blank(torchvision.models.get_model, name)
    found = grouped(model, 64)
    assert members(found, "low") == layers_of(model, "conv1", "layer1")
    assert members(found, "mid") == layers_of(model, "layer2", "layer3")
    assert members(found, "high") == layers_of(model, "layer4")
    assert members(found, "fully_connected") == {"fc"}


def test_vit_as_the_paper_lists_it():
    """Blocks 0-2, 3-8, 9-11 and the head; torchvision's q, k and v are one layer, named as their attention."""
    found = grouped(blank(torchvision.models.get_model, "vit_b_16", image_size=32), 32)
    layers = lambda i: {  # noqa: E731
        f"encoder.layers.encoder_layer_{i}.{part}"
        for part in ("self_attention", "self_attention.out_proj", "mlp.0", "mlp.3")
    }
    assert members(found, "low") == {"conv_proj"}.union(*map(layers, range(3)))
    assert members(found, "mid") == set().union(*map(layers, range(3, 9)))
    assert members(found, "high") == set().union(*map(layers, range(9, 12)))
    assert members(found, "fully_connected") == {"heads.head"}


def densenet(**options) -> nn.Module:
    return torchvision.models.DenseNet(4, (2, 2, 3, 2), 8, **options)


# network, options, image size, first layer of mid, first layer of high, classifier
FAMILIES = [
    ("convnext_atto", {}, 64, "stages.1.downsample.1", "stages.3.downsample.1", {"head.fc"}),
    (
        "swin_tiny_patch4_window7_224",
        {"img_size": 56, "depths": (1, 1, 2, 1)},
        56,
        "layers.1.downsample.reduction",
        "layers.3.downsample.reduction",
        {"head.fc"},
    ),
    (densenet, {}, 32, "features.transition1.conv", "features.transition3.conv", {"classifier"}),
    ("mixer_s32_224", {"img_size": 64}, 64, "blocks.2.mlp_tokens.fc1", "blocks.6.mlp_tokens.fc1", {"head"}),
    ("mobilenetv3_small_050", {}, 64, "blocks.2.2.conv_pw", "blocks.4.0.conv_pw", {"conv_head", "classifier"}),
    ("test_resnet", {}, 64, "layer2.0.conv1", "layer4.0.conv1", {"fc"}),
    ("poolformer_s12", {}, 64, "stages.1.downsample.conv", "stages.3.downsample.conv", {"head.fc"}),
    (
        "deit_tiny_distilled_patch16_224",
        {"depth": 4, "img_size": 32},
        32,
        "blocks.1.attn.qkv",
        "blocks.3.attn.qkv",
        {"head", "head_dist"},
    ),
    ("cait_xxs24_224", {"depth": 4, "img_size": 32}, 32, "blocks.1.mlp.fc1", "blocks.3.attn.qkv", {"head"}),
    ("vgg11_bn", {}, 32, "features.8", "features.22", {"pre_logits.fc1", "pre_logits.fc2", "head.fc"}),
]


@pytest.mark.parametrize(("name", "options", "size", "mid", "high", "classifier"), FAMILIES)
def test_groups_follow_depth_in_any_family(name, options, size, mid, high, classifier):
    """Every layer has a group, none decreases along the way, and they change where the network itself does."""
    if name == "vgg11_bn":  # nearly all of whose weights are the classifier's
        model = blank(timm.create_model, name)
    else:
        model = timm.create_model(name, **options) if isinstance(name, str) else name(**options)
    found = grouped(model, size)
    depths = [GROUPS.index(group) for _, group in found]
    assert depths == sorted(depths) and set(depths) == {0, 1, 2, 3}
    first = {group: next(name for name, its in found if its == group) for group in GROUPS}
    assert (first["mid"], first["high"]) == (mid, high)
    assert members(found, "fully_connected") == classifier


def chain(*widths: int) -> nn.Sequential:
    layers = [nn.Conv2d(a, b, 3, padding=1) for a, b in zip((3, *widths), widths, strict=False)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.ReLU())), nn.Flatten(), nn.Linear(256, 5))


@pytest.mark.parametrize(
    ("convolutions", "expected"),
    [(1, "l"), (2, "lh"), (3, "lmh"), (4, "lmmh"), (5, "llmhh"), (8, "llmmmmhh")],
)
def test_a_quarter_is_rounded_up(convolutions, expected):
    found = grouped(chain(*[4] * convolutions), 8)
    assert "".join(group[0] for _, group in found) == expected + "f"


def test_layers_without_features_are_all_fully_connected():
    found = grouped(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 5)), 2)
    assert [group for _, group in found] == ["fully_connected"] * 2


def test_three_stages_are_counted_in_blocks():
    """Fewer than four stages leave a quarter nothing, so the nine blocks of a CIFAR ResNet are counted."""

    class Block(nn.Module):
        def __init__(self, into, out):
            super().__init__()
            self.a, self.b = nn.Conv2d(into, out, 3, out // into, 1), nn.Conv2d(out, out, 3, 1, 1)
            self.shortcut = nn.Identity() if into == out else nn.Conv2d(into, out, 1, 2)

        def forward(self, x):
            return (self.b(self.a(x).relu()) + self.shortcut(x)).relu()

    widths = [4, 4, 4, 4, 8, 8, 8, 16, 16, 16]
    blocks = [Block(a, b) for a, b in zip(widths, widths[1:], strict=False)]
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    found = grouped(model, 16)
    assert members(found, "low") == layers_of(model, "0", "1", "2", "3")
    assert members(found, "mid") == layers_of(model, "4", "5", "6")
    assert members(found, "high") == layers_of(model, "7", "8", "9")


def test_a_network_of_few_blocks_is_counted_in_layers():
    class Towers(nn.Module):
        """Two chains of four side by side: a single block."""

        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Sequential(*(nn.Conv2d(3 if i == 0 else 4, 4, 1) for i in range(4))) for _ in range(2))
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            return self.head((self.a(x) + self.b(x)).mean((2, 3)))

    assert "".join(group[0] for _, group in grouped(Towers(), 4)) == "llmmmmhhf"


def test_only_edges_that_relevance_takes_count():
    """A normalisation by hand reads its input twice and is still a chain."""

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(3 if i == 0 else 4, 4, 1) for i in range(8))
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
                x = x * torch.rsqrt(x.var((1, 2, 3), keepdim=True) + 1e-6)
            return self.head(x.mean((2, 3)))

    found = grouped(Normalised(), 4)
    assert "".join(group[0] for _, group in found) == "llmmmmhhf"


def test_the_program_gives_each_group_its_rule():
    from pxp_fast.lrp import Composite

    torch.manual_seed(0)
    model = chain(4, 4, 4, 4).eval()
    composite = Composite(low="z-plus", mid="gamma", high="flat", layers={"2": {"rule": "gamma", "gamma": 0.5}})
    captured = capture(model, torch.zeros(2, 3, 8, 8))
    names = layer_names(captured)
    program = Program(captured, {}, composite, input_relevance=True)
    rules = {names[node]: found.describe() for node, found in program.layer_rules.items()}
    assert rules == {
        "0": {"rule": "z-plus"},
        "2": {"rule": "gamma", "gamma": 0.5},
        "4": {"rule": "gamma", "gamma": 0.25},
        "6": {"rule": "flat"},
        "9": {"rule": "epsilon"},
    }
