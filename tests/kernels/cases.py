"""Runs each simulated kernel as its launch code would, and compares with the operator's reference.

Every function takes the library and the order of threads, and raises where the kernel is wrong: tests of the kernels
call them, and so do the tests that break a kernel on purpose.
"""

from __future__ import annotations

import ctypes

import torch
from simulation import TYPES, Guarded, call, empty

from pxp_fast.ops import ACTIVATIONS
from pxp_fast.ops.accumulate import reference as accumulate_reference
from pxp_fast.ops.epsilon import reference as epsilon_reference
from pxp_fast.ops.epsilon import reference_in_place as in_place_reference
from pxp_fast.ops.layer_norm import reference as layer_norm_reference
from pxp_fast.ops.select import reference as select_reference


def normal(shape, dtype, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values.view(-1)[::7] = 0
    return values.to(dtype)


def close(result, expected, dtype):
    unit = torch.finfo(dtype).eps
    bound = 1e-12 if unit < 1e-10 else max(1e-5, 1.01 * unit)
    torch.testing.assert_close(result, expected, rtol=bound, atol=bound)


class EpsilonCase(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64)
        for name in (
            "type",
            "variant",
            "vector",
            "width",
            "activation",
            "samples",
            "rows",
            "columns",
            "group",
            "block_rows",
            "carry_sample",
            "carry_row",
            "output_sample",
            "output_row",
            "scaled_sample",
            "scaled_row",
            "sums_sample",
            "sums_which",
            "add",
            "writes",
            "stabilized",
        )  # fmt: skip
    ]


def epsilon(library, order, variant, shape, dtype, *, vector=False, activation="relu", group=1, block_rows=16, width=8,
            shared_carry=False, mode="epsilon"):  # fmt: skip
    """`shape` is [samples, rows, columns]; variants 0 and 1 sum over columns, 2 and 3 over rows.

    Mode "epsilon" writes a new tensor and new sums; "in place", "stabilized" and "no sums" write over the carry, and
    "sums" nothing but sums, which those three add to a slice of a table.
    """
    samples, rows, columns = shape
    eps = 1e-2 if mode == "epsilon" else 0.5
    carry, output = Guarded(normal(shape, dtype, 1)), Guarded(normal(shape, dtype, 2) * 3)
    if shared_carry:  # one row for all, as an expanded tensor has it: strides of 0
        carry.tensor[:] = carry.tensor[:1, :1].clone()
    before = carry.tensor.clone()
    units = rows if variant < 2 else columns // group
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    blocks = -(-rows // block_rows)
    functional = mode == "epsilon"
    scaled = empty(shape, dtype) if functional else carry
    if functional:
        table = empty((2, samples, units), compute)
        sums = table.tensor
    else:  # [sample, which, unit], with other units on both sides
        table = Guarded(normal((samples, 2, units + 5), compute, 3))
        sums = table.tensor[:, :, 2:-3].transpose(0, 1)
    start, rest = sums.clone(), table.tensor.clone()
    partials = empty((samples, blocks, 2, units), compute)
    direct = blocks == 1 and not functional
    strides = (rows * columns, columns)
    case = EpsilonCase(
        TYPES[dtype], variant, vector, width, ACTIVATIONS.index(activation), samples, rows, columns, group, block_rows,
        *((0, 0) if shared_carry else strides), *strides, *((0, 0) if shared_carry and mode == "sums" else strides),
        sums.stride(1), sums.stride(0), not functional, mode != "sums", mode == "stabilized",
    )  # fmt: skip
    call(library, "epsilon", order, ctypes.byref(case), eps, carry.tensor, output.tensor, scaled.tensor,
         None if mode == "no sums" else sums, None if direct or mode == "no sums" else partials.tensor)  # fmt: skip
    partials.check()
    table.check()
    unit_dim = 1 if variant < 2 else -1
    expected, expected_sums = epsilon_reference(before, output.tensor, eps, activation, unit_dim, group)
    if mode == "sums":
        assert torch.equal(carry.check(), before)
    else:
        close(scaled.check(), expected, dtype)
    if mode == "stabilized":
        expected_sums.zero_()
        in_place_reference(before, output.tensor, expected_sums, eps, activation, unit_dim, group, True)
    if mode == "no sums":
        expected_sums.zero_()
    if not functional:
        expected_sums += start
        rest[:, :, 2:-3] = sums.transpose(0, 1)
        assert torch.equal(table.tensor, rest), "written beside the slice of the table"
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=2e-6 * rows * columns / units)


def layer_norm(library, order, rows, columns, dtype, *, vector=False, block_per_row=False, weighted=True, residual=True,
               join=False, in_place=False):  # fmt: skip
    eps = 1e-2
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    carry, output, rest, total = (Guarded(normal((rows, columns), dtype, seed)) for seed in range(4))
    rstd, weight = Guarded(normal((rows, 1), compute, 3).abs() + 0.5), Guarded(normal((columns,), compute, 4))
    result = rest if in_place else empty((rows, columns), dtype)
    weight, residual, join = (t.tensor if wanted else None for t, wanted in ((weight, weighted), (rest, residual),
                                                                            (total, join)))  # fmt: skip
    expected = layer_norm_reference(carry.tensor, output.tensor, rstd.tensor, weight, residual, eps, join)
    call(library, "layer_norm", order, TYPES[dtype], int(vector), int(block_per_row), carry.tensor, output.tensor,
         rstd.tensor, weight, residual, join, result.tensor, rows, columns, eps)  # fmt: skip
    close(result.check(), expected, dtype)


def add_relu(library, order, elements, dtype, *, vector=False):
    a, b = (Guarded(normal((elements,), dtype, seed)) for seed in range(2))
    a.tensor[1::9], b.tensor[1::9], a.tensor[2::9] = torch.inf, -torch.inf, torch.nan
    result = empty((elements,), dtype)
    call(library, "add_relu", order, TYPES[dtype], int(vector), a.tensor, b.tensor, result.tensor, elements)
    expected = torch.relu(a.tensor + b.tensor)
    torch.testing.assert_close(result.check(), expected, rtol=0, atol=0, equal_nan=True)


def accumulate(library, order, samples, units, dtype, *, labels=None, classes=0, rows=1):
    """`labels` as a list; with `classes`, of which each has totals, blocks come in `rows` rows."""
    sums = Guarded(normal((2, samples, units), dtype, 0))
    # Behind the classes another, which must stay as it is: what adds to NaN is not seen.
    totals = Guarded(normal((classes + 1, 4, units) if classes else (4, units), torch.float64, 1))
    if labels is not None:
        labels = torch.tensor(labels)
        sums.tensor[:, labels < 0] = torch.nan  # a sample left out does no harm
    expected = totals.tensor.clone()
    call(library, "accumulate", order, int(dtype == torch.float64), totals.tensor, sums.tensor, labels, classes, rows,
         samples, units)  # fmt: skip
    accumulate_reference(expected[:classes] if classes else expected, sums.tensor, labels)
    assert torch.equal(totals.check(), expected)


class _MaskEntry(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("keep", ctypes.c_void_p),
        ("slices", ctypes.c_int64),
        ("slice_stride", ctypes.c_int64),
        ("elements", ctypes.c_uint32),
        ("sizes", ctypes.c_uint32 * 4),
        ("strides", ctypes.c_int64 * 4),
        ("element_size", ctypes.c_int32),
    ]


def mask(library, order, parameters, dims, blocks):
    """Views of any strides; each dimension of a slice is described on its own."""
    assert library.mask_entry_size() == ctypes.sizeof(_MaskEntry)
    entries, keep = (_MaskEntry * len(parameters))(), []
    expected = [p.clone() for p in parameters]
    for entry, parameter, dim in zip(entries, parameters, dims, strict=True):
        keep.append(torch.arange(parameter.shape[dim]) % 3 == 1)
        rest = [(parameter.shape[d], parameter.stride(d)) for d in reversed(range(parameter.dim())) if d != dim]
        rest += [(1, 0)] * (4 - len(rest))
        entry.data, entry.keep = parameter.data_ptr(), keep[-1].data_ptr()
        entry.slices, entry.slice_stride = parameter.shape[dim], parameter.stride(dim)
        entry.elements = parameter.numel() // parameter.shape[dim]
        entry.sizes[:], entry.strides[:] = zip(*rest, strict=True)
        entry.element_size = parameter.element_size()
    call(library, "mask", order, ctypes.byref(entries), len(parameters), blocks)
    for parameter, before, kept, dim in zip(parameters, expected, keep, dims, strict=True):
        before.index_fill_(dim, (~kept).nonzero().flatten(), 0)
        torch.testing.assert_close(parameter, before, rtol=0, atol=0, equal_nan=True)


def select(library, order, scores, k, largest):
    guarded = Guarded(scores)
    chosen = torch.full((scores.numel() + 128,), 2, dtype=torch.uint8)
    call(library, "select_scores", order, TYPES[scores.dtype], guarded.tensor, chosen[64:-64], scores.numel(), k,
         int(largest))  # fmt: skip
    assert (chosen[:64] == 2).all() and (chosen[-64:] == 2).all()
    assert torch.equal(chosen[64:-64].bool(), select_reference(scores, k, largest)) and (chosen[64:-64] < 2).all()
