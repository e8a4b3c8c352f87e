"""`accumulate_` against its definition, and its independence of batches and threads."""

import math

import pytest
import torch
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import SAMPLE_ABSOLUTE, SIGNED, SQUARED, TOKEN_ABSOLUTE, accumulate_
from pxp_fast.ops.accumulate import reference

OPERATOR = torch.ops.pxp_fast.accumulate_.default


def sums_of(samples, units, dtype=torch.float32, device="cpu"):
    signed = torch.randn(samples, units, generator=torch.Generator().manual_seed(samples), dtype=torch.float64)
    return torch.stack([signed, signed.abs() * 1.5]).to(device, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (33, 300), (3, 5000)])
def test_definition(shape, dtype, device):
    start = torch.rand(4, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    sums = sums_of(*shape, dtype, device)
    totals = start.clone().to(device)
    accumulate_(totals, sums)
    for unit in range(0, shape[1], 7):
        signed, absolute = sums[:, :, unit].double().cpu().tolist()
        expected = {
            SIGNED: math.fsum(signed),
            SAMPLE_ABSOLUTE: math.fsum(abs(s) for s in signed),
            TOKEN_ABSOLUTE: math.fsum(absolute),
            SQUARED: math.fsum(s * s for s in signed),
        }
        for row, value in expected.items():
            assert totals[row, unit].item() == pytest.approx(start[row, unit].item() + value, rel=1e-13, abs=1e-13)


def test_batches_do_not_change_a_bit(device):
    sums = sums_of(24, 130, device=device)
    results = []
    for size in (1, 5, 8, 24):
        totals = torch.zeros(4, 130, dtype=torch.float64, device=device)
        for batch in sums.split(size, dim=1):
            accumulate_(totals, batch)
        results.append(totals)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_equals_the_reference_to_the_last_bit(threads, device):
    sums = sums_of(24, 40_000, device=device)
    expected = torch.zeros(4, 40_000, dtype=torch.float64, device=device)
    reference(expected, sums)
    for count in (1, 3):
        threads(count)
        totals = torch.zeros(4, 40_000, dtype=torch.float64, device=device)
        accumulate_(totals, sums)
        assert torch.equal(totals, expected)


def test_strides(device):
    sums = sums_of(6, 20, device=device)
    totals, expected = (torch.zeros(4, 10, dtype=torch.float64, device=device) for _ in range(2))
    accumulate_(totals, sums[:, ::2, ::2])
    reference(expected, sums[:, ::2, ::2].contiguous())
    assert torch.equal(totals, expected)


@pytest.mark.parametrize(("samples", "units"), [(0, 3), (3, 0)])
def test_empty(samples, units, device):
    totals = torch.ones(4, units, dtype=torch.float64, device=device)
    accumulate_(totals, torch.zeros(2, samples, units, device=device))
    assert (totals == 1).all()


def test_nan_stays_in_its_unit(device):
    sums = sums_of(3, 4, device=device)
    sums[0, 1, 2] = math.nan
    totals = torch.zeros(4, 4, dtype=torch.float64, device=device)
    accumulate_(totals, sums)
    assert totals[SIGNED].isnan().tolist() == [False, False, True, False]
    assert totals[TOKEN_ABSOLUTE].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, device):
    totals = torch.zeros(4, 5, dtype=torch.float64, device=device)
    opcheck(OPERATOR, (totals, sums_of(3, 5, dtype, device)))
    opcheck(OPERATOR, (totals, sums_of(3, 10, dtype, device)[..., ::2]))
    opcheck(OPERATOR, (totals, sums_of(0, 5, dtype, device)))


@pytest.mark.parametrize(
    ("totals", "sums", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(2, 1, 3), "totals"),
        (torch.zeros(3, 4).double().T, torch.zeros(2, 1, 3), "totals"),
        (torch.zeros(4, 3).double(), torch.zeros(2, 1, 4), "sums"),
        (torch.zeros(4, 3).double(), torch.zeros(2, 1, 3).half(), "sums"),
        (torch.zeros(4, 3).double(), torch.zeros(3, 1, 3), "sums"),
    ],
)
def test_wrong_arguments(totals, sums, message):
    with pytest.raises(PxpError, match=message):
        accumulate_(totals, sums)
