"""`epsilon` against its definition, computed one element at a time in double precision."""

import math
import os
import subprocess
import sys

import pytest
import torch
from epsilon_cases import SHAPES, STRIDES, assert_scaled, assert_sums, by_definition, channels_last, pair, transposed
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import ACTIVATIONS, epsilon
from pxp_fast.ops._library import native
from pxp_fast.ops.epsilon import reference

OPERATOR = torch.ops.pxp_fast.epsilon.default
RELU = ACTIVATIONS.index("relu")


def check(carry, output, eps=1e-6, activation="identity", unit_dim=1, group=1):
    scaled, sums = epsilon(carry, output, eps=eps, activation=activation, unit_dim=unit_dim, group=group)
    true_scaled, true_sums = by_definition(carry, output, eps, activation, unit_dim, group)
    assert_scaled(scaled, true_scaled)
    assert scaled.dtype == output.dtype and scaled.stride() == torch.empty_like(output).stride()
    assert sums.dtype == (torch.float64 if output.dtype == torch.float64 else torch.float32)
    assert_sums(sums, true_sums, carry, output, unit_dim, group)


@pytest.mark.parametrize(("shape", "unit_dim", "group"), SHAPES)
def test_definition_shapes(shape, unit_dim, group, device):
    check(*pair(shape, torch.float32, device), 1e-3, "relu", unit_dim, group)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_definition_activations(activation, dtype, device):
    check(*pair((2, 4, 5, 5), dtype, device), 1e-2, activation)
    check(*pair((2, 7, 6), dtype, device), 1e-2, activation, -1, 3)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_definition_eps(eps, device):
    check(*pair((2, 3, 4, 4), torch.float32, device), eps)


@pytest.mark.parametrize("name", STRIDES)
@pytest.mark.parametrize("unit_dim", [1, -1])
def test_definition_strides(name, unit_dim, device):
    carry, output = (view(t) for view, t in zip(STRIDES[name], pair((3, 4, 5, 6), torch.float32, device), strict=True))
    check(carry, output, 1e-2, "relu", unit_dim)


@pytest.mark.parametrize("group", [1, 4])
def test_definition_token_strides(group, device):
    carry, output = pair((3, 5, 8), torch.float32, device)
    for view in (lambda t: t[:, :1], transposed(0, 1), transposed(1, 2), lambda t: t[:, ::2], lambda t: t[..., 4:]):
        check(view(carry), view(output), 1e-2, "gelu", -1, group)


def test_definition_narrow_strides(dtype, device):
    carry, output = (channels_last(t) for t in pair((2, 5, 3, 3), dtype, device))
    check(carry, output, 1e-2, "silu")
    check(carry[:, 1:], output[:, 1:], 1e-2, "silu")


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)])
@pytest.mark.parametrize("unit_dim", [1, -1])
def test_empty(shape, unit_dim, device):
    scaled, sums = epsilon(*pair(shape, torch.float32, device), unit_dim=unit_dim)
    assert scaled.shape == shape
    assert sums.shape == (2, shape[0], shape[unit_dim]) and (sums == 0).all()


def test_gelu_ratio_is_exact_on_both_sides_of_zero(device):
    z = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -0.0, 1e-30, -1e-30])]).to(device)
    ratio, _ = epsilon(torch.ones_like(z)[None], z[None], eps=0.0, activation="gelu", unit_dim=-1)
    true = torch.tensor([0.5 * math.erfc(-v / math.sqrt(2)) for v in z.double().tolist()])
    seen = z.cpu() != 0
    ulp = (ratio[0].cpu().double() - true).abs()[seen] / torch.finfo(torch.float32).eps / true[seen]
    assert ulp.max() < 4, ulp.max()


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "silu", "hardswish", "relu6"])
def test_far_from_zero(activation, device):
    z = torch.tensor([[-3e38, -1e4, -200.0, -90.0, -30.0, 30.0, 90.0, 200.0, 1e4, 3e38]], device=device)
    scaled, _ = epsilon(torch.ones_like(z), z, eps=0.0, activation=activation)
    ratio = torch.tensor([[0.0] * 5 + [1.0] * 5], device=device)
    if activation == "relu6":
        ratio = torch.where(z > 6, 6 / z, 0.0)
    torch.testing.assert_close(scaled, ratio, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("where", ["carry", "output"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_its_unit_alone(where, activation, value, device):
    tensors = dict(zip(("carry", "output"), pair((2, 3, 4, 4), torch.float32, device), strict=True))
    tensors["output"][1, 2, 3, 3] = -1.5
    tensors[where][1, 2, 3, 3] = value
    for layout in (torch.contiguous_format, torch.channels_last):
        _, sums = epsilon(*(t.contiguous(memory_format=layout) for t in tensors.values()), activation=activation)
        finite = torch.isfinite(sums).all(0).cpu()
        if (where, value) == ("output", math.nan) or activation not in ("relu", "relu6", "hardswish"):
            assert not finite[1, 2]
        finite[1, 2] = True
        assert finite.all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_threads_do_not_change_a_bit(layout, threads, device):
    carry, output = (t.contiguous(memory_format=layout) for t in pair((3, 70, 31, 33), torch.float32, device))
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        results.append(epsilon(carry, output, activation="gelu"))
    for scaled, sums in results[1:]:
        assert torch.equal(scaled, results[0][0]) and torch.equal(sums, results[0][1])


@pytest.mark.parametrize("activation", ["identity", "relu"])
def test_equals_the_reference_to_the_last_bit(activation, dtype):
    for layout in (torch.contiguous_format, torch.channels_last):
        carry, output = (t.contiguous(memory_format=layout) for t in pair((3, 65, 9, 9), dtype, "cpu"))
        expected, _ = reference(carry, output, 1e-3, activation, 1, 1)
        assert torch.equal(epsilon(carry, output, eps=1e-3, activation=activation)[0], expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_reference(activation, dtype, device):
    carry, output = pair((2, 300, 192), dtype, device)
    scaled, sums = epsilon(carry, output, activation=activation, unit_dim=-1, group=64)
    expected_scaled, expected_sums = reference(carry, output, 1e-6, activation, -1, 64)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(scaled, expected_scaled, rtol=max(unit, 2e-6) if unit > 1e-10 else 1e-14, atol=1e-7)
    work = torch.finfo(sums.dtype).eps
    torch.testing.assert_close(sums, expected_sums, rtol=0, atol=4 * work * 300 * 64)


def test_float16_rounds_like_pytorch(device):
    """Every float16 value passes through unchanged, and values between them are rounded to even."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32, device=device).to(torch.int16)
    z = bits.view(torch.float16)
    z = z[torch.isfinite(z) & (z != 0)][None]
    scaled, _ = epsilon(z, torch.ones_like(z), eps=0.0)
    assert torch.equal(scaled, z)
    carry = torch.randn(1, 50_000, generator=torch.Generator().manual_seed(0)).half().to(device)
    factor = torch.full_like(carry, 3.0)
    scaled, _ = epsilon(carry, factor, eps=1.0)
    assert torch.equal(scaled, (carry.float() * 0.75).half())


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set(instruction_set):
    """The processor's best loops are what the other tests run; these are the ones other processors would."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k",
         "(definition or reference or rounds or gelu) and not cuda"],
        env={**os.environ, "PXP_ISA": instruction_set}, check=True, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [((2, 6, 3, 5), "gelu", 1, 1), ((2, 7, 6), "relu", -1, 1), ((2, 7, 6), "silu", -1, 3), ((2, 6), "identity", -1, 2)],
)
def test_opcheck(arguments, dtype, device):
    shape, activation, unit_dim, group = arguments
    carry, output = pair(shape, dtype, device)
    opcheck(OPERATOR, (carry, output, 1e-3, ACTIVATIONS.index(activation), unit_dim, group))


def test_opcheck_strides(device):
    carry, output = (channels_last(t) for t in pair((2, 6, 4, 5), torch.float32, device))
    opcheck(OPERATOR, (carry, output, 1e-3, RELU, 1, 1))
    opcheck(OPERATOR, (carry[:, :, ::2], output[:, :, ::2], 1e-3, RELU, 1, 1))
    opcheck(OPERATOR, (carry[:0], output[:0], 1e-3, RELU, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carry": torch.zeros(2, 4)}, "one shape"),
        ({"carry": torch.zeros(2, 3).double()}, "one shape"),
        ({"activation": "tanh"}, "choose one of"),
        ({"eps": -1.0}, "not negative"),
        ({"eps": math.nan}, "not negative"),
        ({"unit_dim": 0}, "unit_dim"),
        ({"group": 2}, "divisor"),
        ({"group": 0}, "divisor"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"carry": torch.zeros(2, 3), "output": torch.zeros(2, 3)} | change
    with pytest.raises(PxpError, match=message):
        epsilon(**arguments)


@pytest.mark.skipif(native["CPU"] != "loaded", reason=f"no compiled CPU kernels: {native['CPU']}")
def test_wrong_arguments_past_the_typed_function():
    """The kernels guard themselves: nothing reads past a tensor, whoever calls."""
    z = torch.zeros(2, 3, 4)
    for bad in ((z[:1], z, 0.1, RELU, 1, 1), (z, z, 0.1, RELU, 0, 1), (z, z, 0.1, len(ACTIVATIONS), 1, 1),
                (z, z, 0.1, -1, 1, 1), (z, z, 0.1, RELU, -1, 3), (z.double(), z, 0.1, RELU, 1, 1)):  # fmt: skip
        with pytest.raises((RuntimeError, KeyError, ValueError)):
            torch.ops.pxp_fast.epsilon(*bad)
