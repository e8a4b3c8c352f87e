"""The products, unmodified, on the host: in four orders of threads, with copies that land early and late, against the
definition in double precision."""

import product_cases as cases
import pytest
import torch
from product_cases import DIRECT, FMA, LARGE, SMALL, TALL
from simulation import TRIED_COPIES, TRIED_ORDERS

from pxp_fast.ops import ACTIVATIONS

TENSOR_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
DTYPES = [*TENSOR_DTYPES, torch.float64]
# The threads of the loops that copy nothing asynchronously meet at barriers only.
MODES = [(order, copies) for order in TRIED_ORDERS for copies in TRIED_COPIES]

# Tile, [samples, positions, channels], features, what else, and why it is here.
LINEAR = [
    pytest.param(SMALL, (2, 40, 72), 48, {}, id="rests-of-everything"),
    pytest.param(SMALL, (5, 21, 64), 168, {"activation": "gelu"}, id="tiles-that-straddle-samples"),
    pytest.param(SMALL, (70, 1, 8), 8, {"stabilized": True}, id="as-many-samples-as-rows"),
    pytest.param(SMALL, (1, 3, 8), 16, {"sums": False}, id="no-sums"),
    pytest.param(SMALL, (2, 5, 16), 0, {}, id="no-features"),
    pytest.param(SMALL, (3, 33, 128), 32, {"head": 32, "stabilized": True}, id="heads"),
    pytest.param(SMALL, (3, 9, 120), 24, {"head": 24}, id="heads-beside-unused-columns"),
    pytest.param(SMALL, (3, 9, 160), 24, {"head": 80}, id="heads-wider-than-a-tile"),
    pytest.param(SMALL, (2, 9, 24), 24, {"head": 6}, id="heads-of-no-pack"),
    pytest.param(TALL, (3, 50, 72), 104, {"activation": "silu"}, id="tall"),
    pytest.param(LARGE, (3, 50, 136), 168, {"joined": False}, id="large"),
    pytest.param(LARGE, (2, 9, 192), 24, {"head": 96}, id="large-heads-of-96"),
    pytest.param(LARGE, (2, 70, 128), 24, {"head": 128}, id="large-heads-of-128"),
]


@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
@pytest.mark.parametrize(("loop", "shape", "features", "settings"), LINEAR)
def test_linear(simulated, loop, shape, features, settings, dtype):
    results = [
        cases.linear(simulated("product"), order, loop, shape, features, dtype, copies=copies, **settings)
        for order, copies in MODES
    ]
    same_bits(results)


def same_bits(results):
    for result, sums in results[1:]:
        assert torch.equal(result, results[0][0])
        assert sums is None or torch.equal(sums, results[0][1])


# Shape of the layer's input, features, kernel, what else, and why it is here.
CONVOLUTIONS = [
    pytest.param((2, 8, 7, 6), 16, (3, 3), {"padding": (1, 1)}, id="3x3"),
    pytest.param((2, 16, 9, 9), 40, (3, 3), {"padding": (1, 1), "stride": (2, 2)}, id="stride-2"),
    pytest.param((2, 8, 5, 6), 16, (1, 1), {"stride": (2, 2)}, id="1x1-stride-2"),
    pytest.param((1, 8, 9, 10), 8, (7, 7), {"padding": (3, 3), "stride": (2, 2)}, id="7x7-stride-2"),
    pytest.param((1, 8, 10, 9), 8, (3, 2), {"padding": (1, 2), "stride": (3, 2), "dilation": (2, 3)}, id="all-uneven"),
    pytest.param((1, 8, 9, 7), 8, (2, 2), {"stride": (4, 3)}, id="stride-beyond-the-kernel"),
    pytest.param((2, 16, 6, 5), 48, (3, 3), {"padding": (2, 2), "dilation": (2, 2), "groups": 2}, id="groups"),
    pytest.param((1, 72, 9, 8), 8, (3, 3), {"padding": (1, 1)}, id="more-channels-than-a-tile"),
]


@pytest.mark.parametrize("dtype", TENSOR_DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "features", "kernel", "settings"), CONVOLUTIONS)
def test_convolution(simulated, shape, features, kernel, settings, dtype):
    modes = MODES if dtype == torch.bfloat16 else MODES[-2:]
    results = [
        cases.convolution(simulated("product"), order, SMALL, shape, features, kernel, dtype, copies=copies, **settings)
        for order, copies in modes
    ]
    same_bits(results)


def test_large_convolution(simulated):
    settings = {"padding": (1, 1), "stride": (2, 1)}
    for order, copies in (("random", "eager"), ("skew", "lazy")):
        cases.convolution(simulated("product"), order, LARGE, (1, 72, 20, 9), 24, (3, 3), torch.bfloat16,
                          copies=copies, **settings)  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loop", [FMA, DIRECT])
def test_general_linear(simulated, loop, dtype):
    library = simulated("product")
    same_bits([cases.linear(library, order, loop, (5, 21, 71), 37, dtype, activation="silu") for order in TRIED_ORDERS])
    same_bits([cases.linear(library, order, loop, (3, 9, 128), 5, dtype, head=32) for order in TRIED_ORDERS])
    same_bits(
        [cases.linear(library, order, loop, (3, 9, 99), 5, dtype, head=33, stabilized=True) for order in TRIED_ORDERS]
    )
    cases.linear(library, "skew", loop, (2, 300, 160), 5, dtype, head=80, joined=False)
    cases.linear(library, "skew", loop, (2, 3, 5), 0, dtype)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("loop", [FMA, DIRECT])
def test_general_convolution(simulated, loop, dtype, channels_last):
    library = simulated("product")
    strided = {"padding": (1, 1), "stride": (2, 2)}
    uneven = {"padding": (1, 2), "stride": (3, 2), "dilation": (2, 3), "groups": 3}
    groups = 70 if loop == DIRECT else 7  # more than the columns of a tile; or each with blocks of its own
    depthwise = {"padding": (2, 2), "groups": groups}
    for shape, features, kernel, settings in (
        ((2, 5, 9, 9), 7, (3, 3), strided),
        ((1, 9, 10, 9), 6, (3, 2), uneven),
        ((1, groups, 5, 6), 2 * groups, (5, 5), depthwise),
    ):
        orders = TRIED_ORDERS if dtype == torch.float32 else ["random"]
        same_bits([
            cases.convolution(library, order, loop, shape, features, kernel, dtype, channels_last=channels_last,
                              **settings)
            for order in orders
        ])  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("loop", "dtype"), [(SMALL, torch.bfloat16), (FMA, torch.float64)], ids=["tensor", "general"])
def test_activations(simulated, loop, dtype, activation):
    cases.linear(simulated("product"), "random", loop, (2, 9, 24), 16, dtype, activation=activation)
