"""What a batch must be for a captured classifier to take it."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import DataError
from .graph import Captured


def check_batch(captured: Captured, images: Tensor, targets: Tensor) -> None:
    """Raise DataError unless the classifier can take this batch. Labels are looked at only on the CPU."""
    if not isinstance(images, Tensor) or not isinstance(targets, Tensor):
        raise DataError(
            f"a batch is {type(images).__name__} and {type(targets).__name__}; pass tensors: images "
            "[N, C, H, W] and labels [N] int64"
        )
    expected = tuple(captured.images.meta["val"].shape[1:])
    if tuple(images.shape[1:]) != expected:
        raise DataError(
            f"images are {list(images.shape)}, the model was captured for [N, {', '.join(map(str, expected))}]; "
            "resize them or capture again"
        )
    if targets.shape != images.shape[:1] or targets.dtype != torch.int64:
        raise DataError(
            f"labels are {targets.dtype} {list(targets.shape)}; expected int64 [{len(images)}], one class per image"
        )
    classes = captured.num_classes
    if targets.numel() and targets.device.type == "cpu":
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"labels run from {low} to {high}, but the model has {classes} classes (0 ... {classes - 1}); "
                "map the labels to the model's classes"
            )
    if images.device.type == "cpu" and images.is_floating_point() and not bool(torch.isfinite(images).all()):
        # Quick kernels of ReLU may turn NaN into 0, after which nothing would tell.
        bad = int((~torch.isfinite(images).flatten(1).all(1)).sum())
        raise DataError(f"{bad} of {len(images)} images hold values that are not finite; check how they are made")
