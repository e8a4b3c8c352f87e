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
EPS = 1e-2


class _ProductCase(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("type", "loop", "samples", "groups", "channels", "features", "head",
                                              "activation", "stabilized_sums")),
        *((name, ctypes.c_int64 * 2) for name in ("size", "above", "taps", "stride", "padding", "dilation")),
        *((name, ctypes.c_int64 * 4) for name in ("scaled", "weight", "output")),
        ("sums_kind", ctypes.c_int64),
        ("sums_sample", ctypes.c_int64),
    ]  # fmt: skip


def images(shapes, dtype, channels_last, joined):
    """Views [N, C, H, W] of guarded tensors; None for the last of four, the carry, where nothing joins."""
    tensors = []
    for seed, (n, c, h, w) in enumerate(shapes, 1):
        if channels_last:
            tensors.append(Guarded(normal((n, h, w, c), dtype, seed)).tensor.permute(0, 3, 1, 2))
        else:
            tensors.append(Guarded(normal((n, c, h, w), dtype, seed)).tensor)
    return tensors if joined else [*tensors[:3], None]


def launch(library, order, copies, loop, tensors, result, sums, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1),
           groups=1, activation="relu", head=1, stabilized=False):  # fmt: skip
    """`tensors`: scaled, weight, output and carry, as images; the last, like `sums`, may be None."""
    scaled, weight, output, _ = tensors
    samples, channels = output.shape[:2]
    case = _ProductCase(
        TYPES[output.dtype], loop, samples, groups, channels // groups, scaled.shape[1] // groups, head,
        ACTIVATIONS.index(activation), int(stabilized), tuple(output.shape[2:]), tuple(scaled.shape[2:]),
        tuple(weight.shape[2:]), stride, padding, dilation, scaled.stride(), weight.stride(), result.stride(),
        *((0, 0) if sums is None else sums.stride()[:2]),
    )  # fmt: skip
    call(library, "product_epsilon", order, ctypes.byref(case), EPS, *tensors, result, sums, copies=copies)


def _definition(tensors, sums, *, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1, activation="relu", head=1,
                stabilized=False):  # fmt: skip
    """What the result must be; adds to `sums`."""
    scaled, weight, output, carry = tensors
    if weight.shape[2:] == (1, 1) and output.shape[2] == 1:  # a linear layer: one row of positions
        flat = [t if t is None else t[:, :, 0].transpose(1, 2) for t in (scaled, output, carry)]
        value = linear_reference(flat[0], weight[:, :, 0, 0], flat[1], flat[2], sums, EPS, activation, head, stabilized,
                                 False)  # fmt: skip
        return value.transpose(1, 2)[:, :, None]
    return convolution_reference(scaled, weight, output, carry, sums, stride, padding, dilation, groups, EPS,
                                 activation, False)  # fmt: skip


def check(loop, tensors, result, sums, before, *, activation="relu", **settings):
    """Against the definition in double precision; `before` is what `sums` held."""
    values = [None if t is None else t.double() for t in tensors]
    magnitudes = [None if t is None else t.abs() for t in values]
    true_sums, bound_sums = before.double().clone(), before.double().abs()
    true = _definition(values, true_sums, activation=activation, **settings)
    bound = _definition(magnitudes, bound_sums, activation="identity", **settings)
    dtype = result.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    rounded = dtype == torch.float32 and loop in (LARGE, SMALL, TALL)
    work = 2.0**-11 * 2.1 if rounded else 32 * torch.finfo(compute).eps
    error = (result.double() - true).abs()
    assert (error <= torch.finfo(dtype).eps * true.abs() + work * (bound + 1e-6) + 1e-30).all(), error.max()
    if sums is not None:
        error = (sums.double() - true_sums).abs()
        assert (error <= work * (bound_sums + 1e-6)).all(), error.max()


def run(library, order, copies, loop, tensors, *, sums=True, channels_last=True, head=1, **settings):
    """The result, and the sums (added to what was there)."""
    output, carry = tensors[2:]
    dtype = output.dtype
    samples, channels = output.shape[:2]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    room = empty((samples, output.shape[2], output.shape[3], channels) if channels_last else output.shape, dtype)
    result = room.tensor.permute(0, 3, 1, 2) if channels_last else room.tensor
    assert carry is None or carry.stride() == result.stride()
    # The sums are a slice of a larger table.
    table = Guarded(normal((2, samples + 1, channels // head + 3), compute, 7))
    before = table.tensor.clone()
    part = table.tensor[:, 1:, 2:-1]
    launch(library, order, copies, loop, tensors, result, part if sums else None, head=head, **settings)
    room.check()
    table.check()
    inner, inner_before = part.clone(), before[:, 1:, 2:-1].clone()
    before[:, 1:, 2:-1] = inner
    assert torch.equal(table.tensor, before), "written beside the slice of sums"
    check(loop, tensors, result, inner if sums else None, inner_before, head=head, **settings)
    if sums:
        return result, inner
    assert torch.equal(inner, inner_before)
    return result, None


def linear(library, order, loop, shape, features, dtype, *, copies="lazy", joined=True, **settings):
    """`shape` is [samples, positions, channels]."""
    samples, positions, channels = shape
    shapes = (
        (samples, features, 1, positions),
        (features, channels, 1, 1),
        (samples, channels, 1, positions),
        (samples, channels, 1, positions),
    )
    return run(library, order, copies, loop, images(shapes, dtype, True, joined), **settings)


def convolution(library, order, loop, shape, features, kernel, dtype, *, copies="lazy", joined=True, groups=1,
                stride=(1, 1), padding=(0, 0), dilation=(1, 1), channels_last=True, **settings):  # fmt: skip
    """`shape` is that of the layer's input, [samples, channels, rows, columns]."""
    above = [
        (size + 2 * pad - gap * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, gap in zip(shape[2:], kernel, stride, padding, dilation, strict=True)
    ]
    shapes = ((shape[0], features, *above), (features, shape[1] // groups, *kernel), shape, shape)
    return run(library, order, copies, loop, images(shapes, dtype, channels_last, joined), groups=groups, stride=stride,
               padding=padding, dilation=dilation, channels_last=channels_last, **settings)  # fmt: skip
