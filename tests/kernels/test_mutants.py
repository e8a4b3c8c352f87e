"""Kernels broken on purpose: the tests of the kernels must notice, or they are worth nothing."""

import shutil

import cases
import large_cases
import pytest
import torch
from simulation import COMPILER, CSRC, ORDERS, SimulationError, build

WARP_ROWS, BLOCK_ROWS, UNITS, GROUPS = range(4)
F32 = torch.float32


def epsilon_units(library, order):
    cases.epsilon(library, order, UNITS, (2, 37, 40), F32, vector=True, width=32)


def epsilon_blocks(library, order):
    cases.epsilon(library, order, BLOCK_ROWS, (2, 3, 777), F32)


def epsilon_groups(library, order):
    cases.epsilon(library, order, GROUPS, (2, 18, 12), F32, group=4)


def layer_norm_blocks(library, order):
    cases.layer_norm(library, order, 3, 531, F32, block_per_row=True)


def select_many(library, order):
    cases.select(library, order, torch.arange(1500).remainder(37).float(), 700, False)


def mask_some(library, order):
    cases.mask(library, order, [torch.randn(7, 5)], [0], 3)


def far_apart(library, order):
    large_cases.epsilon_far_apart(library, UNITS)


def many_columns(library, order):
    large_cases.epsilon_many_columns(library, UNITS)


def many_rows(library, order):
    large_cases.layer_norm_many_rows(library, False)


def many_units(library, order):
    large_cases.accumulate_many_units(library)


# Stem, file, what stands there, what the mutant has instead, and the case that must fail.
MUTANTS = {
    "no barrier before the partial sums are read": (
        "epsilon", "kernels/epsilon.cuh", "  __syncthreads();\n\n  C* out", "\n  C* out", epsilon_units),
    "a sum that forgets one row slot": (
        "epsilon", "kernels/epsilon.cuh", "s < slots", "s < slots - 1", epsilon_units),
    "blocks of rows that overlap": (
        "epsilon", "kernels/epsilon.cuh", "row < last; ++row", "row <= last; ++row", epsilon_groups),
    "no barrier before the sum over warps": (
        "epsilon", "reduce.cuh", "double(value);\n    __syncthreads();", "double(value);", epsilon_blocks),
    "no barrier after the sum over warps": (
        "epsilon", "reduce.cuh", "total += scratch[i];\n    __syncthreads();", "total += scratch[i];", epsilon_blocks),
    "a shuffle that skips a distance": (
        "layer_norm", "reduce.cuh", "distance /= 2", "distance /= 4", layer_norm_blocks),
    "a mean over one column too few": (
        "layer_norm", "kernels/layer_norm.cuh", "/ C(columns)", "/ C(columns - 1)", layer_norm_blocks),
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
    "strides multiplied in 32 bits": (
        "epsilon", "kernels/epsilon.cuh", "output += rows * shape.output.row",
        "output += int(rows * shape.output.row)", far_apart),
    "partial sums found by 32 bits": (
        "epsilon", "kernels/epsilon.cuh", "partials + block * 2 * shape.units;\n  for",
        "partials + unsigned(block * 2 * shape.units);\n  for", many_columns),
    "rows found by 32 bits": (
        "layer_norm", "kernels/layer_norm.cuh", "output += row * columns", "output += int(row * columns)", many_rows),
    "absolute sums found by 32 bits": (
        "accumulate", "kernels/accumulate.cuh", "signed_sum + samples * units", "signed_sum + int(samples * units)",
        many_units),
}  # fmt: skip


@pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the simulated kernels with")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, tmp_path):
    stem, file, right, wrong, case = MUTANTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(CSRC, csrc, ignore=shutil.ignore_patterns("cpu", "cuda"))
    source = (csrc / file).read_text()
    assert source.count(right) == 1, f"{file} no longer reads as this mutant expects"
    (csrc / file).write_text(source.replace(right, wrong))
    library = build(stem, tmp_path, csrc, float_only=True)
    caught = []
    for order in ORDERS:
        try:
            case(library, order)
        except (AssertionError, SimulationError):
            caught.append(order)
    assert caught, "no order of threads gave it away"
