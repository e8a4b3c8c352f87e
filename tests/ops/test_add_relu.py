"""`add_relu` has the bits of the sum followed by the ReLU, for every value and layout."""

import math

import pytest
import torch
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import add_relu

OPERATOR = torch.ops.pxp_fast.add_relu.default
EDGES = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    6e-8,
    -6e-8,
    1e-40,
    -1e-40,
    65504.0,
    -65504.0,
    3e38,
    -3e38,
    math.inf,
    -math.inf,
    math.nan,
]


def pair(shape, dtype, device):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(2)]


def check(a, b):
    result = add_relu(a, b)
    torch.testing.assert_close(result, torch.relu(a + b), rtol=0, atol=0, equal_nan=True)
    assert result.stride() == torch.empty_like(a).stride()
    return result


@pytest.mark.parametrize("shape", [(), (1,), (7,), (4, 33), (3, 1024 + 5), (2, 8, 5, 5), (0, 3)])
def test_every_size(shape, dtype, device):
    check(*pair(shape, dtype, device))


def test_exact_sums_are_rounded_once(dtype, device):
    """Against sums in rational numbers: halves of the last place go to even."""
    a = torch.tensor([1.0, 1.5, 3.0, 5.0, -7.0], dtype=dtype, device=device)
    for step in (0.5, 0.25, 0.75, 1.0):
        b = torch.full_like(a, step * torch.finfo(dtype).eps)
        found = add_relu(a, b).double().tolist()
        for x, y, z in zip(a.double().tolist(), b.double().tolist(), found, strict=True):
            place = torch.finfo(dtype).eps * 2.0 ** math.floor(math.log2(abs(x)))  # between neighbours of the sum
            steps = y / place
            even = round(x / place) % 2 == 0
            up = steps > 0.5 or (steps == 0.5 and not even)
            assert z == max(x + place * up, 0.0)


def test_values_at_the_edge(dtype, device):
    """All pairs of zeros, subnormals, the largest numbers, infinities and NaN, in long rows and in the rest of one."""
    values = torch.tensor(EDGES, dtype=torch.float64).to(device, dtype)
    a, b = (t.flatten().repeat(3) for t in torch.meshgrid(values, values, indexing="ij"))
    result = check(a, b)
    assert torch.equal(result.isnan(), (a + b).isnan()) and result.isnan().any()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("other", [torch.contiguous_format, torch.channels_last])
def test_layouts(layout, other, dtype, device):
    a, b = pair((2, 5, 4, 3), dtype, device)
    check(a.contiguous(memory_format=layout), b.contiguous(memory_format=other))


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.transpose(0, 2),
        lambda t: t[:, ::2],
        lambda t: t[1:, :, 1:],
        lambda t: t[:1].expand(4, -1, -1),
        lambda t: t.permute(1, 2, 0),
    ],
)
@pytest.mark.parametrize("both", [True, False])
def test_views(view, both, device):
    a, b = (view(t) for t in pair((4, 6, 5), torch.float32, device))
    check(a, b if both else b.contiguous())
    check(b.contiguous(), a)


def test_the_operands_stay_as_they_are(dtype, device):
    a, b = pair((5, 40), dtype, device)
    before = a.clone(), b.clone()
    result = add_relu(a, b)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])
    assert result.untyped_storage().data_ptr() not in (a.untyped_storage().data_ptr(), b.untyped_storage().data_ptr())
    check(a, a)


def test_any_number_of_threads(threads):
    a, b = pair((3, 100_003), torch.bfloat16, "cpu")
    for count in (1, 2, 3):
        threads(count)
        check(a, b)


def test_opcheck(dtype, device):
    a, b = pair((2, 3, 4, 5), dtype, device)
    opcheck(OPERATOR, (a, b))
    opcheck(OPERATOR, (a.contiguous(memory_format=torch.channels_last), b))
    opcheck(OPERATOR, (a.transpose(1, 3), b.transpose(1, 3)))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(3), torch.zeros(4), r"a is torch.float32 \(3,\)"),
        (torch.zeros(3), torch.zeros(1), "one shape"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64), "one shape, dtype"),
        (torch.zeros(3), torch.zeros(3, device="meta"), "on meta"),
        (torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "floating-point"),
    ],
)
def test_wrong_arguments(a, b, message):
    with pytest.raises(PxpError, match=message):
        add_relu(a, b)
