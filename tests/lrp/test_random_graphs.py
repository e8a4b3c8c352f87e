"""Random graphs, whose values meet in ways that no published network has: memory that is reused must be nobody's."""

import random

import pytest
import torch
import torch.nn.functional as F
from oracles.engine import unit_sums
from oracles.networks import pictures, randomise
from torch import nn

from pxp_fast.lrp import program
from pxp_fast.lrp.rules import Run

CHANNELS, LAYERS, STEPS = 6, 8, 12


class Tangle(nn.Module):
    """Convolutions, activations, pools, sums and concatenations, each of some of the last four values."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.seed = seed
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1) for _ in range(LAYERS))
        self.head = nn.Linear(CHANNELS, 5)

    def forward(self, x):
        choose = random.Random(self.seed)
        half = CHANNELS // 2
        kinds = [
            lambda layer, a, b: layer(a),
            lambda layer, a, b: F.relu(layer(a)),
            lambda layer, a, b: F.gelu(layer(a)),
            lambda layer, a, b: F.max_pool2d(a, 3, 1, 1),
            lambda layer, a, b: F.max_pool2d(a, 3, 1, 1) + b,
            lambda layer, a, b: a + b,
            lambda layer, a, b: F.relu(a + b),
            lambda layer, a, b: torch.cat([a[:, :half], b[:, half:]], 1),
        ]
        values = [F.relu(self.stem(x))]
        for _ in range(STEPS):
            a, b = choose.choice(values[-4:]), choose.choice(values[-4:])
            values.append(choose.choice(kinds)(choose.choice(self.layers), a, b))
        return self.head(sum(values[-3:]).mean((2, 3)))


@pytest.mark.parametrize("composite", ["epsilon", "epsilon-plus"])
@pytest.mark.parametrize("seed", range(16))
def test_the_quick_way_agrees_with_float64(seed, composite):
    """float64 shares hardly any of it: its layers are not packed, its pools are autograd's."""
    images, labels = pictures(2, 8, seed=3, classes=5)
    model = randomise(Tangle(seed), images, seed)
    found = unit_sums(model, images, labels, composite=composite)
    truth = unit_sums(model.double(), images.double(), labels, composite=composite)
    scale = max(float(sums.abs().max()) for sums in truth.values())
    for name, sums in truth.items():
        assert float((found[name] - sums).abs().max()) < 1e-4 * scale, name


class Sparing(Run):
    """A pass that never writes over a value."""

    spent = property(lambda self: False, lambda self, value: None)


@pytest.mark.parametrize("seed", range(16))
def test_writing_over_spent_values_changes_no_bit(seed, monkeypatch):
    images, labels = pictures(2, 8, seed=3, classes=5)
    model = randomise(Tangle(seed), images, seed)
    found = unit_sums(model, images, labels)
    monkeypatch.setattr(program, "Run", Sparing)
    spared = unit_sums(model, images, labels)
    assert all(torch.equal(found[name], spared[name]) for name in spared)
