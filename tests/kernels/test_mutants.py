"""Kernels broken on purpose: the tests of the kernels must notice, or they are worth nothing."""

import cases
import large_cases
import max_pool_cases
import pytest
import torch
from mutants import is_caught
from simulation import ORDERS

WARP_ROWS, BLOCK_ROWS, UNITS, GROUPS = range(4)
F32 = torch.float32


def epsilon_units(library, order):
    cases.epsilon(library, order, UNITS, (2, 37, 40), F32, vector=True, width=32)


def epsilon_blocks(library, order):
    cases.epsilon(library, order, BLOCK_ROWS, (2, 3, 777), F32)


def epsilon_groups(library, order):
    cases.epsilon(library, order, GROUPS, (2, 18, 24), F32, group=8, width=4)


def epsilon_groups_in_place(library, order):
    cases.epsilon(library, order, GROUPS, (2, 18, 24), F32, group=8, width=2, vector=True, mode="stabilized")


def epsilon_units_in_place(library, order):
    cases.epsilon(library, order, UNITS, (2, 37, 40), F32, vector=True, width=2, mode="in place")


def epsilon_one_block(library, order):
    cases.epsilon(library, order, UNITS, (2, 11, 40), F32, width=2, mode="in place")


def epsilon_sums_alone(library, order):
    cases.epsilon(library, order, BLOCK_ROWS, (2, 3, 777), F32, mode="sums")


def layer_norm_blocks(library, order):
    cases.layer_norm(library, order, 3, 531, F32, block_per_row=True)


def layer_norm_join(library, order):
    cases.layer_norm(library, order, 4, 40, F32, join=True)


def select_many(library, order):
    cases.select(library, order, torch.arange(1500).remainder(37).float(), 700, False)


def mask_some(library, order):
    cases.mask(library, order, [torch.randn(7, 5)], [0], 3)


def add_relu_some(library, order):
    cases.add_relu(library, order, 520, F32, vector=True)


def add_relu_many(library, order):
    large_cases.add_relu_many(library)


def max_pool_resnet(library, order):
    max_pool_cases.epsilon(library, order, max_pool_cases.RESNET, F32, channels=40, vector=True, width=2)


def max_pool_nan(library, order):
    max_pool_cases.epsilon(library, order, max_pool_cases.RESNET, F32, nan=True, eps=None, summed=False)


def max_pool_dilated(library, order):
    max_pool_cases.epsilon(library, order, max_pool_cases.WINDOWS[2], F32)


def max_pool_wide(library, order):
    """Fewer slots than a block has positions: each has one."""
    max_pool_cases.epsilon(
        library, order, max_pool_cases.RESNET, F32, channels=136, vector=True, width=32, block_positions=64
    )


def max_pool_one_block(library, order):
    max_pool_cases.epsilon(library, order, max_pool_cases.RESNET, F32, block_positions=64)


def max_pool_many(library, order):
    max_pool_cases.many_samples(library)


def accumulate_some(library, order):
    cases.accumulate(library, order, 4, 40, F32, labels=[0, -1, 7, -1])


def accumulate_classes(library, order):
    cases.accumulate(library, order, 5, 7, F32, labels=[1, 0, -1, 1, 2], classes=2, rows=5)


def far_apart(library, order):
    large_cases.epsilon_far_apart(library, UNITS)


def many_columns(library, order):
    large_cases.epsilon_many_columns(library, UNITS)


def many_rows(library, order):
    large_cases.layer_norm_many_rows(library, False)


def many_units(library, order):
    large_cases.accumulate_many_units(library)


def many_units_of_classes(library, order):
    large_cases.accumulate_many_units(library, classes=2)


# Stem, file, what stands there, what the mutant has instead, and the case that must fail.
MUTANTS = {
    "no barrier before the partial sums are read": (
        "epsilon", "kernels/epsilon.cuh", "  __syncthreads();\n\n  for (int i", "\n  for (int i", epsilon_units),
    "a sum that forgets one row slot": (
        "epsilon", "kernels/epsilon.cuh", "s < slots", "s < slots - 1", epsilon_units),
    "blocks of rows that overlap": (
        "epsilon", "kernels/epsilon.cuh", "row + slot < last", "row + slot <= last", epsilon_groups),
    "a group whose last lanes are not summed": (
        "epsilon", "kernels/epsilon.cuh", "warp_sum(value, 1, lanes)", "warp_sum(value, 1, lanes / 2)", epsilon_groups),
    "rows of a warp that are not added up": (
        "epsilon", "kernels/epsilon.cuh", "  magnitude = warp_sum(magnitude, lanes);\n", "", epsilon_groups_in_place),
    "sums before the stabilizer for those behind it": (
        "epsilon", "kernels/epsilon.cuh", "if (shape.stabilized)", "if (false)", epsilon_groups_in_place),
    "a table written instead of added to": (
        "epsilon", "kernels/epsilon.cuh", "add ? *to + value : value", "value", epsilon_units_in_place),
    "a table whose samples lie one after the other": (
        "epsilon", "kernels/epsilon.cuh", "at + index * item + kind * which", "at + kind * which + index * which",
        epsilon_one_block),
    "a carry written where only sums are wanted": (
        "epsilon", "kernels/epsilon.cuh", "  if (shape.writes) store",
        "  if (!shape.writes) scaled = output;\n  store", epsilon_sums_alone),
    "no barrier before the sum over warps": (
        "epsilon", "reduce.cuh", "double(value);\n    __syncthreads();", "double(value);", epsilon_blocks),
    "no barrier after the sum over warps": (
        "epsilon", "reduce.cuh", "total += scratch[i];\n    __syncthreads();", "total += scratch[i];", epsilon_blocks),
    "a shuffle that skips a distance": (
        "layer_norm", "reduce.cuh", "distance /= 2", "distance /= 4", layer_norm_blocks),
    "a mean over one column too few": (
        "layer_norm", "kernels/layer_norm.cuh", "/ C(columns)", "/ C(columns - 1)", layer_norm_blocks),
    "a sum's stabilizer taken from the layer's output": (
        "layer_norm", "kernels/layer_norm.cuh", "load<T, V>(join + i)", "load<T, V>(output + i)", layer_norm_join),
    "the next row's sum": (
        "layer_norm", "kernels/layer_norm.cuh", "join += row * columns", "join += (row ^ 1) * columns",
        layer_norm_join),
    "counts cleared while they are read": (
        "select", "kernels/select.cuh", "    __syncthreads();\n    prefix = shared_prefix;",
        "    prefix = shared_prefix;", select_many),
    "ranks read while they are summed": (
        "select", "kernels/select.cuh", "before[thread - distance] : 0;\n    __syncthreads();",
        "before[thread - distance] : 0;", select_many),
    "one tie too many": (
        "select", "kernels/select.cuh", "rank++ < wanted", "rank++ <= wanted", select_many),
    "a slice too short": (
        "mask", "kernels/mask.cuh", "i < entry.elements", "i + 1 < entry.elements", mask_some),
    "a last pack left out": (
        "add_relu", "kernels/add_relu.cuh", "if (i >= elements) return;", "if (i + V >= elements) return;",
        add_relu_some),
    "a NaN that becomes 0": (
        "add_relu", "formula.h", "return x < T(0) ? T(0) : x;", "return x > T(0) ? x : T(0);", add_relu_some),
    "elements counted in 32 bits": (
        "add_relu", "kernels/add_relu.cuh", "(int64_t(blockIdx.x) * kThreads + threadIdx.x) * V",
        "int64_t((blockIdx.x * kThreads + threadIdx.x) * V)", add_relu_many),
    "the last of equals": (
        "max_pool", "kernels/max_pool.cuh", "candidate > best[k]", "candidate >= best[k]", max_pool_resnet),
    "a NaN that loses": (
        "max_pool", "kernels/max_pool.cuh", " || candidate != candidate", "", max_pool_nan),
    "an earlier window forgotten": (
        "max_pool", "max_pool_window.h", "(past + stride - 1) / stride", "past / stride + 1", max_pool_resnet),
    "a window too few over a position": (
        "max_pool", "max_pool_window.h", "(position + padding) / stride + 1", "position / stride + 1", max_pool_resnet),
    "positions between the steps of a dilated window": (
        "max_pool", "max_pool_window.h", "offset % dilation ? -1 : offset / dilation", "offset / dilation",
        max_pool_dilated),
    "the padding taken for the image": (
        "max_pool", "max_pool_window.h", "(dilation - 1 - at) / dilation", "-at / dilation", max_pool_dilated),
    "carries that joined in the place of others": (
        "max_pool", "kernels/max_pool.cuh", "total[k] += widen(rest.at[k]);", "total[k] = widen(rest.at[k]);",
        max_pool_resnet),
    "no barrier before a pool's partial sums are read": (
        "max_pool", "kernels/max_pool.cuh", "  __syncthreads();\n", "", max_pool_resnet),
    "a pool's sums without the last slot": (
        "max_pool", "kernels/max_pool.cuh", "s < slots", "s < slots - 1", max_pool_wide),
    "a pool's table written instead of added to": (
        "max_pool", "kernels/max_pool.cuh", "item % shape.units] += C(total)", "item % shape.units] = C(total)",
        max_pool_one_block),
    "samples found by 32 bits": (
        "max_pool", "kernels/max_pool.cuh", "image = sample * positions * shape.channels + channel",
        "image = int(sample * positions * shape.channels + channel)", max_pool_many),
    "windows found by 32 bits": (
        "max_pool", "kernels/max_pool.cuh", "value + sample * down.size * along.size * shape.channels",
        "value + int(sample * down.size * along.size * shape.channels)", max_pool_many),
    "a sample that is not left out": (
        "accumulate", "kernels/accumulate.cuh", "labels[n] >= 0", "labels[n] >= -1", accumulate_some),
    "a class added twice": (
        "accumulate", "kernels/accumulate.cuh", "if (same < first) continue;", "", accumulate_classes),
    "samples of another class": (
        "accumulate", "kernels/accumulate.cuh", "if (labels[n] != label) continue;", "", accumulate_classes),
    "a label that is no class": (
        "accumulate", "kernels/accumulate.cuh", "label >= classes", "label > classes", accumulate_classes),
    "strides multiplied in 32 bits": (
        "epsilon", "kernels/epsilon.cuh", "output += rows * shape.output.row",
        "output += int(rows * shape.output.row)", far_apart),
    "partial sums left by 32 bits": (
        "epsilon", "kernels/epsilon.cuh", "at + index * item", "at + int(index * item)", many_columns),
    "partial sums found by 32 bits": (
        "epsilon", "kernels/epsilon.cuh", "part[block * 2 * units]", "part[int(block * 2 * units)]", many_columns),
    "rows found by 32 bits": (
        "layer_norm", "kernels/layer_norm.cuh", "output += row * columns", "output += int(row * columns)", many_rows),
    "absolute sums found by 32 bits": (
        "accumulate", "kernels/accumulate.cuh", "signed_sum + samples * units;\n#pragma",
        "signed_sum + int(samples * units);\n#pragma", many_units),
    "a class's totals found by 32 bits": (
        "accumulate", "kernels/accumulate.cuh", "totals + label * 4 * units", "totals + int(label * 4 * units)",
        many_units_of_classes),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, mutant):
    library, case = mutant(name), MUTANTS[name][-1]
    caught = [order for order in ORDERS if is_caught(lambda order=order: case(library, order))]
    assert caught, "no order of threads gave it away"


@pytest.mark.parametrize(("stem", "case"), dict.fromkeys((stem, case) for stem, *_, case in MUTANTS.values()))
def test_the_case_passes_where_nothing_is_broken(simulated, order, stem, case):
    case(simulated(stem), order)
