"""The engine on a GPU: fused or not, eager or replayed, beside float64 on the CPU."""

import pytest
import torch
from oracles.engine import relative_l1
from oracles.networks import pictures, randomise
from timm.models.vision_transformer import VisionTransformer
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from pxp_fast.criteria import CudaGraphs, Relevance, Step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the engine on a GPU needs one")
DEVICE = "cuda"
CLASSES = 10


def vit(**config):
    return VisionTransformer(num_classes=CLASSES, depth=2, **config)


# Wide enough for tensor cores, and what makes each: images, their size, the network.
NETWORKS = {
    "resnet": (6, 64, lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=CLASSES)),
    "bottlenecks": (3, 64, lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=CLASSES)),
    "vit": (6, 32, lambda: vit(img_size=32, patch_size=8, embed_dim=64, num_heads=4)),
    "vit of 197 tokens": (4, 224, lambda: vit(img_size=224, patch_size=16, embed_dim=96, num_heads=3)),
}
# As the program decides, always, never.
FUSED = [None, True, False]
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=NETWORKS)
def task(request):
    """A network, images and labels, all on the CPU in float32."""
    count, size, make = NETWORKS[request.param]
    images, labels = pictures(count, size, classes=CLASSES)
    return randomise(make(), images), images, labels


def program(task, dtype, **options) -> Relevance:
    model, images, _ = task
    return Relevance(model, images, dtype=dtype, device=DEVICE, **options)


def tables(task, *criteria):
    """What each finds, on the CPU."""
    _, images, labels = task
    return [c.run(images.to(DEVICE), labels.to(DEVICE)).cpu() for c in criteria]


def truth(task):
    model, images, labels = task
    exact = Relevance(model, images, dtype=torch.float64)
    return exact.units, exact.run(images.double(), labels)


def by_layer(units, table):
    return zip((group.name for group in units), table.split([group.count for group in units], dim=-1), strict=True)


def ranks(values):
    return values.double().argsort().argsort().double()


def test_float32_is_float64_of_the_cpu(task):
    units, true = truth(task)
    fused, plain = tables(task, *(program(task, torch.float32, exact=True, fused=f) for f in (True, False)))
    for pair in ((fused, true), (plain, true), (fused, plain)):
        for (layer, found), (_, expected) in zip(*(by_layer(units, t) for t in pair), strict=True):
            assert relative_l1(found, expected) < 1e-4, layer


@pytest.mark.parametrize("fused", FUSED)
def test_bfloat16_ranks_units_as_float64_does(task, fused):
    units, true = truth(task)
    (found,) = tables(task, program(task, torch.bfloat16, fused=fused))
    for (layer, ours), (_, expected) in zip(by_layer(units, found), by_layer(units, true), strict=True):
        if ours.shape[-1] >= 32:  # the ranks of a few heads say little
            for row in range(2):
                pair = torch.stack([ranks(t[row].sum(0)) for t in (ours, expected)])
                assert torch.corrcoef(pair)[0, 1] > 0.98, (layer, row)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fused", FUSED)
def test_two_runs_give_the_same_bits(task, dtype, fused):
    first = program(task, dtype, fused=fused)
    one, two, three = tables(task, first, first, program(task, dtype, fused=fused))
    assert torch.equal(one, two) and torch.equal(one, three)


@pytest.mark.filterwarnings("error::pxp_fast.criteria.GraphWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fused", FUSED)
def test_replayed_steps_give_the_bits_of_eager_ones(task, dtype, fused):
    _, images, labels = task
    criterion = program(task, dtype, fused=fused)
    images, labels = images.to(DEVICE), labels.to(DEVICE)
    eager, graphed = Step(criterion), Step(criterion, recorder=CudaGraphs(criterion.program.device))
    for turn in range(4):
        for step in (eager, graphed):
            step(images.roll(turn, 0), labels.roll(turn, 0))
    assert torch.equal(graphed.totals, eager.totals)
