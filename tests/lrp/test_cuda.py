"""The engine on a GPU: fused or not, eager or replayed, beside float64 on the CPU."""

import functools

import pytest
import torch
from oracles.engine import by_unit, relative_l1
from oracles.networks import pictures, randomise
from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer

from pxp_fast.criteria import CudaGraphs, Relevance, Step

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="the engine on a GPU needs one")
DEVICE = "cuda"
CLASSES = 10


def vit(**config):
    return VisionTransformer(num_classes=CLASSES, depth=2, **config)


# Wide enough for tensor cores: how many images, their size, and what makes the network.
NETWORKS = {
    "resnet": (12, 64, lambda: ResNet(BasicBlock, [1, 1, 1, 1], CLASSES, channels=(32, 32, 64, 64))),
    "vit": (6, 32, lambda: vit(img_size=32, patch_size=8, embed_dim=64, num_heads=4)),
    "vit of 197 tokens": (4, 224, lambda: vit(img_size=224, patch_size=16, embed_dim=96, num_heads=3)),
}
# As the program decides, always, never.
FUSED = [None, True, False]
DTYPES = [torch.float32, torch.bfloat16]

networks = pytest.mark.parametrize("network", NETWORKS)
fusions = pytest.mark.parametrize("fused", FUSED)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "bfloat16"])


@functools.cache
def task(network):
    """A network, images and the classes it chooses, all on the CPU in float32.

    Relevance is divided by the logit, so where that is almost zero all of it carries the logit's rounding error.
    """
    torch.manual_seed(0)
    count, size, make = NETWORKS[network]
    images, _ = pictures(count, size)
    model = randomise(make(), images)
    with torch.no_grad():
        return model, images, model(images).argmax(1)


@functools.cache
def criterion(network, dtype, fused, exact=False) -> Relevance:
    model, images, _ = task(network)
    return Relevance(model, images, dtype=dtype, device=DEVICE, fused=fused, exact=exact)


def batch(network):
    return [t.to(DEVICE) for t in task(network)[1:]]


@functools.cache
def truth(network):
    """Every layer's sums ``[2, N, units]``."""
    model, images, labels = task(network)
    exact = Relevance(model, images, dtype=torch.float64)
    return by_unit(exact, exact.run(images.double(), labels))


def found(network, dtype, fused, exact=False):
    relevance = criterion(network, dtype, fused, exact)
    return by_unit(relevance, relevance.run(*batch(network)).cpu())


def ranks(values):
    return values.double().argsort().argsort().double()


def assert_close(sums, truth):
    """A ReLU's input next to zero may fall on its other side: few samples meet that, but all layers below show it."""
    errors = torch.tensor([relative_l1(sums[:, n], truth[:, n]) for n in range(truth.shape[1])])
    assert errors.median() < 1e-4 and errors.max() < 1e-2, errors


@networks
def test_float32_is_float64_of_the_cpu(network):
    true = truth(network)
    fused, plain = (found(network, torch.float32, choice, exact=True) for choice in (True, False))
    assert fused.keys() == plain.keys() == true.keys()
    for layer in true:
        assert_close(fused[layer], true[layer])
        assert_close(plain[layer], true[layer])
        assert_close(fused[layer], plain[layer])


@networks
@fusions
def test_bfloat16_ranks_units_as_float64_does(network, fused):
    narrow = found(network, torch.bfloat16, fused)
    for layer, true in truth(network).items():
        if true.shape[-1] >= 32:  # the ranks of a few heads say little
            for row in range(2):
                pair = torch.stack([ranks(sums[row].sum(0)) for sums in (narrow[layer], true)])
                assert torch.corrcoef(pair)[0, 1] > 0.9, (layer, row)


@networks
@dtypes
@fusions
def test_two_runs_give_the_same_bits(network, dtype, fused):
    relevance = criterion(network, dtype, fused)
    images, labels = batch(network)
    first = relevance.run(images, labels).clone()
    assert torch.equal(relevance.run(images, labels), first)


@pytest.mark.filterwarnings("error::pxp_fast.criteria.GraphWarning")
@networks
@dtypes
@fusions
def test_replayed_steps_give_the_bits_of_eager_ones(network, dtype, fused):
    relevance = criterion(network, dtype, fused)
    images, labels = batch(network)
    eager, replayed = Step(relevance), Step(relevance, recorder=CudaGraphs(relevance.program.device))
    for turn in range(4):
        for step in (eager, replayed):
            step(images.roll(turn, 0), labels.roll(turn, 0))
    assert torch.equal(replayed.totals, eager.totals)
