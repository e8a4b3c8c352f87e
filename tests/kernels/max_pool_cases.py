"""Runs the simulated kernels of `max_pool` as their launch code would, and compares with the operators' references."""

from __future__ import annotations

import ctypes

import torch
from cases import close, normal
from simulation import TYPES, Guarded, call, empty, last_blocks
from sparse_memory import zeros

from pxp_fast.ops.max_pool import reference, reference_epsilon

F32 = torch.float32
RESNET = ((3, 3), (2, 2), (1, 1), (1, 1), False)
WINDOWS = [((2, 2), (2, 2), (0, 0), (1, 1), False), RESNET, ((3, 2), (1, 2), (1, 1), (2, 3), False),
           ((2, 3), (3, 2), (1, 0), (4, 2), True), ((1, 2), (3, 3), (0, 0), (1, 1), False)]  # fmt: skip


class Axis(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("size", "pooled", "kernel", "stride", "padding", "dilation")]


class Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ("samples", "channels", "units")] + [("axes", Axis * 2)]


def shape_of(samples, channels, units, sizes, window):
    pooled = torch.max_pool2d(torch.zeros(1, 1, *sizes), *window).shape[2:]
    *numbers, _ = window
    axes = (Axis(sizes[i], pooled[i], *(pair[i] for pair in numbers)) for i in range(2))
    return Shape(samples, channels, units, (Axis * 2)(*axes)), pooled


def ties(shape, dtype, seed):
    return (normal(shape, torch.float64, seed) * 1.5).round().to(dtype)


def images_of(tensor, channels_last):
    """``[sample][row][column][channel]`` as ``[N, C, H, W]``."""
    return tensor.permute(0, 3, 1, 2) if channels_last else tensor.permute(3, 0, 1, 2)


def max_pool(library, order, window, dtype, *, channels=8, sizes=(7, 9), vector=False, nan=False):
    shape, pooled = shape_of(2, channels, channels, sizes, window)
    assert library.max_pool_shape_size() == ctypes.sizeof(Shape)
    value, result = Guarded(ties((2, *sizes, channels), dtype, 1)), empty((2, *pooled, channels), dtype)
    if nan:
        value.tensor.view(-1)[::7] = torch.nan
    call(library, "max_pool", order, TYPES[dtype], int(vector), ctypes.byref(shape), value.tensor, result.tensor)
    expected = reference(images_of(value.tensor, True).contiguous(), *window)
    found = images_of(result.check(), True)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def epsilon(library, order, window, dtype, *, channels=8, sizes=(7, 9), vector=False, width=4, block_positions=16,
            in_place=False, rest=True, summed=True, eps=1e-2, contiguous=False, nan=False):  # fmt: skip
    """Contiguous tensors have two samples of one channel for each of the two images' channels."""
    samples, per_sample, units = (2, channels, channels) if not contiguous else (2 * channels, 1, channels)
    shape, pooled = shape_of(samples, per_sample, units, sizes, window)
    value = Guarded(ties((samples, *sizes, per_sample), dtype, 1))
    if nan:
        value.tensor.view(-1)[::7] = torch.nan
    carry, others = (
        Guarded(normal((samples, *pooled, per_sample), dtype, 2)),
        Guarded(normal(value.tensor.shape, dtype, 3)),
    )
    result = value if in_place else empty(value.tensor.shape, dtype)
    wide = torch.float64 if dtype == torch.float64 else F32
    blocks = -(-sizes[0] * sizes[1] // block_positions)
    partials = empty((2, blocks, samples * per_sample), wide)
    table = Guarded(normal((2, 2, channels + 5), wide, 4))  # [image, which, unit], with other units on both sides
    sums = table.tensor[:, :, 2:-3].transpose(0, 1)
    # The reference first: the value may be written over.
    given = [images_of(t.tensor, True) for t in (carry, value, others)]
    if contiguous:
        given = [t.reshape(2, channels, *t.shape[2:]) for t in given]
    expected_table, before = table.tensor.clone(), given[1].clone()
    expected_sums = expected_table[:, :, 2:-3].transpose(0, 1) if summed else None
    expected = reference_epsilon(given[0], before, given[2] if rest else None, expected_sums, *window, eps)
    numbers = torch.full((carry.tensor.numel(),), -1, dtype=torch.int16)
    call(
        library, "max_pool_epsilon", order, TYPES[dtype], int(vector), ctypes.byref(shape), carry.tensor, value.tensor,
        others.tensor if rest else None, result.tensor, numbers, partials.tensor if summed else None, sums,
        sums.stride(0), sums.stride(1), width, blocks, block_positions, -1.0 if eps is None else eps,
    )  # fmt: skip
    if summed:
        partials.check()
    carry.check(), others.check()
    found = images_of(result.check(), True).reshape(expected.shape)
    torch.testing.assert_close(found.isnan(), expected.isnan())
    close(found.nan_to_num(0), expected.nan_to_num(0), dtype)
    torch.testing.assert_close(table.check(), expected_table, rtol=1e-5, atol=1e-4, equal_nan=True)


def many_samples(library):
    """The last windows, positions and sums of 2^28 samples of 24 values."""
    samples, channels, sizes, some = 2**28, 4, (2, 3), 64
    window = ((2, 2), (1, 1), (0, 0), (1, 1), False)
    shape, pooled = shape_of(samples, channels, channels, sizes, window)
    value, rest, result = (zeros(samples * 24, F32).view(samples, *sizes, channels) for _ in range(3))
    carry = zeros(samples * 8, F32).view(samples, *pooled, channels)
    numbers = zeros(samples * 8, torch.int16).view(samples, *pooled, channels)
    partials, sums = (zeros(2 * samples * channels, F32) for _ in range(2))
    for seed, tensor in enumerate((value, rest, carry)):
        tensor[-some:] = normal((some, *tensor.shape[1:]), F32, seed)
    with last_blocks(library, some):
        call(
            library, "max_pool_epsilon", "random", TYPES[F32], 1, ctypes.byref(shape), carry, value, rest, result,
            numbers, partials, sums, samples * channels, channels, 1, 1, 16, 1e-2,
        )  # fmt: skip
    last = [images_of(t[-some:], True).contiguous() for t in (carry, value, rest)]
    expected_sums = torch.zeros(2, some, channels)
    expected = reference_epsilon(*last, expected_sums, *window, 1e-2)
    close(images_of(result[-some:], True), expected, F32)
    torch.testing.assert_close(sums.view(2, samples, channels)[1, -some:], expected_sums[1], rtol=1e-5, atol=1e-5)
