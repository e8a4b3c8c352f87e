"""The kernels beyond 2^32 elements: the last blocks of grids of billions of threads, and rows far apart.

An index of 32 bits anywhere on the way would lose its upper half. The memory takes none but where it is written.
`select` is not here: one block reads all scores, five times.
"""

import ctypes

import cases
import torch
from cases import EpsilonCase, close, normal
from simulation import TYPES, call, last_blocks
from sparse_memory import BILLIONS, zeros

from pxp_fast.ops import ACTIVATIONS
from pxp_fast.ops.accumulate import reference as accumulate_reference
from pxp_fast.ops.epsilon import reference as epsilon_reference
from pxp_fast.ops.layer_norm import reference as layer_norm_reference

F32 = torch.float32
WARP_ROWS, BLOCK_ROWS, UNITS, GROUPS = range(4)
EPS, ORDER = 1e-2, "random"


def run_epsilon(library, variant, shape, strides, tensors, *, group=1, block_rows=16, width=32, add=False):
    samples, rows, columns = shape
    sums = tensors[3]
    case = EpsilonCase(
        TYPES[F32], variant, True, width, ACTIVATIONS.index("relu"), samples, rows, columns, group, block_rows,
        *strides * 3, sums.stride(1), sums.stride(0), add, True, False,
    )  # fmt: skip
    call(library, "epsilon", ORDER, ctypes.byref(case), EPS, *tensors)


def epsilon_far_apart(library, variant):
    """Few rows, 2^31 elements from one to the next, in all three tensors; and so are the sums that are added to."""
    shape, strides = (2, 3, 16), (3 * BILLIONS, BILLIONS)
    carry, output, scaled = (zeros(5 * BILLIONS + 16, F32).as_strided(shape, (*strides, 1)) for _ in range(3))
    carry.copy_(normal(shape, F32, 1)), output.copy_(normal(shape, F32, 2))
    group = 4 if variant == GROUPS else 1
    units = 3 if variant < UNITS else 16 // group
    partials = torch.empty(2, 2, 2, units)
    sums = zeros(3 * BILLIONS + units, F32).as_strided((2, 2, units), (2 * BILLIONS, BILLIONS, 1))
    start = normal((2, 2, units), F32, 3)
    sums.copy_(start)
    tensors = (carry, output, scaled, sums, partials)
    # As many columns of threads as there are threads: each goes from row to row.
    width = 32 if variant == GROUPS else 256
    run_epsilon(library, variant, shape, strides, tensors, group=group, block_rows=2, width=width, add=True)
    expected, expected_sums = epsilon_reference(
        carry.clone(), output.clone(), EPS, "relu", 1 if variant < UNITS else -1, group
    )
    close(scaled, expected, F32)
    torch.testing.assert_close(sums, start + expected_sums, rtol=1e-5, atol=1e-4)


def epsilon_many_rows(library, variant):
    """Rows are units; the last rows of 2^28."""
    rows, columns, some = 2**28, 24, 8 if variant == WARP_ROWS else 1
    carry, output, scaled = (zeros(rows * columns, F32).view(1, rows, columns) for _ in range(3))
    carry[:, -some:], output[:, -some:] = normal((some, columns), F32, 1), normal((some, columns), F32, 2)
    sums = zeros(2 * rows, F32).view(2, 1, rows)
    with last_blocks(library, 1):
        tensors = (carry, output, scaled, sums, None)
        run_epsilon(library, variant, (1, rows, columns), (rows * columns, columns), tensors)
    arguments = (EPS, "relu", 1, 1)
    expected, expected_sums = epsilon_reference(carry[:, -some:].clone(), output[:, -some:].clone(), *arguments)
    close(scaled[:, -some:], expected, F32)
    torch.testing.assert_close(sums[:, :, -some:], expected_sums, rtol=1e-5, atol=1e-5)


def epsilon_many_columns(library, variant):
    """Columns are units, or groups of columns are; the last units of 5 rows of 2^30 columns."""
    rows, columns = 5, 2**30
    group, some = (2**7, 8) if variant == GROUPS else (1, 128)  # units of the last block
    units, width = columns // group, some * group
    carry, output, scaled = (zeros(rows * columns, F32).view(1, rows, columns) for _ in range(3))
    carry[..., -width:], output[..., -width:] = normal((rows, width), F32, 1), normal((rows, width), F32, 2)
    sums, partials = zeros(2 * units, F32).view(2, 1, units), zeros(rows * 2 * units, F32)
    with last_blocks(library, 1):
        # A block per row: only the last row is computed, and the partial sums of the others are zero.
        tensors = (carry, output, scaled, sums, partials)
        run_epsilon(library, variant, (1, rows, columns), (rows * columns, columns), tensors, group=group, block_rows=1)
    last = carry[:, -1:, -width:].clone(), output[:, -1:, -width:].clone()
    expected, expected_sums = epsilon_reference(*last, EPS, "relu", -1, group)
    close(scaled[:, -1:, -width:], expected, F32)
    torch.testing.assert_close(partials.view(rows, 2, units)[-1, :, -some:], expected_sums[:, 0], rtol=1e-5, atol=1e-4)
    # The last block of those that add up the partial sums has only sums of absolute values.
    torch.testing.assert_close(sums[1, :, -some:], expected_sums[1], rtol=1e-5, atol=1e-4)


def layer_norm_many_rows(library, block_per_row):
    rows, columns, some = 2**28, 24, 1 if block_per_row else 8
    carry, output, rest, total, result = (zeros(rows * columns, F32).view(rows, columns) for _ in range(5))
    rstd, weight = zeros(rows, F32).view(rows, 1), normal((columns,), F32, 4)
    rstd[-some:] = 0.5
    for seed, tensor in enumerate((carry, output, rest, total)):
        tensor[-some:] = normal((some, columns), F32, seed)
    with last_blocks(library, 1):
        call(
            library, "layer_norm", ORDER, TYPES[F32], 1, int(block_per_row), carry, output, rstd, weight, rest, total,
            result, rows, columns, EPS,
        )  # fmt: skip
    carry, output, rstd, rest, total = (t[-some:].clone() for t in (carry, output, rstd, rest, total))
    close(result[-some:], layer_norm_reference(carry, output, rstd, weight, rest, EPS, total), F32)


def add_relu_many(library):
    """The last elements of 2^33."""
    elements, some = 2**33, 1024
    a, b, result = (zeros(elements, F32) for _ in range(3))
    a[-some:], b[-some:] = normal((some,), F32, 1), normal((some,), F32, 2)
    with last_blocks(library, 1):
        call(library, "add_relu", ORDER, TYPES[F32], 1, a, b, result, elements)
    assert torch.equal(result[-some:], torch.relu(a[-some:] + b[-some:]))


def accumulate_many_units(library, classes=0):
    """With `classes`, of which each has totals, all samples belong to the last."""
    samples, units, some = 3, 2**30, 256
    sums = zeros(2 * samples * units, F32).view(2, samples, units)
    all_totals = zeros(max(1, classes) * 4 * units, torch.float64).view(-1, 4, units)
    totals, labels = all_totals[-1], torch.full((samples,), classes - 1) if classes else None
    sums[..., -some:], totals[:, -some:] = normal((2, samples, some), F32, 0), normal((4, some), torch.float64, 1)
    expected = totals[:, -some:].clone()
    accumulate_reference(expected, sums[..., -some:].clone())
    with last_blocks(library, 1):
        call(library, "accumulate", ORDER, 0, all_totals, sums, labels, classes, samples, samples, units)
    assert torch.equal(totals[:, -some:], expected)


def mask_far_apart(library):
    """Slices 2^31 elements apart, and slices whose elements are."""
    parameters = []
    for shape, strides in (((3, 5), (BILLIONS, 1)), ((5, 3), (1, BILLIONS))):
        parameters.append(zeros(2 * BILLIONS + 5, F32).as_strided(shape, strides))
        parameters[-1].copy_(normal(shape, F32, 0) + 1)
    cases.mask(library, ORDER, parameters, [0, 0], 2)
