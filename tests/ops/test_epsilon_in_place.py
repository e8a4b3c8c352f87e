"""`epsilon_`, `epsilon_over_` and `unit_sums_`: definition, what they leave alone; they are `epsilon` bit for bit."""

import os
import subprocess
import sys

import pytest
import torch
from epsilon_cases import (
    SHAPES,
    STRIDES,
    assert_scaled,
    assert_sums,
    by_definition,
    channels_last,
    normal,
    pair,
    transposed,
)
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import ACTIVATIONS, epsilon, epsilon_, epsilon_over_, unit_sums_
from pxp_fast.ops._library import compute_dtype, native
from pxp_fast.ops.epsilon import reference_in_place, reference_over, reference_unit_sums

OPERATOR = torch.ops.pxp_fast.epsilon_.default
OVER = torch.ops.pxp_fast.epsilon_over_.default
RELU = ACTIVATIONS.index("relu")
UNIT_SUMS = torch.ops.pxp_fast.unit_sums_.default
MARGIN = 3
needs_kernels = pytest.mark.skipif(native["CPU"] != "loaded", reason=f"no compiled CPU kernels: {native['CPU']}")


class Table:
    """A table with other units on both sides of the slice that is added to."""

    def __init__(self, output, unit_dim, group):
        units = output.shape[unit_dim] // group
        shape = (2, output.shape[0], units + 2 * MARGIN)
        self.whole = normal(shape, compute_dtype(output.dtype), output.device, 3)
        self.before = self.whole.clone()
        self.part = self.whole[:, :, MARGIN : MARGIN + units]

    def added(self):
        """What the slice held before; the rest must be as it was."""
        units = self.part.shape[-1]
        for side in (slice(None, MARGIN), slice(MARGIN + units, None)):
            assert torch.equal(self.whole[:, :, side], self.before[:, :, side])
        return self.before[:, :, MARGIN : MARGIN + units].cpu().double()


def check(carry, output, eps=1e-6, activation="identity", unit_dim=1, group=1, stabilized_sums=False):
    arguments = {"activation": activation, "unit_dim": unit_dim, "group": group}
    c, z, table = carry.clone(), output.clone(), Table(output, unit_dim, group)
    assert unit_sums_(table.part, carry, output, **arguments) is table.part
    _, expected = by_definition(carry, output, eps, activation, unit_dim, group)
    before = table.added()
    assert_sums(table.part, before + expected, carry, output, unit_dim, group, before.abs())
    assert torch.equal(carry, c) and torch.equal(output, z)

    table = Table(output, unit_dim, group)
    arguments |= {"eps": eps, "stabilized_sums": stabilized_sums}
    assert epsilon_(carry, output, table.part, **arguments) is carry
    expected_scaled, expected = by_definition(c, z, eps, activation, unit_dim, group, stabilized_sums)
    assert_scaled(carry, expected_scaled)
    before = table.added()
    assert_sums(table.part, before + expected, c, z, unit_dim, group, before.abs())
    assert torch.equal(output, z)

    scaled = carry.clone()
    carry.copy_(c)
    epsilon_(carry, output, **arguments)
    assert torch.equal(carry, scaled)

    carry.copy_(c)
    table = Table(output, unit_dim, group)
    assert epsilon_over_(carry, output, table.part, **arguments) is output
    assert torch.equal(carry, c)
    assert_scaled(output, expected_scaled)
    before = table.added()
    assert_sums(table.part, before + expected, c, z, unit_dim, group, before.abs())


@pytest.mark.parametrize(("shape", "unit_dim", "group"), SHAPES)
def test_definition_shapes(shape, unit_dim, group, device):
    check(*pair(shape, torch.float32, device), 1e-3, "relu", unit_dim, group)


@pytest.mark.parametrize("stabilized_sums", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_definition_activations(activation, stabilized_sums, dtype, device):
    check(*pair((2, 4, 5, 5), dtype, device), 0.5, activation, stabilized_sums=stabilized_sums)
    check(*pair((2, 7, 6), dtype, device), 0.5, activation, -1, 3, stabilized_sums)


@pytest.mark.parametrize("name", [name for name in STRIDES if not name.startswith("expanded")])
@pytest.mark.parametrize("unit_dim", [1, -1])
def test_definition_strides(name, unit_dim, device):
    wholes = pair((3, 4, 5, 6), torch.float32, device)
    carry, output = (view(t) for view, t in zip(STRIDES[name], wholes, strict=True))
    check(carry, output, 1e-2, "relu", unit_dim)


def test_definition_narrow_strides(dtype, device):
    carry, output = (channels_last(t) for t in pair((2, 5, 3, 3), dtype, device))
    check(carry, output, 1e-2, "silu")
    check(carry[:, 1:], output[:, 1:], 1e-2, "silu")
    check(carry.contiguous(), output, 1e-2, "silu")


@pytest.mark.parametrize("group", [1, 4])
def test_definition_token_strides(group, device):
    for view in (lambda t: t[:, :1], transposed(0, 1), transposed(1, 2), lambda t: t[:, ::2], lambda t: t[..., 4:]):
        carry, output = pair((3, 5, 8), torch.float32, device)
        check(view(carry), view(output), 1e-2, "gelu", -1, group)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_around_a_sliced_carry_nothing_changes(layout, dtype, device):
    whole, output = (t.contiguous(memory_format=layout) for t in pair((4, 40, 9, 9), dtype, device))
    before = whole.clone()
    inside = (slice(1, 3), slice(3, 36), slice(1, 8))
    epsilon_(whole[inside], output[inside], eps=0.1, activation="gelu")
    carry = before[inside].clone()
    before[inside] = epsilon(carry, output[inside], eps=0.1, activation="gelu")[0]
    assert torch.equal(whole, before)
    expected = output.clone()
    expected[inside] = before[inside]
    epsilon_over_(carry, output[inside], eps=0.1, activation="gelu")
    assert torch.equal(output, expected)


@pytest.mark.parametrize("view", [lambda t: t[:, :, :1, :1].expand(t.shape), lambda t: t[::2].repeat(2, 1, 1, 1)])
def test_sums_of_a_carry_that_is_only_read(view, device):
    carry, output = pair((4, 6, 5, 5), torch.float32, device)
    for other in (output, channels_last(output)):
        sums = torch.zeros(2, 4, 6, device=device)
        unit_sums_(sums, view(carry), other, activation="gelu")
        expected = by_definition(view(carry), other, 0.0, "gelu", 1, 1)[1]
        assert_sums(sums, expected, view(carry), other, 1, 1)
        scaled = by_definition(view(carry), other, 0.5, "gelu", 1, 1)[0]
        assert_scaled(epsilon_over_(view(carry), other.clone(), eps=0.5, activation="gelu"), scaled)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(3, 65, 9, 9), (2, 70, 31, 33)], ids=str)
def test_equals_epsilon_to_the_last_bit(activation, shape, dtype, device):
    for layout in (torch.contiguous_format, torch.channels_last):
        carry, output = (t.contiguous(memory_format=layout) for t in pair(shape, dtype, device))
        scaled, sums = epsilon(carry, output, eps=1e-3, activation=activation)
        table = Table(output, 1, 1)
        unit_sums_(table.part, carry, output, activation=activation)
        assert torch.equal(table.part, table.before[:, :, MARGIN:-MARGIN] + sums)
        epsilon_(carry, output, table.part, eps=1e-3, activation=activation)
        assert torch.equal(table.part, table.before[:, :, MARGIN:-MARGIN] + sums + sums)
        before, rest = carry.clone(), output.clone()
        carry.copy_(pair(shape, dtype, device)[0])
        assert torch.equal(before, scaled) and torch.equal(
            epsilon_over_(carry, rest, eps=1e-3, activation=activation), scaled
        )


@pytest.mark.parametrize("group", [1, 64])
def test_stabilized_sums_are_those_of_the_result(group, dtype, device):
    """What used to take two calls: the sums of the scaled carry, which has been rounded to its dtype there."""
    carry, output = pair((2, 50, 192), dtype, device)
    table = torch.zeros(2, 2, 192 // group, dtype=compute_dtype(dtype), device=device)
    scaled = epsilon(carry, output, eps=0.5, unit_dim=-1, group=group)[0]
    _, expected = epsilon(scaled, output, eps=0.0, unit_dim=-1, group=group)
    epsilon_(carry, output, table, eps=0.5, unit_dim=-1, group=group, stabilized_sums=True)
    assert torch.equal(carry, scaled)
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(table, expected, rtol=unit, atol=50 * group * unit)


def test_repeated_adds(device):
    carry, output = pair((2, 30, 4, 4), torch.float32, device)
    _, once = epsilon(carry, output)
    table, expected = torch.zeros(2, 2, 30, device=device), torch.zeros(2, 2, 30, device=device)
    for _ in range(5):
        unit_sums_(table, carry, output)
        expected += once
    assert torch.equal(table, expected)


TABLES = {
    "rows-inside-samples": lambda t: t.view(3, 5, 20).transpose(0, 1)[::4, :, 5:11],
    "every-second-sample": lambda t: t.view(2, 6, 25)[:, ::2, 1:7],
    "layers-between": lambda t: t.view(2, 5, 3, 10)[:, 2, :, 4:],
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_tables_of_any_strides(name, layout, device):
    carry, output = (t.contiguous(memory_format=layout) for t in pair((3, 6, 4, 4), torch.float32, device))
    whole = normal((300,), torch.float32, device)
    expected = whole.clone()
    TABLES[name](expected).add_(epsilon(carry, output)[1])
    unit_sums_(TABLES[name](whole), carry, output)
    assert torch.equal(whole, expected)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4), (2, 0, 4, 4)])
@pytest.mark.parametrize("unit_dim", [1, -1])
def test_empty(shape, unit_dim, device):
    carry, output = pair(shape, torch.float32, device)
    sums = torch.full((2, shape[0], shape[unit_dim]), 7.0, device=device)
    epsilon_(carry, output, sums, unit_dim=unit_dim)
    epsilon_over_(carry, output, sums, unit_dim=unit_dim)
    unit_sums_(sums, carry, output, unit_dim=unit_dim)
    assert (sums == 7).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels-last"])
def test_threads_do_not_change_a_bit(layout, threads):
    carry, output = (t.contiguous(memory_format=layout) for t in pair((3, 70, 31, 33), torch.float32, "cpu"))
    results = []
    for count in (1, 2, 3, 4):
        threads(count)
        scaled, unsummed, sums = carry.clone(), carry.clone(), torch.ones(2, 3, 70)
        epsilon_(scaled, output, sums, activation="gelu")
        epsilon_(unsummed, output, activation="gelu")
        unit_sums_(sums, carry, output, activation="gelu")
        results.append((scaled, unsummed, sums))
    assert torch.equal(results[0][0], results[0][1])
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_equals_the_reference(activation, dtype):
    carry, output = pair((2, 300, 192), dtype, "cpu")
    tables = torch.ones(2, 2, 2, 3, dtype=compute_dtype(dtype))
    expected = carry.clone()
    epsilon_(carry, output, tables[0], activation=activation, unit_dim=-1, group=64, stabilized_sums=True)
    reference_in_place(expected, output, tables[1], 1e-6, activation, -1, 64, True)
    over, expected_over = output.clone(), output.clone()
    epsilon_over_(expected, over, activation=activation, unit_dim=-1, group=64)
    reference_over(expected, expected_over, None, 1e-6, activation, -1, 64, False)
    unit_sums_(tables[0], carry, output, activation=activation, unit_dim=-1, group=64)
    reference_unit_sums(tables[1], expected, output, activation, -1, 64)
    unit = torch.finfo(dtype).eps
    tolerance = {"rtol": max(unit, 2e-6) if unit > 1e-10 else 1e-14, "atol": 1e-7}
    torch.testing.assert_close(carry, expected, **tolerance)
    torch.testing.assert_close(over, expected_over, **tolerance)
    # The second call's carry may differ from the reference's by a rounding to its dtype.
    torch.testing.assert_close(tables[0], tables[1], rtol=0, atol=8 * max(unit, 1e-6 * (unit > 1e-10)) * 300 * 64)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set(instruction_set):
    """The processor's best loops are what the other tests run; these are the ones other processors would."""
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k",
         "(narrow or last_bit) and not cuda"],
        env={**os.environ, "PXP_ISA": instruction_set}, check=True, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [((2, 6, 3, 5), "gelu", 1, 1), ((2, 7, 6), "relu", -1, 1), ((2, 7, 6), "silu", -1, 3), ((2, 6), "identity", -1, 2)],
)
def test_opcheck(arguments, dtype, device):
    shape, activation, unit_dim, group = arguments
    carry, output, number = *pair(shape, dtype, device), ACTIVATIONS.index(activation)
    part = Table(output, unit_dim, group).part
    for sums in (part, None):
        opcheck(OPERATOR, (carry.clone(), output, sums, 1e-3, number, unit_dim, group, False))
        opcheck(OVER, (carry, output.clone(), sums, 1e-3, number, unit_dim, group, False))
    opcheck(UNIT_SUMS, (part.clone(), carry, output, number, unit_dim, group))


def test_opcheck_strides(device):
    carry, output = (channels_last(t) for t in pair((2, 6, 4, 5), torch.float32, device))
    sums = torch.zeros(2, 2, 6, device=device)
    opcheck(OPERATOR, (carry, output, sums, 1e-3, RELU, 1, 1, True))
    opcheck(OPERATOR, (carry.contiguous(), output, sums, 1e-3, RELU, 1, 1, False))
    opcheck(OVER, (carry.contiguous(), output, sums, 1e-3, RELU, 1, 1, False))
    opcheck(UNIT_SUMS, (sums, carry[:, :, ::2], output[:, :, ::2], RELU, 1, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"carry": torch.zeros(2, 4)}, "one shape"),
        ({"carry": torch.zeros(2, 1).expand(2, 3)}, "expanded"),
        ({"carry": torch.zeros(9).as_strided((2, 3), (2, 1))}, "share memory"),
        ({"activation": "tanh"}, "choose one of"),
        ({"eps": -1.0}, "not negative"),
        ({"unit_dim": 0}, "unit_dim"),
        ({"group": 2}, "divisor"),
        ({"sums": torch.zeros(2, 3, 2)}, "bigger table"),
        ({"sums": torch.zeros(2, 2, 3).double()}, "bigger table"),
        ({"sums": torch.zeros(2, 2, 6)[..., ::2]}, "last stride is 1"),
        ({"sums": torch.zeros(2, 1, 3).expand(2, 2, 3)}, "sums .* expanded"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"carry": torch.zeros(2, 3), "output": torch.zeros(2, 3), "sums": torch.zeros(2, 2, 3)} | change
    with pytest.raises(PxpError, match=f"epsilon_: .*{message}"):
        epsilon_(**arguments)
    if "eps" not in change and "share" not in message and "carry" not in change:
        with pytest.raises(PxpError, match=f"unit_sums_: .*{message}"):
            unit_sums_(**arguments)
    roles = {"carry": "output", "output": "carry"}
    with pytest.raises(PxpError, match=f"epsilon_over_: .*{message}"):
        epsilon_over_(**{roles.get(name, name): value for name, value in arguments.items()})


@needs_kernels
def test_wrong_arguments_past_the_typed_functions():
    """The kernels guard themselves: nothing is read or written past a tensor, whoever calls."""
    z, sums = torch.zeros(2, 3, 4), torch.zeros(2, 2, 3)
    for bad in ((z[:1], z, sums), (z, z, sums[:, :1]), (z, z, sums.double()), (z, z, sums.mT.contiguous().mT),
                (z, z, sums[:1].expand(2, 2, 3)), (z.double(), z, sums)):  # fmt: skip
        with pytest.raises(RuntimeError):
            torch.ops.pxp_fast.epsilon_(*bad, 0.1, RELU, 1, 1, False)
        with pytest.raises(RuntimeError):
            torch.ops.pxp_fast.epsilon_over_(*bad, 0.1, RELU, 1, 1, False)
        with pytest.raises(RuntimeError):
            torch.ops.pxp_fast.unit_sums_(bad[2], *bad[:2], RELU, 1, 1)
    with pytest.raises(RuntimeError, match="clone"):
        torch.ops.pxp_fast.epsilon_(z[:, :1].expand(2, 3, 4), z, None, 0.1, RELU, 1, 1, False)
    with pytest.raises(RuntimeError, match="clone"):
        torch.ops.pxp_fast.epsilon_over_(z, z[:, :1].expand(2, 3, 4), None, 0.1, RELU, 1, 1, False)
