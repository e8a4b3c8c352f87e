"""Image folders and a small classifier that the tests of the shell share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

COLOURS = ((210, 40, 40), (40, 200, 60), (50, 60, 220))
SOURCE = '''
import torch
from torch import nn


def classifier(classes=3, width=6):
    """Tells red, green and blue pictures apart; no training, the weights are written down."""
    model = nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for channel in range(3):
            model[0].weight[channel, channel, 1, 1] = 1.0
            if channel < classes:
                model[4].weight[channel, channel] = 4.0
        generator = torch.Generator().manual_seed(1)
        model[0].weight[3:] = torch.randn(width - 3, 3, 3, 3, generator=generator) * 0.01
        model[4].weight[:, 3:] = torch.randn(classes, width - 3, generator=generator) * 0.01
    model.pxp_input = {"input_size": (3, 16, 16), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "crop_pct": 1.0}
    return model


def poisoned():
    model = classifier()
    with torch.no_grad():
        model[4].weight[1, 2] = float("nan")
    return model


class Branching(nn.Module):
    """Takes a path that depends on the values: no graph of it can be captured."""

    pxp_input = {"input_size": (3, 16, 16)}

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv(x)
        if float(y.sum()) > 0:
            y = y.relu()
        return self.head(y.mean((2, 3)))


class Overflowing(nn.Module):
    """Finite weights, infinite activations."""

    pxp_input = {"input_size": (3, 16, 16)}

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 4, 3)
        self.head = nn.Linear(4, 3)
        with torch.no_grad():
            self.first.weight.fill_(1e30)
            self.second.weight.fill_(1e30)

    def forward(self, x):
        return self.head(self.second(self.first(x)).mean((2, 3)))


def stacked():
    return nn.Conv2d(3, 4, 3)


def failing(**arguments):
    raise KeyError("no such layer")


number = 7
'''


def coloured_folder(root: Path, per_class: int = 6, names=("0", "1", "2"), size=(24, 20)) -> Path:
    """A folder of noisy red, green and blue pictures, one sub-folder of PNG files per colour."""
    generator = np.random.default_rng(0)
    for name, colour in zip(names, COLOURS, strict=False):
        (root / name).mkdir(parents=True)
        for position in range(per_class):
            noise = generator.integers(-30, 30, (size[1], size[0], 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{position:03d}.png")
    return root


def write_module(folder: Path) -> str:
    """Write `SOURCE` as a module of a fresh name, which is returned."""
    name = f"networks_{abs(hash(str(folder))) % 10**9}"
    (folder / f"{name}.py").write_text(SOURCE)
    return name


def tiny(classes: int = 3) -> nn.Module:
    """The network of `SOURCE`, without the detour through a file."""
    space: dict = {"__name__": "networks"}
    exec(SOURCE, space)
    return space["classifier"](classes)


def loaded(classes: int = 3, size: int = 16):
    """`tiny` as :func:`pxp_fast.models.load` would give it."""
    from pxp_fast.decode import Preprocess
    from pxp_fast.models import LoadedModel

    preprocess = Preprocess((3, size, size), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    return LoadedModel(tiny(min(classes, 3)).eval(), "networks:classifier", preprocess, classes, "as built")


def batches(loader) -> tuple[torch.Tensor, torch.Tensor]:
    """All of a loader's images and labels."""
    images, labels = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(labels)
