"""Two networks judged by the same images: how far apart their accuracies are, and how sure that is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Z = 1.959964  # of 95 %


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % confidence interval of a proportion: Wilson's score interval (JASA 22, 1927)."""
    if not total:
        return 0.0, 1.0
    n, p = total, correct / total
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_interval(both: int, lost: int, gained: int, neither: int) -> tuple[float, float]:
    """The 95 % confidence interval of the second accuracy less the first, on the same images.

    Newcombe's score interval for paired proportions (Statistics in Medicine 17, 1998, pages 2635 to 2650, method 10).

    Parameters
    ----------
    both, lost, gained, neither
        Images that both networks get right, the first alone, the second alone, and neither.
    """
    n = both + lost + gained + neither
    if not n:
        return -1.0, 1.0
    first, second = both + lost, both + gained
    margins = first * (n - first) * second * (n - second)
    product = both * neither - lost * gained
    if product > 0:
        product = max(product - n / 2, 0.0)
    correlation = product / math.sqrt(margins) if margins else 0.0
    (low1, high1), (low2, high2) = wilson(first, n), wilson(second, n)
    below1, above1 = first / n - low1, high1 - first / n
    below2, above2 = second / n - low2, high2 - second / n
    difference = (gained - lost) / n
    low = difference - math.sqrt(max(0.0, below2**2 - 2 * correlation * below2 * above1 + above1**2))
    high = difference + math.sqrt(max(0.0, above2**2 - 2 * correlation * above2 * below1 + below1**2))
    return max(-1.0, low), min(1.0, high)


def mcnemar(lost: int, gained: int) -> float:
    """The probability, were both networks equally good, of image counts at least as uneven as these.

    McNemar's test (Psychometrika 12, 1947) in its exact, two-sided form: of the images on which the two differ, each
    is lost or gained with probability 1/2.
    """
    n = lost + gained
    logs = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(lost, gained) + 1))
    return min(1.0, 2 * math.fsum(math.exp(log - n * math.log(2)) for log in logs))


def mean_interval(values: Tensor, resamples: int = 4000, seed: int = 0) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of ``[n]`` values: the bootstrap's percentiles (Efron, 1979)."""
    if not len(values):
        return math.nan, math.nan
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (resamples, len(values)), generator=generator)
    low, high = values.double()[drawn].mean(1).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return float(low), float(high)
