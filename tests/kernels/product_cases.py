"""Runs the simulated products as their launch code would, and compares with the definition in double precision."""

from __future__ import annotations

import ctypes

import torch
from cases import normal
from simulation import TYPES, Guarded, call, empty

from pxp_fast.ops import ACTIVATIONS
from pxp_fast.ops.convolution_epsilon import reference as convolution_reference
from pxp_fast.ops.linear_epsilon import reference as linear_reference

LARGE, SMALL, FMA, DIRECT, TALL = range(5)


class _ProductCase(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("type", "loop", "samples", "groups", "channels", "features", "head",
                                              "activation", "stabilized_sums")),
        *((name, ctypes.c_int64 * 2) for name in ("size", "above", "taps", "stride", "padding", "dilation")),
        *((name, ctypes.c_int64 * 4) for name in ("scaled", "weight", "output")),
        ("sums_kind", ctypes.c_int64),
        ("sums_sample", ctypes.c_int64),
    ]  # fmt: skip


def image(shape, dtype, seed, channels_last):
    """A guarded tensor [N, C, H, W], and a view of it."""
    if not channels_last:
        guarded = Guarded(normal(shape, dtype, seed))
        return guarded, guarded.tensor
    n, c, h, w = shape
    guarded = Guarded(normal((n, h, w, c), dtype, seed))
    return guarded, guarded.tensor.permute(0, 3, 1, 2)


def _widened(*tensors):
    return [None if t is None else t.double() for t in tensors]


def _compare(loop, dtype, result, sums, true, bound):
    """`true` and `bound`: result and sums, of the values and of their magnitudes (what sums are measured by)."""
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = dtype == torch.float32 and loop in (LARGE, SMALL, TALL)
    work = 2.0**-11 * 2.1 if rounded else 32 * torch.finfo(compute).eps
    error = (result.double() - true[0]).abs()
    assert (error <= torch.finfo(dtype).eps * true[0].abs() + work * bound[0].abs() + 1e-30).all(), error.max()
    if sums is not None:
        error = (sums.double() - true[1]).abs()
        assert (error <= work * bound[1]).all(), error.max()


def run(library, order, copies, loop, scaled, weight, output, carry, *, sums=True, stride=(1, 1), padding=(0, 0),
        dilation=(1, 1), groups=1, activation="relu", head=1, stabilized=False, channels_last=True):  # fmt: skip
    """All tensors as images; the result, and the sums (added to what was there)."""
    dtype, eps = output.dtype, 1e-2
    samples, channels = output.shape[:2]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    room = empty((samples, output.shape[2], output.shape[3], channels) if channels_last else output.shape, dtype)
    result = room.tensor.permute(0, 3, 1, 2) if channels_last else room.tensor
    assert carry is None or carry.stride() == result.stride()
    # The sums are a slice of a larger table.
    table = Guarded(normal((2, samples + 1, channels // head + 3), compute, 7))
    before = table.tensor.clone()
    part = table.tensor[:, 1:, 2:-1]
    case = _ProductCase(
        TYPES[dtype], loop, samples, groups, channels // groups, scaled.shape[1] // groups, head,
        ACTIVATIONS.index(activation), int(stabilized), tuple(output.shape[2:]), tuple(scaled.shape[2:]),
        tuple(weight.shape[2:]), stride, padding, dilation, scaled.stride(), weight.stride(), result.stride(),
        part.stride(0), part.stride(1),
    )  # fmt: skip
    call(library, "product_epsilon", order, ctypes.byref(case), eps, scaled, weight, output, carry, result,
         part if sums else None, copies=copies)  # fmt: skip
    room.check()
    table.check()
    inner, inner_before = part.clone(), before[:, 1:, 2:-1].clone()
    before[:, 1:, 2:-1] = inner
    assert torch.equal(table.tensor, before), "written beside the slice of sums"

    def definition(tensors, function, start):
        truth = start.double()
        scaled, weight, output, carry = tensors
        if weight.shape[2:] == (1, 1) and output.shape[2] == 1:  # a linear layer: one row of positions
            flat = [t if t is None else t[:, :, 0].transpose(1, 2) for t in (scaled, output, carry)]
            value = linear_reference(
                flat[0], weight[:, :, 0, 0], flat[1], flat[2], truth, eps, function, head, stabilized, False
            )
            return value.transpose(1, 2)[:, :, None], truth
        value = convolution_reference(scaled, weight, output, carry, truth, stride, padding, dilation, groups, eps,
                                      function, False)  # fmt: skip
        return value, truth

    values = _widened(scaled, weight, output, carry)
    magnitudes = [None if t is None else t.abs() for t in values]
    true = definition(values, activation, inner_before)
    bound = definition(magnitudes, "identity", inner_before.abs())
    _compare(loop, dtype, result, inner if sums else None, true, (bound[0] + 1e-6, bound[1] + 1e-6))
    if sums:
        return result, inner
    assert torch.equal(inner, inner_before)
    return result, None


def linear(library, order, loop, shape, features, dtype, *, copies="lazy", joined=True, **settings):
    """`shape` is [samples, positions, channels]."""
    samples, positions, channels = shape
    scaled, weight, output, carry = (
        image((samples, features, 1, positions), dtype, 1, True),
        image((features, channels, 1, 1), dtype, 2, True),
        image((samples, channels, 1, positions), dtype, 3, True),
        image((samples, channels, 1, positions), dtype, 4, True),
    )
    return run(library, order, copies, loop, scaled[1], weight[1], output[1], carry[1] if joined else None, **settings)


def convolution(library, order, loop, shape, features, kernel, dtype, *, copies="lazy", joined=True, groups=1,
                stride=(1, 1), padding=(0, 0), dilation=(1, 1), channels_last=True, **settings):  # fmt: skip
    """`shape` is that of the layer's input, [samples, channels, rows, columns]."""
    above = [
        (size + 2 * pad - gap * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, gap in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    scaled, weight, output, carry = (
        image((shape[0], features, *above), dtype, 1, channels_last),
        image((features, shape[1] // groups, *kernel), dtype, 2, channels_last),
        image(shape, dtype, 3, channels_last),
        image(shape, dtype, 4, channels_last),
    )
    return run(library, order, copies, loop, scaled[1], weight[1], output[1], carry[1] if joined else None,
               groups=groups, stride=stride, padding=padding, dilation=dilation, channels_last=channels_last,
               **settings)  # fmt: skip
