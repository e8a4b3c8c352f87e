"""How alike heat maps are, against scipy and by counting."""

import numpy as np
import pytest
import torch
from scipy import stats

from pxp_fast.agreement import agreement, cosine, overlap, rank_correlation


@pytest.fixture
def maps():
    """Two batches of maps, with the many zeros that ReLU networks leave, related but not the same."""
    generator = torch.Generator().manual_seed(0)
    before = torch.randn(5, 9, 8, generator=generator).relu() - 0.3 * torch.rand(5, 9, 8, generator=generator).round()
    return before, before + 0.7 * torch.randn(5, 9, 8, generator=generator).relu()


def test_rank_correlation_is_spearmans_with_ties(maps):
    before, after = (one.flatten(1).double() for one in maps)
    expected = [stats.spearmanr(b, a).statistic for b, a in zip(before, after, strict=True)]
    np.testing.assert_allclose(rank_correlation(before, after), expected, atol=1e-12)


def test_cosine_by_hand(maps):
    before, after = (one.flatten(1).double() for one in maps)
    expected = [b @ a / (b @ b).sqrt() / (a @ a).sqrt() for b, a in zip(before, after, strict=True)]
    torch.testing.assert_close(cosine(before, after), torch.stack(expected))


def test_overlap_counts_the_pixels_that_both_have_among_their_largest(maps):
    before, after = (one.flatten(1).double() for one in maps)
    for b, a, found in zip(before.tolist(), after.tolist(), overlap(before, after, 0.25).tolist(), strict=True):
        best = [{i for i in sorted(range(72), key=lambda i: -row[i])[:18] if row[i] > 0} for row in (b, a)]
        assert found == pytest.approx(len(best[0] & best[1]) / max(map(len, best)))


def test_overlap_counts_nothing_that_speaks_against():
    before = torch.tensor([[3.0, 2, -1, -2], [-1.0, -1, -1, -1]])
    after = torch.tensor([[3.0, -2, 2, 1], [-1.0, -1, -1, -1]])
    assert overlap(before, after, 0.75).tolist() == pytest.approx([1 / 3, 0])


def test_the_same_maps_agree_and_opposite_ones_do_not(maps):
    before, _ = maps
    same, opposite = agreement(before, before), agreement(before, -before)
    assert [record.mean for record in same] == [1, 1, 1]
    assert [record.interval for record in same] == [(1, 1)] * 3
    assert [record.mean for record in opposite if record.measure != "overlap"] == [-1, -1]
    assert all(len(record.values) == 5 for record in same)


def test_a_map_of_zeros_agrees_with_nothing(maps):
    before, _ = maps
    assert all(record.values == (0.0,) * 5 for record in agreement(before, torch.zeros_like(before)))
    assert agreement(before[:0], before[:0]) == ()
