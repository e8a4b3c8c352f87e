"""Every CUDA kernel, unmodified, on the host: in four orders of threads, against the operators' references."""

import cases
import pytest
import torch
from cases import normal
from simulation import Guarded, call

from pxp_fast.ops import ACTIVATIONS
from pxp_fast.ops.accumulate import reference as accumulate_reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WARP_ROWS, BLOCK_ROWS, UNITS, GROUPS = range(4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_epsilon_positions(simulated, order, dtype, vector):
    library = simulated("epsilon")
    cases.epsilon(library, order, WARP_ROWS, (2, 5, 48), dtype, vector=vector)
    cases.epsilon(library, order, WARP_ROWS, (3, 3, 49 if not vector else 280), dtype, vector=vector)
    cases.epsilon(library, order, BLOCK_ROWS, (1, 2, 777 if not vector else 2056), dtype, vector=vector)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_epsilon_units(simulated, order, dtype, vector):
    library = simulated("epsilon")
    # More columns than a tile, more rows than a block, and rests of both.
    cases.epsilon(library, order, UNITS, (2, 37, 40), dtype, vector=vector, width=2)
    cases.epsilon(library, order, UNITS, (1, 20, 8 if vector else 7), dtype, vector=vector, width=8)
    cases.epsilon(library, order, UNITS, (1, 20, 264 if vector else 65), dtype, vector=vector, width=32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_epsilon_groups(simulated, order, dtype, vector):
    library = simulated("epsilon")
    # More rows than a warp takes at a time, rests of them, and groups that are wider than the lanes of a row.
    cases.epsilon(library, order, GROUPS, (2, 18, 24), dtype, group=8, vector=vector, width=4)
    cases.epsilon(library, order, GROUPS, (1, 5, 128), dtype, group=64, vector=vector, width=8)
    cases.epsilon(library, order, GROUPS, (1, 3, 560), dtype, group=280, vector=vector, width=32)
    if not vector:
        cases.epsilon(library, order, GROUPS, (1, 2, 99), dtype, group=33, width=32)
        cases.epsilon(library, order, GROUPS, (1, 35, 6), dtype, group=2, width=1)


@pytest.mark.parametrize("mode", ["in place", "stabilized", "no sums", "sums"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_epsilon_modes(simulated, order, dtype, vector, mode):
    library = simulated("epsilon")
    options = {"vector": vector, "mode": mode, "activation": "gelu"}
    cases.epsilon(library, order, WARP_ROWS, (2, 5, 48), dtype, **options)
    cases.epsilon(library, order, BLOCK_ROWS, (2, 2, 777 if not vector else 2056), dtype, **options)
    cases.epsilon(library, order, UNITS, (2, 37, 40), dtype, width=2, **options)  # partial sums
    cases.epsilon(library, order, UNITS, (2, 11, 40), dtype, width=2, **options)  # one block: added at once
    if mode != "no sums":
        cases.epsilon(library, order, GROUPS, (2, 18, 24), dtype, group=8, width=4, **options)
        cases.epsilon(library, order, GROUPS, (2, 3, 24), dtype, group=8, width=4, **options)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_epsilon_activations(simulated, activation, dtype):
    cases.epsilon(simulated("epsilon"), "random", WARP_ROWS, (2, 3, 32), dtype, vector=True, activation=activation)


@pytest.mark.parametrize("variant", range(4))
def test_epsilon_expanded_carry(simulated, variant):
    group = 4 if variant == GROUPS else 1
    for mode in ("epsilon", "sums"):
        cases.epsilon(
            simulated("epsilon"), "skew", variant, (2, 20, 24), torch.float32, group=group, shared_carry=True, mode=mode
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_layer_norm(simulated, order, dtype, vector):
    library = simulated("layer_norm")
    cases.layer_norm(library, order, 11, 48, dtype, vector=vector)
    cases.layer_norm(library, order, 3, 1032 if vector else 531, dtype, vector=vector, block_per_row=True)


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("join", [True, False])
def test_layer_norm_without(simulated, weighted, residual, join):
    options = {"weighted": weighted, "residual": residual, "join": join}
    cases.layer_norm(simulated("layer_norm"), "random", 4, 40, torch.float32, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_layer_norm_over_the_residual(simulated, order, dtype, vector):
    options = {"vector": vector, "join": True, "in_place": True}
    cases.layer_norm(simulated("layer_norm"), order, 11, 48, dtype, **options)
    cases.layer_norm(simulated("layer_norm"), order, 3, 1032, dtype, block_per_row=True, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vector", [False, True])
def test_add_relu(simulated, order, dtype, vector):
    for elements in (8, 2056) if vector else (1, 257, 1024):
        cases.add_relu(simulated("add_relu"), order, elements, dtype, vector=vector)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_accumulate(simulated, order, dtype):
    cases.accumulate(simulated("accumulate"), order, 9, 300, dtype)
    cases.accumulate(simulated("accumulate"), order, 0, 3, dtype)
    cases.accumulate(simulated("accumulate"), order, 6, 300, dtype, labels=[3, -1, 0, 0, -2, 10**12])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("rows", [9, 2])
def test_accumulate_by_class(simulated, order, dtype, rows):
    labels = [2, 0, 2, -1, 0, 2, 4, 5, -(2**62)]  # 4 and 5 are no classes, 1 and 3 have no samples
    cases.accumulate(simulated("accumulate"), order, 9, 300, dtype, labels=labels, classes=4, rows=rows)


def test_accumulate_beyond_32_bits(simulated, far_totals):
    totals, label, rows = far_totals
    sums = normal((2, 2, totals.shape[2]), torch.float32, 0)
    labels = torch.tensor([label, label])
    classes, _, units = totals.shape
    call(simulated("accumulate"), "accumulate", "forward", 0, totals, sums, labels, classes, 2, 2, units)
    expected = torch.zeros(4, units, dtype=torch.float64)
    accumulate_reference(expected, sums)
    assert torch.equal(rows, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mask(simulated, order, dtype):
    whole = Guarded(torch.full((6, 5, 3, 3), torch.nan, dtype=dtype)).tensor
    matrix = torch.randn(20, 30).to(dtype)
    parameters = [whole, matrix, torch.randn(20, 30).to(dtype)[::2, 3:], torch.randn(7).to(dtype)]
    cases.mask(simulated("mask"), order, parameters, [0, 1, 0, 0], 3)
    cases.mask(simulated("mask"), order, [torch.randn(3, 2).to(dtype) for _ in range(40)], [0] * 40, 1)  # a full table
    surroundings = torch.randn(4, 5, 6).to(dtype)
    before = surroundings.clone()
    cases.mask(simulated("mask"), order, [surroundings[1:3, :, 2:4].permute(2, 1, 0)], [1], 2)
    before[1:3, :, 2:4] = surroundings[1:3, :, 2:4]
    assert torch.equal(surroundings, before)


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select(simulated, order, dtype, largest):
    library = simulated("select")
    scores = torch.randn(1500, generator=torch.Generator().manual_seed(0)).to(dtype)
    scores[::9], scores[1::9] = 0.0, -0.0
    cases.select(library, order, scores, 700, largest)
    cases.select(library, order, scores[:5], 5, largest)
    if order == "forward":
        for k in (1, 749, 1500):
            cases.select(library, order, scores, k, largest)
        cases.select(library, order, torch.zeros(3000, dtype=dtype), 1234, largest)
