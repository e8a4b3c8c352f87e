"""`linear_epsilon` against its definition in double precision."""

import math

import pytest
import torch
from products import PRECISIONS, TENSOR_CORES, check, linear_carry, needs_cuda, normal, table
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import ACTIVATIONS, epsilon, linear_epsilon

OPERATOR = torch.ops.pxp_fast.linear_epsilon.default


def tensors(shape, features, dtype, device):
    """`scaled`, `weight`, `output` and `carry` for an output of `shape` below a layer of `features`."""
    return (
        normal((*shape[:-1], features), dtype, device, 1),
        normal((features, shape[-1]), dtype, device, 2),
        normal(shape, dtype, device, 3) * 2,
        normal(shape, dtype, device, 4),
    )


def verify(scaled, weight, output, joined=None, activation="identity", group=1, stabilized=False, tf32=False, eps=1e-2):
    def operation(sums):
        return linear_epsilon(
            scaled, weight, output, joined, sums=sums, eps=eps, activation=activation, group=group,
            stabilized_sums=stabilized, tf32=tf32,
        )  # fmt: skip

    check(
        operation, output, linear_carry(scaled, weight), linear_carry(scaled.abs(), weight.abs()), joined, -1, eps,
        activation, group, stabilized, tf32 and scaled.is_cuda,
    )  # fmt: skip


# Shape of the output, features above it, group, and why it is here.
SHAPES = [
    pytest.param((2, 5, 16), 24, 1, id="tokens"),
    pytest.param((3, 40), 32, 1, id="no-positions"),
    pytest.param((300, 8), 8, 1, id="as-many-samples-as-rows"),
    pytest.param((2, 3, 4, 24), 40, 1, id="windows-of-tokens"),
    pytest.param((5, 49, 136), 72, 1, id="tiles-that-straddle-samples"),
    pytest.param((1, 260, 264), 136, 1, id="several-tiles"),
    pytest.param((2, 197, 128), 64, 64, id="heads"),
    pytest.param((2, 7, 192), 64, 96, id="heads-of-96"),
    pytest.param((2, 7, 64), 24, 8, id="small-heads"),
    pytest.param((2, 7, 320), 24, 160, id="heads-wider-than-a-tile"),
    pytest.param((2, 7, 36), 24, 12, id="heads-of-no-pack"),
    pytest.param((2, 5, 7), 9, 1, id="odd"),
    pytest.param((1, 1, 1), 1, 1, id="one"),
]


@pytest.mark.parametrize(("shape", "features", "group"), SHAPES)
@pytest.mark.parametrize(("dtype", "tf32"), PRECISIONS)
def test_definition_shapes(shape, features, group, dtype, tf32, device):
    scaled, weight, output, carry = tensors(shape, features, dtype, device)
    verify(scaled, weight, output, None, "identity", group, tf32=tf32)
    verify(scaled, weight, output, carry, "relu", group, stabilized=True, tf32=tf32)


# What only layers as large as real ones meet: the tiles taken where there are at least 128 of them.
@needs_cuda
@pytest.mark.parametrize(
    ("shape", "features", "group"),
    [
        pytest.param((8, 2100, 64), 72, 1, id="tall-tiles"),
        pytest.param((8, 2100, 64), 72, 32, id="tall-tiles-of-heads"),
        pytest.param((4, 2048, 264), 1032, 1, id="large-tiles-in-three-columns"),
        pytest.param((4, 2048, 264), 72, 88, id="large-tiles-of-heads"),
    ],
)
@pytest.mark.parametrize(("dtype", "tf32"), TENSOR_CORES)
def test_definition_of_real_layers_on_cuda(shape, features, group, dtype, tf32):
    scaled, weight, output, carry = tensors(shape, features, dtype, "cuda")
    verify(scaled, weight, output, None, "identity", group, tf32=tf32)
    verify(scaled, weight, output, carry, "relu", group, stabilized=True, tf32=tf32)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_definition_activations(activation, dtype, device):
    verify(*tensors((2, 9, 24), 16, dtype, device), activation)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_definition_eps(eps, device):
    verify(*tensors((2, 9, 24), 16, torch.float32, device), eps=eps)


def test_definition_strides(dtype, device):
    scaled, weight, output, carry = tensors((4, 6, 32), 16, dtype, device)
    views = {
        "tokens": lambda t: t[:, 1:],
        "samples": lambda t: t[::2],
        "transposed": lambda t: t.transpose(0, 1),
        "one-row": lambda t: t[:, :1].expand(4, 3, t.shape[-1]),
    }
    for view in views.values():
        verify(view(scaled), weight, view(output), view(carry))
        verify(view(scaled).contiguous(), weight, view(output), view(carry).contiguous())
    verify(scaled, weight.t().contiguous().t(), output, carry)
    verify(scaled[..., 1:], weight[1:], output, carry)
    verify(scaled, weight[:, 3:], output[..., 3:], carry[..., 3:])
    verify(scaled, weight[:, 8:24], output[..., 8:24], carry[..., 8:24], group=8)


def test_is_the_product_and_then_epsilon(device):
    scaled, weight, output, carry = tensors((3, 10, 24), 16, torch.float64, device)
    sums = torch.zeros(2, 3, 6, dtype=torch.float64, device=device)
    result = linear_epsilon(scaled, weight, output, carry, sums=sums, eps=1e-3, activation="gelu", group=4)
    expected = epsilon(scaled @ weight + carry, output, eps=1e-3, activation="gelu", unit_dim=-1, group=4)
    torch.testing.assert_close((result, sums), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(0, 3, 8), (2, 0, 8), (2, 3, 0)])
def test_empty(shape, device):
    scaled, weight, output, carry = tensors(shape, 8, torch.float32, device)
    sums = torch.ones(2, shape[0], shape[-1], device=device)
    assert linear_epsilon(scaled, weight, output, carry, sums=sums).shape == shape
    assert (sums == 1).all()


def test_no_features(device):
    scaled, weight, output, carry = tensors((2, 3, 8), 0, torch.float32, device)
    verify(scaled, weight, output, carry)
    assert (linear_epsilon(scaled, weight, output) == 0).all()


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_opcheck(joined, summed, dtype, device):
    scaled, weight, output, carry = tensors((2, 7, 24), 16, dtype, device)
    sums = table(2, 6, torch.float64 if dtype == torch.float64 else torch.float32, device)[1] if summed else None
    opcheck(
        OPERATOR,
        (scaled, weight, output, carry if joined else None, sums, 1e-3, ACTIVATIONS.index("gelu"), 4, True, True),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaled": torch.zeros(2, 4, 5)}, "pass scaled"),
        ({"weight": torch.zeros(5, 8, 1)}, "pass scaled"),
        ({"weight": torch.zeros(5, 7)}, "pass scaled"),
        ({"output": torch.zeros(2, 3, 9)}, "pass scaled"),
        ({"weight": torch.zeros(5, 8).half()}, "one dtype"),
        ({"carry": torch.zeros(2, 3, 8).double()}, "one dtype"),
        ({"carry": torch.zeros(2, 1, 8)}, "one shape"),
        ({"sums": torch.zeros(2, 2, 4)}, "signed and absolute"),
        ({"sums": torch.zeros(2, 2, 8).double()}, "signed and absolute"),
        ({"sums": torch.zeros(2, 2, 16)[..., ::2]}, "side by side"),
        ({"activation": "tanh"}, "choose one of"),
        ({"eps": -1.0}, "not negative"),
        ({"eps": math.nan}, "not negative"),
        ({"group": 3}, "divisor"),
        ({"group": 0}, "divisor"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"scaled": torch.zeros(2, 3, 5), "weight": torch.zeros(5, 8), "output": torch.zeros(2, 3, 8)} | change
    with pytest.raises(PxpError, match=message):
        linear_epsilon(**arguments)


def test_integers_are_refused():
    with pytest.raises(PxpError, match="floating-point"):
        linear_epsilon(*(torch.zeros(shape, dtype=torch.int32) for shape in ((2, 5), (5, 8), (2, 8))))
