"""`select` against Python's own sort."""

import math

import pytest
import torch
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import select

OPERATOR = torch.ops.pxp_fast.select.default


def by_definition(scores, k, largest):
    values = scores.double().tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i] if largest else values[i], i))
    chosen = set(order[:k])
    return torch.tensor([i in chosen for i in range(len(values))], dtype=torch.bool)


def check(scores, k, device="cpu"):
    for largest in (False, True):
        result = select(scores.to(device), k, largest=largest)
        assert result.dtype == torch.bool and result.device.type == device
        assert torch.equal(result.cpu(), by_definition(scores, k, largest))


@pytest.mark.parametrize("n", [1, 2, 255, 256, 1025, 5000])
def test_definition(n, dtype, device):
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n)).to(dtype)
    for k in sorted({0, 1, n // 3, n - 1, n}):
        check(scores, k, device)


def test_ties_go_to_the_lower_index(device):
    scores = torch.randint(-3, 3, (3000,), generator=torch.Generator().manual_seed(0)).float()
    for k in (0, 1, 100, 1499, 2999, 3000):
        check(scores, k, device)
    check(torch.zeros(2500), 1200, device)


def test_zeros_of_both_signs_are_equal(dtype, device):
    scores = torch.tensor([0.0, -0.0, 0.0, -0.0, -1.0, 1.0], dtype=dtype)
    for k in range(7):
        check(scores, k, device)


def test_infinities_and_subnormals(device):
    scores = torch.tensor([math.inf, 1e-42, -math.inf, -1e-42, 3e38, 0.0, -3e38, math.inf, -math.inf])
    for k in range(10):
        check(scores, k, device)


def test_neighbouring_doubles(device):
    """Keys that differ in their last bit only."""
    scores = torch.tensor([1.0], dtype=torch.float64).repeat(300)
    scores[::3] = math.nextafter(1.0, 2.0)
    scores[1::3] = math.nextafter(1.0, 0.0)
    check(scores, 150, device)


def test_strides(device):
    scores = torch.randn(600, generator=torch.Generator().manual_seed(0))
    assert torch.equal(select(scores.to(device)[::3], 70).cpu(), by_definition(scores[::3], 70, False))


def test_empty(device):
    assert select(torch.zeros(0, device=device), 0).shape == (0,)


@pytest.mark.parametrize("largest", [False, True])
def test_opcheck(largest, dtype, device):
    scores = torch.randn(50).to(device, dtype)
    opcheck(OPERATOR, (scores, 20, largest))
    opcheck(OPERATOR, (scores[::2], 0, largest))
    opcheck(OPERATOR, (scores[:0], 0, largest))


@pytest.mark.parametrize("largest", [False, True])
def test_nan_ranks_highest_where_it_is_not_refused(largest, device):
    scores = torch.tensor([2.0, math.nan, 1.0, -math.nan], device=device)
    result = torch.ops.pxp_fast.select(scores, 2, largest)
    assert result.tolist() == ([False, True, False, True] if largest else [True, False, True, False])


@pytest.mark.parametrize(
    ("scores", "k", "message"),
    [
        (torch.tensor([1.0, math.nan]), 1, "1 of 2 scores are NaN"),
        (torch.zeros(2), 3, "k is 3"),
        (torch.zeros(2), -1, "k is -1"),
        (torch.zeros(2, 2), 1, r"pass floating-point \[n\]"),
        (torch.zeros(2, dtype=torch.int64), 1, r"pass floating-point \[n\]"),
    ],
)
def test_wrong_arguments(scores, k, message):
    with pytest.raises(PxpError, match=message):
        select(scores, k)
