"""Max pools in the engine: beside the definition in float64, wherever the pass of the layer below may come along."""

import pytest
import torch
import torch.nn.functional as F
from oracles.definition import Definition
from oracles.engine import by_unit, relative_l1
from oracles.networks import pictures, randomise
from torch import nn

from pxp_fast.criteria import Relevance, attribute
from pxp_fast.lrp.pools import MaxPool
from pxp_fast.ops._library import native


class Network(nn.Module):
    """Two convolutions, what is tried between them, a classifier."""

    def __init__(self, between) -> None:
        super().__init__()
        self.stem, self.conv, self.side = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 20, 3), nn.Conv2d(20, 20, 1)
        self.last, self.head, self.between = nn.Conv2d(20, 8, 3, padding=1), nn.Linear(8, 5), between

    def forward(self, x):
        return self.head(self.last(self.between(self, self.conv(F.relu(self.stem(x))))).mean((2, 3)))


def residual(m, x):
    y = F.relu(x)
    return F.max_pool2d(F.relu(y + m.side(y)), 3, 2, 1)


def joined(m, x):
    """The pool's input has another reader: its carry joins, and the value is needed once more."""
    y = F.relu(x)
    return F.max_pool2d(y, 3, 1, 1) + m.side(y)


def twice(m, x):
    y = F.relu(x)
    return F.max_pool2d(y, 2) + F.max_pool2d(y, 3, 2, 1)[..., :6, :6]


NETWORKS = {
    "relu": lambda m, x: F.max_pool2d(F.relu(x), 2),
    "no activation": lambda m, x: F.max_pool2d(x, 3, 2, 1),
    "gelu": lambda m, x: F.max_pool2d(F.gelu(x), 3, 2),
    "ceil": lambda m, x: F.max_pool2d(F.relu(x), 3, 2, ceil_mode=True),
    "dilated": lambda m, x: F.max_pool2d(F.relu(x), 3, 2, 1, 2),
    "oblong": lambda m, x: F.max_pool2d(F.relu(x), (3, 2), (1, 2), (1, 0)),
    "pool of a pool": lambda m, x: F.max_pool2d(F.max_pool2d(F.relu(x), 2), 3, 1, 1),
    "average below": lambda m, x: F.max_pool2d(F.avg_pool2d(F.relu(x), 2), 2),
    "concatenation below": lambda m, x: m.side(F.max_pool2d(torch.cat((F.relu(x)[:, :10], x[:, 10:]), 1), 2)),
    "view below": lambda m, x: F.max_pool2d(F.relu(x)[:, :, 1:], 2),
    "relu above": lambda m, x: F.relu(F.max_pool2d(x, 2)),
    "residual": residual,
    "joined": joined,
    "twice": twice,
}


def task(name):
    torch.manual_seed(0)
    images, labels = pictures(3, 14, classes=5)
    return randomise(Network(NETWORKS[name]), images), images, labels


@pytest.mark.parametrize("name", NETWORKS)
def test_sums_are_the_definitions(name):
    model, images, labels = task(name)
    truth = Definition(model.double())(images.double(), labels)
    model.float()
    relevance = Relevance(model, images)
    assert any(isinstance(step, MaxPool) for step in relevance.program.steps)
    table = relevance.run(images, labels)
    for unit, found in by_unit(relevance, table).items():
        at = truth.at[unit].flatten(2)
        assert relative_l1(found, torch.stack((at.sum(2), at.abs().sum(2)))) < 1e-4, unit
    # What was written over is made anew each time.
    assert torch.equal(relevance.run(images, labels), table)
    assert relative_l1(attribute(model, images, labels), truth.input) < 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_is_near(name):
    """No worse than what rounding every value makes of it: a fault would be of the size of the sums."""
    model, images, labels = task(name)
    relevance = Relevance(model, images)
    whole = relevance.run(images, labels)
    narrow = Relevance(model, images, dtype=torch.bfloat16).run(images, labels)
    assert relative_l1(narrow[1], whole[1]) < 0.2


@pytest.mark.skipif(native["CPU"] != "loaded", reason="the references pool by PyTorch's operator")
def test_channels_last_pools_keep_no_indices():
    model, images, labels = task("relu")
    relevance = Relevance(model, images)
    with torch.profiler.profile() as profile:
        relevance.run(images, labels)
    names = {event.key for event in profile.key_averages()}
    assert not any("max_pool2d" in name for name in names) and "pxp_fast::max_pool_epsilon_" in names


def test_a_pool_of_the_images_leaves_them_as_they_are():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 5)

        def forward(self, x):
            return self.head(F.relu(self.conv(F.max_pool2d(x, 2))).mean((2, 3)))

    torch.manual_seed(0)
    images, labels = pictures(3, 14, classes=5)
    model = randomise(Pooled(), images)
    truth = Definition(model.double())(images.double(), labels)
    given = images.contiguous(memory_format=torch.channels_last)
    before = given.clone()
    assert relative_l1(attribute(model.float(), given, labels), truth.input) < 1e-4
    assert torch.equal(given, before)


class Meeting(nn.Module):
    """A pool and a convolution that share their sum's carry, the pool made last: on the way back it comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(8, 8, 2, 2),
        )
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        left, right = torch.relu(self.left(x)), torch.relu(self.right(x))
        return self.head(torch.relu(torch.max_pool2d(left, 2) + right).mean((2, 3)))


def test_a_carry_that_a_pool_holds_is_not_written_over():
    torch.manual_seed(0)
    model, images, labels = Meeting().eval(), torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 3])
    found = Relevance(model, images).run(images, labels)
    truth = Relevance(model, images, dtype=torch.float64).run(images, labels)
    assert float((found - truth).abs().max() / truth.abs().max()) < 1e-5
