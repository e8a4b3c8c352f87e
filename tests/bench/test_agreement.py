"""Agreement is measured as it is defined."""

import math

import pytest
import torch

from bench.agreement import compare, overlap, ranks, spearman


def by_counting(values):
    """A rank is one more than how many are smaller, and half of the others that are equal."""
    return [
        1 + sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2
        for value in values
    ]


def by_definition(first, second):
    """Pearson's correlation of the ranks, from sums of products."""
    a, b = by_counting(first), by_counting(second)
    mean = (len(a) + 1) / 2
    product = sum((x - mean) * (y - mean) for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum((x - mean) ** 2 for x in a) * sum((y - mean) ** 2 for y in b))


def smallest(values, k):
    return set(sorted(range(len(values)), key=lambda i: (values[i], i))[:k])


def pairs():
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(97, generator=generator, dtype=torch.float64)
    noisy = first + 0.3 * torch.randn(97, generator=generator, dtype=torch.float64)
    tied = first.mul(2).round()
    return {
        "noise": (first, noisy),
        "ties": (tied, noisy.mul(2).round()),
        "ties in one": (first, tied),
        "unrelated": (first, torch.randn(97, generator=generator, dtype=torch.float64)),
        "zeros": (first.relu(), noisy.relu()),
    }


@pytest.mark.parametrize("name", pairs())
def test_spearman_and_overlap_are_their_definitions(name):
    first, second = pairs()[name]
    assert ranks(first).tolist() == by_counting(first.tolist())
    assert spearman(first, second) == pytest.approx(by_definition(first.tolist(), second.tolist()), abs=1e-12)
    for fraction in (0.1, 0.3, 0.5, 1.0):
        k = int(97 * fraction)
        common = smallest(first.tolist(), k) & smallest(second.tolist(), k)
        assert overlap(first, second, fraction) == len(common) / k


def test_order_alone_counts():
    first = torch.tensor([3.0, 1.0, 2.0, 5.0, 4.0], dtype=torch.float64)
    assert spearman(first, first.exp()) == pytest.approx(1)
    assert spearman(first, -first) == pytest.approx(-1)
    found = compare(first.repeat(4) + torch.arange(20), first.repeat(4) + torch.arange(20))
    assert found["spearman"] == pytest.approx(1) and set(found["overlap"].values()) == {1.0}
    assert overlap(first, -first, 0.4) == 0
    assert overlap(first, torch.tensor([3.0, 1.0, 9.0, 2.0, 4.0]), 0.4) == 0.5


def test_a_fraction_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="0.1 of 5 values"):
        overlap(torch.arange(5.0), torch.arange(5.0), 0.1)
