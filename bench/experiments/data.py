"""CIFAR-10 as the experiments use it: which images score, which judge."""

from __future__ import annotations

import functools

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench import assets

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
DEVIATION = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)


@functools.cache
def arrays() -> dict[str, Tensor]:
    """{train,test}_images uint8 [n, 3, 32, 32] and {train,test}_labels int64 [n]."""
    return load_file(assets.path("cifar10"))


def normalize(images: Tensor) -> Tensor:
    """From bytes to float32 of mean 0 and deviation 1 over the training images."""
    return (images.float() / 255 - MEAN.to(images.device)) / DEVIATION.to(images.device)


def balanced(labels: Tensor, per_class: int, seed: int) -> Tensor:
    """Indices of `per_class` random images of every class, class by class in turn, so that every prefix is balanced."""
    generator = torch.Generator().manual_seed(seed)
    columns = []
    for label in labels.unique(sorted=True):
        members = (labels == label).nonzero().flatten()
        columns.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.stack(columns, 1).flatten()


def images(split: str, per_class: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Normalised images [n, 3, 32, 32] and labels [n] of a balanced subset of ``"train"`` or ``"test"``."""
    labels = arrays()[f"{split}_labels"]
    index = balanced(labels, per_class, seed)
    return normalize(arrays()[f"{split}_images"][index]), labels[index]


def batches(found: tuple[Tensor, Tensor], size: int) -> list[tuple[Tensor, Tensor]]:
    """Pairs of images and labels, `size` at a time."""
    return list(zip(found[0].split(size), found[1].split(size), strict=True))
