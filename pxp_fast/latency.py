"""How long networks take on this device, side by side."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .lrp.capture import evaluating

_LEAST = 7


@torch.inference_mode()
def side_by_side(models: Sequence[nn.Module], images: Tensor, seconds: float = 1.0) -> list[float]:
    """The time that each of several models takes for a batch, in milliseconds: the median of its runs.

    They run in turn, so that whatever else the machine does falls on all of them alike.

    Parameters
    ----------
    images
        ``[N, C, H, W]``, on the device and in the precision of the models.
    seconds
        For each model, but at least seven runs.
    """
    taken: list[list[float]] = [[] for _ in models]
    with contextlib.ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        for model in models:  # the first runs choose algorithms and allocate
            _run(model, images), _run(model, images)
        end = time.perf_counter() + seconds * len(models)
        while len(taken[-1]) < _LEAST or time.perf_counter() < end:
            for model, times in zip(models, taken, strict=True):
                times.append(_run(model, images))
    return [1e3 * statistics.median(times) for times in taken]


def _run(model: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    model(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
