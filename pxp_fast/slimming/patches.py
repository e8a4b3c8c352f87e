"""The rows of numbers that a layer's weights are multiplied with, so that it is one product of matrices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from ..lrp.fold import LINEAR
from ..lrp.graph import argument

_CHUNK_BYTES = 64 << 20


def patches(node: fx.Node, weight: Tensor, images: Tensor, group: int, channels: Tensor) -> Tensor:
    """What some input channels of one group of a layer show each of its outputs.

    Parameters
    ----------
    node
        A convolution or a linear layer.
    weight
        ``[O, C / groups, *kernel]``; only its shape matters.
    images
        The layer's input, ``[N, C, *size]`` for a convolution, ``[..., C]`` for a linear layer.
    group, channels
        Channels of a convolution's group, by their place in it.

    Returns
    -------
    Tensor
        ``[positions, channels * kernel]``, positions in the order of the layer's output with its channels moved last.
    """
    if node.target is LINEAR:
        return images.index_select(-1, channels).flatten(0, -2)
    kernel = weight.shape[2:]
    picked = images.index_select(1, channels + group * weight.shape[1])
    strides, dilations = (_each(argument(node, name), len(kernel)) for name in ("stride", "dilation"))
    padded = torch.nn.functional.pad(picked, _padding(argument(node, "padding"), kernel, dilations))
    for dim, (size, stride, dilation) in enumerate(zip(kernel, strides, dilations, strict=True), 2):
        # Every step adds the kernel's dimension at the end.
        padded = padded.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    return padded.movedim(1, 1 + len(kernel)).flatten(1 + len(kernel)).flatten(0, -2)


def by_position(node: fx.Node, outputs: Tensor) -> Tensor:
    """A layer's output as ``[positions, O]``, in the order of :func:`patches`."""
    return (outputs if node.target is LINEAR else outputs.movedim(1, -1)).flatten(0, -2)


def chunks(weight: Tensor, images: Tensor, *outputs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Parts of a batch, inputs and outputs, whose patches stay small."""
    row = weight[0].numel() * weight.element_size()
    positions = outputs[0][0].numel() // weight.shape[0]
    count = max(1, _CHUNK_BYTES // max(1, row * positions))
    yield from zip(*(one.split(count) for one in (images, *outputs)), strict=True)


def _each(value: int | list[int], count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _padding(padding: object, kernel: torch.Size, dilations: list[int]) -> list[int]:
    """Zeros before and after each dimension, the last one first, as ``torch.nn.functional.pad`` wants them."""
    if isinstance(padding, str):
        total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(p, p) for p in _each(padding, len(kernel))]
    return [zeros for side in reversed(sides) for zeros in side]
