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


def test_each_class_gets_its_own_samples(device):
    """Against the totals of each class's samples alone, to the last bit and however they come in batches."""
    sums, labels = sums_of(24, 130, device=device), torch.randint(0, 4, (24,)).to(device)
    labels[labels == 2] = 0  # a class without samples
    for size in (1, 5, 24):
        totals = torch.zeros(4, 4, 130, dtype=torch.float64, device=device)
        for batch, of in zip(sums.split(size, dim=1), labels.split(size), strict=True):
            accumulate_(totals, batch, of)
        for label in range(4):
            alone = torch.zeros(4, 130, dtype=torch.float64, device=device)
            accumulate_(alone, sums[:, labels == label])
            assert torch.equal(totals[label], alone)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_negative_label_leaves_a_sample_out(per_class, dtype, device):
    sums, labels = sums_of(9, 300, dtype, device), torch.tensor([1, -1, 0, 1, -7, -(2**63), 2, 0, -1], device=device)
    kept = labels >= 0
    shape = (3, 4, 300) if per_class else (4, 300)
    expected, totals = (torch.zeros(shape, dtype=torch.float64, device=device) for _ in range(2))
    accumulate_(expected, sums[:, kept], labels[kept] if per_class else None)
    sums[:, ~kept] = math.nan
    accumulate_(totals, sums, labels)
    assert torch.equal(totals, expected)


def test_labels_equal_the_reference_to_the_last_bit(threads):
    sums, labels = sums_of(24, 40_000), torch.randint(-1, 3, (24,))
    for count in (1, 3):
        threads(count)
        for shape in ((3, 4, 40_000), (4, 40_000)):
            totals, expected = (torch.zeros(shape, dtype=torch.float64) for _ in range(2))
            accumulate_(totals, sums, labels)
            reference(expected, sums, labels)
            assert torch.equal(totals, expected)


def test_every_other_label(device):
    sums, labels = sums_of(3, 10, device=device), torch.tensor([1, 9, 0, 9, -1, 9], device=device)
    totals, expected = (torch.zeros(2, 4, 10, dtype=torch.float64, device=device) for _ in range(2))
    accumulate_(totals, sums, labels[::2])
    reference(expected, sums, labels[::2].contiguous())
    assert torch.equal(totals, expected)


def test_places_beyond_32_bits(far_totals):
    totals, label, rows = far_totals
    sums = sums_of(3, totals.shape[2])
    accumulate_(totals, sums, torch.tensor([label, -1, label]))
    expected = torch.zeros(4, totals.shape[2], dtype=torch.float64)
    reference(expected, sums[:, ::2])
    assert torch.equal(rows, expected)


def test_meta_tensors_of_any_size():
    totals = torch.empty(2**20, 4, 2**20, dtype=torch.float64, device="meta")
    accumulate_(totals, torch.empty(2, 3, 2**20, device="meta"), torch.empty(3, dtype=torch.int64, device="meta"))
    with pytest.raises(PxpError, match="labels"):
        accumulate_(totals, torch.empty(2, 3, 2**20, device="meta"))


def test_direct_calls_leave_out_what_is_no_class(device):
    """The operator itself, without the check of the Python function, never writes elsewhere."""
    sums, labels = sums_of(3, 10, device=device), torch.tensor([1, 2, 2**40], device=device)
    totals, expected = (torch.zeros(2, 4, 10, dtype=torch.float64, device=device) for _ in range(2))
    OPERATOR(totals, sums, labels)
    accumulate_(expected, sums[:, :1], labels[:1])
    assert torch.equal(totals, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype, device):
    totals = torch.zeros(4, 5, dtype=torch.float64, device=device)
    labels = torch.tensor([1, -1, 0], device=device)
    opcheck(OPERATOR, (totals, sums_of(3, 5, dtype, device), None))
    opcheck(OPERATOR, (totals, sums_of(3, 10, dtype, device)[..., ::2], labels))
    opcheck(OPERATOR, (totals, sums_of(0, 5, dtype, device), None))
    opcheck(OPERATOR, (torch.stack([totals, totals]), sums_of(3, 5, dtype, device), labels))


@pytest.mark.parametrize(
    ("totals", "sums", "labels", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(2, 1, 3), None, "totals"),
        (torch.zeros(3, 4).double().T, torch.zeros(2, 1, 3), None, "totals"),
        (torch.zeros(2, 3, 3).double(), torch.zeros(2, 1, 3), torch.tensor([0]), "totals"),
        (torch.zeros(4).double(), torch.zeros(2, 1, 3), None, "totals"),
        (torch.zeros(4, 3).double(), torch.zeros(2, 1, 4), None, "sums"),
        (torch.zeros(4, 3).double(), torch.zeros(2, 1, 3).half(), None, "sums"),
        (torch.zeros(4, 3).double(), torch.zeros(3, 1, 3), None, "sums"),
        (torch.zeros(2, 4, 3).double(), torch.zeros(2, 1, 3), None, "need labels"),
        (torch.zeros(2, 4, 3).double(), torch.zeros(2, 1, 3), torch.tensor([0, 1]), r"int64 \[1\]"),
        (torch.zeros(4, 3).double(), torch.zeros(2, 1, 3), torch.tensor([0.0]), "labels is torch.float32"),
        (torch.zeros(2, 4, 3).double(), torch.zeros(2, 1, 3), torch.tensor([2]), "a label is 2"),
    ],
)
def test_wrong_arguments(totals, sums, labels, message):
    with pytest.raises(PxpError, match=message):
        accumulate_(totals, sums, labels)
