"""Every CUDA kernel, unmodified, on the host, beyond 2^32 elements."""

import large_cases
import large_product_cases
import max_pool_cases
import pytest
from large_cases import BLOCK_ROWS, GROUPS, UNITS, WARP_ROWS
from product_cases import DIRECT, FMA, LARGE, SMALL, TALL


@pytest.mark.parametrize("variant", range(4))
def test_epsilon_far_apart(simulated, variant):
    large_cases.epsilon_far_apart(simulated("epsilon"), variant)


@pytest.mark.parametrize("variant", [WARP_ROWS, BLOCK_ROWS])
def test_epsilon_many_rows(simulated, variant):
    large_cases.epsilon_many_rows(simulated("epsilon"), variant)


@pytest.mark.parametrize("variant", [UNITS, GROUPS])
def test_epsilon_many_columns(simulated, variant):
    large_cases.epsilon_many_columns(simulated("epsilon"), variant)


@pytest.mark.parametrize("block_per_row", [False, True])
def test_layer_norm_many_rows(simulated, block_per_row):
    large_cases.layer_norm_many_rows(simulated("layer_norm"), block_per_row)


def test_add_relu_many(simulated):
    large_cases.add_relu_many(simulated("add_relu"))


@pytest.mark.parametrize("classes", [0, 2])
def test_accumulate_many_units(simulated, classes):
    large_cases.accumulate_many_units(simulated("accumulate"), classes)


def test_max_pool_many_samples(simulated):
    max_pool_cases.many_samples(simulated("max_pool"))


def test_mask_far_apart(simulated):
    large_cases.mask_far_apart(simulated("mask"))


@pytest.mark.parametrize("loop", [LARGE, SMALL, TALL, FMA, DIRECT])
def test_products_far_apart(simulated, loop):
    large_product_cases.far_apart(simulated("product"), "random", loop)


@pytest.mark.parametrize("loop", [SMALL, FMA, DIRECT])
def test_products_of_many_rows(simulated, loop):
    large_product_cases.many_rows(simulated("product"), "random", loop)
