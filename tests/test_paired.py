"""Intervals and tests of paired accuracies against published values, enumeration and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pxp_fast.paired import difference_interval, mcnemar, mean_interval


# Tables of Fagerland, Lydersen and Laake, Statistical Analysis of Contingency Tables (2017), chapter 8, turned round:
# they take the second proportion from the first.
@pytest.mark.parametrize(("table", "low", "high"), [((1, 1, 7, 12), 0.026, 0.507), ((59, 6, 16, 80), 0.0046, 0.1186)])
def test_the_interval_of_a_difference_is_newcombes(table, low, high):
    assert difference_interval(*table) == pytest.approx((low, high), abs=5e-4)
    both, lost, gained, neither = table
    assert difference_interval(both, gained, lost, neither) == pytest.approx((-high, -low), abs=5e-4)


@pytest.mark.parametrize("chances", [(0.6, 0.2, 0.1, 0.1), (0.3, 0.25, 0.25, 0.2), (0.85, 0.08, 0.02, 0.05)])
def test_it_holds_the_true_difference_as_often_as_it_says(chances):
    n, truth, covered = 24, chances[2] - chances[1], 0.0
    for both in range(n + 1):
        for lost in range(n + 1 - both):
            for gained in range(n + 1 - both - lost):
                table = (both, lost, gained, n - both - lost - gained)
                low, high = difference_interval(*table)
                if low <= truth <= high:
                    covered += stats.multinomial.pmf(table, n, chances)
    assert 0.935 < covered < 0.996  # with few images and high accuracies it is known to be wide


def test_no_images_say_nothing():
    assert difference_interval(0, 0, 0, 0) == (-1, 1)
    assert mcnemar(0, 0) == 1
    assert all(map(math.isnan, mean_interval(torch.zeros(0))))


@pytest.mark.parametrize(("lost", "gained"), [(0, 1), (5, 0), (7, 1), (12, 12), (44, 11), (900, 1000), (0, 3000)])
def test_mcnemars_test_is_that_of_a_fair_coin(lost, gained):
    expected = stats.binomtest(lost, lost + gained, 0.5).pvalue
    assert mcnemar(lost, gained) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_interval_of_a_mean_is_the_bootstraps():
    values = np.random.default_rng(3).beta(5, 1, 40)
    found = mean_interval(torch.from_numpy(values))
    resampled = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(0))
    assert found == pytest.approx(tuple(resampled.confidence_interval), abs=3e-3)
    assert mean_interval(torch.tensor([0.25])) == (0.25, 0.25)
