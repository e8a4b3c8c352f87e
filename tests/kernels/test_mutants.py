"""Kernels broken on purpose: the tests of the kernels must notice, or they are worth nothing."""

import cases
import pytest
import torch
from mutants import build_mutant, is_caught
from simulation import COMPILER, ORDERS

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
}  # fmt: skip


@pytest.mark.skipif(COMPILER is None, reason="no g++ to compile the simulated kernels with")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, tmp_path):
    stem, file, right, wrong, case = MUTANTS[name]
    library = build_mutant(stem, file, right, wrong, tmp_path)
    caught = [order for order in ORDERS if is_caught(lambda order=order: case(library, order))]
    assert caught, "no order of threads gave it away"
