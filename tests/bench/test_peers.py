"""The contenders of the benchmark do the same work: they find the same relevance of every unit."""

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from bench.networks import batches, network
from bench.peers import CONTENDERS, YARDSTICK, contenders, yardstick_like
from bench.peers.captum import Captum
from bench.peers.compiled import Compiled
from bench.peers.gradient import Gradient
from bench.peers.hooks import Hooks
from bench.peers.pxp import PxpFast, PxpFastGraph
from bench.peers.torch_pruning import TorchPruning
from bench.peers.zennit import Zennit
from tests.oracles.networks import pictures, randomise

CLASSES = 7
CLASSIFIERS = ("fc", "classifier.3")


class Vgg(nn.Module):
    """torchvision's VGG in small."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers, channels = [], 3
        for width in (6, 6, "pool", 10, "pool"):
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), *[nn.BatchNorm2d(width)] * norm]
                layers.append(nn.ReLU(inplace=True))
                channels = width
        self.features, self.avgpool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d((2, 2))
        hidden = [nn.Linear(40, 12), nn.ReLU(inplace=True), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(12, CLASSES))

    def forward(self, images):
        return self.classifier(torch.flatten(self.avgpool(self.features(images)), 1))


class Resnet(nn.Module):
    """torchvision's ResNet in small, of its own blocks."""

    def __init__(self, block: type) -> None:
        super().__init__()
        wide = 8 * block.expansion
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=False), nn.BatchNorm2d(8)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        shortcuts = [self.shortcut(8, wide, 1) if wide != 8 else None, self.shortcut(wide, wide, 2)]
        self.layer1, self.layer2 = block(8, 8, downsample=shortcuts[0]), block(wide, 8, 2, shortcuts[1])
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(wide, CLASSES)

    @staticmethod
    def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, images):
        x = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(images))))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


NETWORKS = {
    "resnet": lambda: Resnet(BasicBlock),
    "bottleneck": lambda: Resnet(Bottleneck),
    "vgg": lambda: Vgg(norm=False),
    "vgg_bn": lambda: Vgg(norm=True),
}


def sums(peer, name, dtype, **options):
    """Unit sums of one contender, the class explained being the one that the network chooses."""
    torch.manual_seed(0)
    images, _ = pictures(2, 32)
    model = randomise(NETWORKS[name](), images)
    labels = model(images).argmax(1)
    images = images.to(dtype)
    contender = peer(model.to(dtype), images, dtype, **options)
    contender.run(contender.prepare(images), labels)
    return {layer: found for layer, found in contender.unit_sums().items() if layer not in CLASSIFIERS}


@pytest.fixture
def batch():
    return pictures(2, 16, classes=CLASSES)


def assert_same_relevance(found, truth, bound):
    assert found.keys() == truth.keys() and len(truth) >= 4
    for layer in truth:
        error = (found[layer].double() - truth[layer].double()).abs().sum() / truth[layer].double().abs().sum()
        assert error < bound, (layer, error)


BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4}


@pytest.mark.parametrize("dtype", BOUNDS, ids=["float64", "float32"])
@pytest.mark.parametrize("name", ["resnet", "bottleneck", "vgg_bn"])
def test_same_relevance_as_zennit(name, dtype):
    truth = sums(Zennit, name, dtype)
    for peer, options in ((Hooks, {}), (PxpFast, {}), (Compiled, {"backend": "aot_eager"})):
        assert_same_relevance(sums(peer, name, dtype, **options), truth, BOUNDS[dtype])


def test_compiled_network_finds_the_same_relevance():
    """What Inductor makes of it; above, its graph alone, which takes no compiler."""
    found, truth = (sums(peer, "vgg", torch.float32) for peer in (Compiled, Zennit))
    assert_same_relevance(found, truth, BOUNDS[torch.float32])


@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]
)
def test_the_step_that_users_get_adds_up_the_same_relevance(device, batch):
    images, labels = (t.to(device) for t in batch)
    model = randomise(NETWORKS["resnet"](), batch[0]).to(device)
    single, step = (peer(model, images, torch.float32) for peer in (PxpFast, PxpFastGraph))
    single.run(images, labels)
    for _ in range(3):
        step.run(images, labels)
    truth = {layer: 3 * found.double().sum(0) for layer, found in single.unit_sums().items()}
    assert_same_relevance(step.unit_sums(), truth, 1e-12)


def test_captum_is_right_on_vgg():
    """captum stabilises max pools as well, which moves float64 sums a little."""
    found, truth = (sums(peer, "vgg", torch.float64) for peer in (Captum, Zennit))
    assert_same_relevance(found, truth, 1e-6)


def test_captum_is_wrong_on_resnets():
    """Why it does not take part there."""
    found, truth = (sums(peer, "resnet", torch.float64)["conv1"] for peer in (Captum, Zennit))
    assert not (found - truth).abs().sum() < truth.abs().sum()


@pytest.mark.parametrize("name", ["bottleneck", "vgg_bn"])
def test_torch_pruning_scores_every_unit_once(name, batch):
    images, labels = batch
    peer = TorchPruning(randomise(NETWORKS[name](), images), images, torch.float32, classes=CLASSES)
    peer.run(images, labels)
    scores = peer.unit_sums()
    assert len(scores) >= 4
    for layer, values in scores.items():
        assert values.shape == (dict(peer.model.named_modules())[layer].weight.shape[0],), layer
        assert values.isfinite().all() and (values > 0).any(), layer
        mean = values.mean()  # as Torch-Pruning normalises
        assert mean == pytest.approx(1, rel=1e-5), layer


@pytest.mark.parametrize("channels_last", [False, True])
def test_yardstick_is_the_gradient(channels_last, batch):
    images, labels = batch
    model = randomise(NETWORKS["resnet"](), images).double()
    x = images.double().requires_grad_()
    (truth,) = torch.autograd.grad(model(x)[torch.arange(2), labels].sum(), x)
    peer = Gradient(model, images, torch.float64, channels_last=channels_last)
    given = peer.prepare(images)
    assert given.is_contiguous(memory_format=torch.channels_last) == channels_last
    peer.run(given, labels)
    torch.testing.assert_close(peer.result, truth)


def test_everyone_is_compared_with_a_yardstick_that_runs():
    for device in ("cpu", "cuda"):
        for name in ("resnet18", "vgg16", "vit_s_16"):
            running = contenders(name, device)
            assert running[0] == YARDSTICK
            assert {yardstick_like(contender, name) for contender in running} <= set(running)
    assert yardstick_like("pxp_fast bfloat16", "resnet18") == "gradient bfloat16 channels-last"
    assert yardstick_like("pxp_fast bfloat16", "vit_s_16") == "gradient bfloat16"
    assert all(contender.networks for contender in CONTENDERS.values())


def test_batches_differ_and_repeat():
    first, second = batches(2, 3, 8)
    assert first[0].shape == (3, 3, 8, 8) and not torch.equal(first[0], second[0])
    assert torch.equal(first[0], batches(2, 3, 8)[0][0])


def test_networks_explain_something():
    """No head or bias is zero, so no relevance vanishes."""
    for key, parameter in network("resnet18").named_parameters():
        assert parameter.any(), key
