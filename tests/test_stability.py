"""Stability and stopping early: on tables written down, against brute force and scipy."""

import itertools
import statistics
import xml.etree.ElementTree

import pytest
import scipy.stats
import torch
from test_step import batches, cnn

import pxp_fast as pxp
from pxp_fast.data import demo_images
from pxp_fast.errors import PxpError, ScoresError
from pxp_fast.loader import Loader
from pxp_fast.models import load
from pxp_fast.plan import removed_units
from pxp_fast.scores import ScoresHeader
from pxp_fast.selection import interleaved
from pxp_fast.stability import kendall_tau, overlap
from pxp_fast.stopping import StabilityWarning, Watch, in_words

F, N = torch.arange(12), torch.arange(12, 32)
GROUPS = (pxp.UnitGroup("a", "filter", 12, ()), pxp.UnitGroup("b", "neuron", 20, ()))


def synthetic(per_class=8, classes=3, noise=0.5, seed=0):
    """Scores of 32 units whose sums are written down: a value for each unit, and noise for each image."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(classes).repeat(per_class)
    table = torch.rand(1, 2, 32, generator=generator) + noise * torch.rand(len(labels), 2, 32, generator=generator)
    header = ScoresHeader(
        model="m", composite={}, samples=len(labels), dtype="float32", device="cpu", versions={}, units=GROUPS
    )
    signed, absolute = table.double().unbind(1)
    totals = torch.stack([signed, signed.abs(), absolute, signed.square()]).sum(1)
    return pxp.Scores(header, totals, sample_table=table, sample_labels=labels)


def brute_tau(first, second):
    """Kendall's tau-b by its definition over all pairs."""
    signs = [
        (int((a - b).sign()), int((c - d).sign()))
        for (a, c), (b, d) in itertools.combinations(zip(first, second, strict=True), 2)
    ]
    agreed = sum(x * y for x, y in signs)
    return agreed / (sum(x != 0 for x, _ in signs) * sum(y != 0 for _, y in signs)) ** 0.5


def test_kendalls_tau_is_its_definition_ties_included():
    generator = torch.Generator().manual_seed(0)
    for top in (3, 1000):
        first, second = torch.randint(0, top, (2, 25), generator=generator).double()
        assert kendall_tau(first, second) == pytest.approx(brute_tau(first, second), abs=1e-12)
    assert kendall_tau(first, first) == pytest.approx(1) and kendall_tau(first, -first) == pytest.approx(-1)
    assert kendall_tau(first, torch.zeros(25)) == 0


def test_overlap_counts_units_removed_by_both():
    first, second = torch.tensor([1, 1, 0, 0, 1, 0]).bool(), torch.tensor([1, 0, 0, 1, 1, 0]).bool()
    assert overlap(first, second) == pytest.approx(2 / 3)
    assert overlap(first, ~first) == 0 and overlap(first, first) == 1


def removed(values, rate):
    """The units that go, of filters and of neurons apart, by sorting in Python."""
    gone = set()
    for start, stop in ((0, 12), (12, 32)):
        ranked = sorted(range(start, stop), key=lambda unit: (float(values[unit]), unit))
        gone |= set(ranked[: int((stop - start) * rate)])
    return gone


def test_stability_is_what_scoring_the_subsets_says():
    scores = synthetic()
    found = pxp.stability(scores, 0.3, [1, 3, 8], seeds=[4, 9])
    assert (found.sizes, found.images, found.full) == ((1, 3, 8), (3, 9, 24), 24)
    # Sets are drawn here as the docstring says: balanced, with replacement, and growing from one size to the next.
    for column, seed in enumerate((4, 9)):
        generator = torch.Generator().manual_seed(seed)
        places = (torch.arange(c, 24, 3) for c in range(3))
        orders = [own[torch.randint(8, (8,), generator=generator)] for own in places]
        for row, size in enumerate(found.sizes):
            index = torch.cat([own[:size] for own in orders])
            assert scores.sample_labels[index].bincount().tolist() == [size] * 3
            part = scores.sample_table[index].double()
            values = torch.cat([part[:, 0, :12].abs().mean(0), part[:, 1, 12:].mean(0)])
            whole = scores.values()
            both = removed(values, 0.3) & removed(whole, 0.3)
            assert found.overlaps[row, column] == pytest.approx(len(both) / 9)
            taus = [scipy.stats.kendalltau(values[s], whole[s]).statistic for s in (slice(0, 12), slice(12, 32))]
            assert found.taus[row, column] == pytest.approx((12 * taus[0] + 20 * taus[1]) / 32)
    assert found.overlap[0] == (found.overlaps[0].mean().item(), None, None)  # two sets make no interval


def test_an_interval_is_where_95_percent_of_the_bootstrapped_sets_lie():
    found = pxp.stability(synthetic(), 0.3, [2, 8], seeds=41)
    for own, values in ((found.overlap, found.overlaps), (found.tau, found.taus)):
        for (mean, low, high), drawn in zip(own, values.tolist(), strict=True):
            drawn.sort()  # the 2.5 % quantile of 41 numbers is the second
            assert (mean, low, high) == pytest.approx((sum(drawn) / 41, drawn[1], drawn[39]))
            assert low < mean < high
    assert found.tau[1].high < 1 and found.tau[0].mean < found.tau[1].mean  # as many images as all are not all images


def test_a_bootstrapped_set_tells_how_far_another_set_of_images_lies_off():
    """Agreement with the plan of images of which a pool was drawn, beside what the pool itself says."""
    world = synthetic(per_class=400, noise=3.0, seed=3)
    truth, taus, said = world.values(), [], []
    for draw in range(12):
        index = torch.cat([torch.arange(c, 1200, 3)[20 * draw : 20 * draw + 20] for c in range(3)])
        pool = world.for_samples(index)
        taus.append(sum(len(s) * kendall_tau(truth[s], pool.values()[s]) for s in (F, N)) / 32)
        said.append(pxp.stability(pool, 0.3, [20], seeds=40).tau[0].mean)
    assert statistics.fmean(said) == pytest.approx(statistics.fmean(taus), abs=0.04)


def test_stability_takes_the_options_of_a_plan():
    scores = synthetic()
    filters = pxp.stability(scores, 0.5, [2], seeds=1, units=["filter"])
    together = pxp.stability(scores, 0.5, [2], seeds=1, scope="global", absolute="sample")
    generator = torch.Generator().manual_seed(0)
    drawn = [torch.arange(c, 24, 3)[torch.randint(8, (8,), generator=generator)][:2] for c in range(3)]
    part = scores.for_samples(torch.cat(drawn))
    expected = scipy.stats.kendalltau(part.values()[:12], scores.values()[:12]).statistic
    assert filters.taus.item() == pytest.approx(expected)
    expected = scipy.stats.kendalltau(part.values(absolute="sample"), scores.values(absolute="sample")).statistic
    assert together.taus.item() == pytest.approx(expected)


def test_sizes_go_as_far_as_the_smallest_class():
    scores = synthetic(per_class=12).for_samples(range(34))  # 12, 11 and 11 images
    assert pxp.stability(scores, 0.3, seeds=1).sizes == (1, 2, 5, 10, 11)
    with pytest.raises(PxpError, match=r"\[12\] images per class .* 11 or more"):
        pxp.stability(scores, 0.3, [12])
    with pytest.raises(PxpError, match="none of the 32 units"):
        pxp.stability(scores, 0.01)
    with pytest.raises(PxpError, match="no sets of images"):
        pxp.stability(scores, 0.3, seeds=0)
    with pytest.raises(ScoresError, match="per_sample=True"):
        pxp.stability(pxp.Scores(scores.header, scores.totals))


def test_the_figure_is_a_file_with_its_numbers_in_words(tmp_path):
    found = pxp.stability(synthetic(), 0.3, seeds=3)
    found.save_figure(tmp_path / "stability.svg")
    root = xml.etree.ElementTree.parse(tmp_path / "stability.svg").getroot()
    words = " ".join(root.itertext())
    for expected in ("images per class", "Kendall's tau", "agreement with all 24 images (%)", "--accent: #"):
        assert expected in words
    assert found.describe()["sizes"][0]["overlap"]["mean"] == pytest.approx(float(found.overlaps[0].mean()))


def test_every_beginning_of_a_balanced_order_has_all_classes_alike():
    labels = [2] * 5 + [7] * 3 + [0] * 5
    order = pxp.balanced_order(labels, seed=3)
    assert sorted(order) == list(range(13)) and order == pxp.balanced_order(labels, seed=3)
    for turn in range(3):
        assert sorted(labels[i] for i in order[3 * turn : 3 * turn + 3]) == [0, 2, 7]
    assert sorted(labels[i] for i in order[9:]) == [0, 0, 2, 2]
    assert order != pxp.balanced_order(labels, seed=4)
    assert (
        len({tuple(labels[i] for i in order[:3]) for order in (pxp.balanced_order(labels, s) for s in range(30))}) > 3
    )


def watched(values_after, wanted, size=10):
    """A watch that has seen totals whose values after each batch of `size` images are given."""
    watch = Watch(wanted, GROUPS[:1])
    taken = []
    for position in watch.while_unstable(range(len(values_after))):
        taken.append(position)
        watch.look(values_after[position].double().expand(4, 12).clone(), size * (position + 1))
    return watch, len(taken)


def test_stopping_waits_for_the_plan_of_half_the_images_to_be_that_of_all():
    ranking, other = torch.arange(12.0), torch.arange(12.0).flip(0)
    # Batches 1 to 3 say something else than all later ones; half of 8 batches is 4.
    values = [other] * 3 + [ranking] * 17
    wanted = pxp.UntilStable(rates=(0.25,), checks=3)
    watch, taken = watched(values, wanted)
    # 2 and 3 agree with 1, before the plan changes; 4 to 7 have a half of other mind; 8, 9 and 10 agree.
    assert watch.history == [(20, 1), (30, 1), (40, 0), (50, 0), (60, 0), (70, 0), (80, 1), (90, 1), (100, 1)]
    assert taken == 10 and watch.stable
    assert watch.describe(100)["images"] == 100
    assert watched(values, pxp.UntilStable(rates=(0.25,), checks=2))[1] == 3
    watch, taken = watched(values, pxp.UntilStable(rates=(0.25,), checks=2, every=4))
    assert watch.history == [(80, 1), (120, 1)] and taken == 12
    watch, taken = watched(values[:9], wanted)
    assert taken == 9 and not watch.stable


def test_every_rate_and_the_threshold_count():
    half = torch.arange(12.0)
    swapped = half.clone()
    swapped[[2, 3]] = half[[3, 2]]  # the plans for 3 of 12 share two units, those for 4 all
    values = [half] + [swapped] * 9
    for rates, threshold, expected in (
        ((4 / 12,), 1.0, [1]), ((3 / 12,), 1.0, [2 / 3]), ((3 / 12, 4 / 12), 0.6, [2 / 3]),
    ):  # fmt: skip
        watch, _ = watched(values[:2], pxp.UntilStable(rates=rates, overlap=threshold, checks=1))
        assert [agreed for _, agreed in watch.history] == pytest.approx(expected)
        assert watch.stable == (expected[0] >= threshold)


def test_scoring_that_stops_has_the_scores_of_the_images_it_took():
    model, data = cnn(), batches(*[2] * 20)
    wanted = pxp.UntilStable(rates=(0.3,), overlap=0.6, checks=2)
    scores = pxp.score(model, data, until_stable=wanted, per_sample=True)
    record = scores.header.until_stable
    assert record["stable"] and record["images"] == scores.samples < 40
    assert record["rates"] == [0.3]
    taken = scores.samples // 2
    plain = pxp.score(model, data[:taken])
    assert torch.equal(scores.totals, plain.totals) and len(scores.sample_labels) == scores.samples
    # The history, a second time, from scores of every beginning.
    for images, agreed in record["history"]:
        now, half = (pxp.score(model, data[:count]) for count in (images // 2, images // 4))
        plans = [torch.cat([~g.kept() for g in pxp.plan(part, 0.3).groups]) for part in (now, half)]
        assert agreed == pytest.approx(overlap(*plans))
    again = pxp.score(model, iter(data), until_stable=wanted)
    assert torch.equal(again.totals, scores.totals) and again.header == scores.header
    whole = pxp.score(model, data[:3], until_stable=pxp.UntilStable(checks=9))
    assert not whole.header.until_stable["stable"] and whole.samples == 6


def demonstration(name, per_class):
    """A demo network, and its reference images in balanced order."""
    loaded = load(f"demo:{name}")
    images = demo_images("reference", model=loaded, samples_per_class=per_class)
    return loaded.model, Loader(interleaved(images, seed=0), batch_size=16)


@pytest.mark.parametrize("name", ["vgg", "resnet", "vit"])
def test_the_plan_at_which_scoring_stops_is_that_of_all_images(name):
    model, loader = demonstration(name, 50)
    full = pxp.score(model, loader, initial="bounded")
    wanted = pxp.UntilStable(rates=(0.3, 0.5))
    found = pxp.score(model, loader, initial="bounded", until_stable=wanted)
    record = found.header.until_stable
    assert record["stable"] and found.samples < full.samples == 500
    for rate in wanted.rates:
        assert overlap(removed_units(found, rate), removed_units(full, rate)) >= wanted.overlap - 0.02
    assert "of the relevance" not in in_words(record, 500)


def test_an_image_that_outweighs_the_others_is_named_with_its_share():
    model, loader = demonstration("resnet", 20)
    for per_sample in (True, False):
        with pytest.warns(StabilityWarning, match="one image carries"):
            scores = pxp.score(
                model, loader, initial="one", until_stable=pxp.UntilStable(overlap=1.0), per_sample=per_sample
            )
        if per_sample:
            relevance = scores.sample_table[:, 1].double().sum(1)
            share = float(relevance.max() / relevance.sum())
            assert share > 5 / scores.samples
        record = scores.header.until_stable
        assert record["largest_share"] == pytest.approx(share)
        times = f"{share * scores.samples:.0f} times its part"
        assert f"one image carries {share:.1%} of the relevance, {times}" in in_words(record, 200)


def test_images_that_come_in_one_batch_are_not_called_unstable():
    scores = pxp.score(cnn(), batches(40), until_stable=pxp.UntilStable())
    record = scores.header.until_stable
    assert not record["stable"] and record["history"] == []
    words = in_words(record, 40)
    assert words.startswith("all 40 images scored, in too few batches to compare") and "not yet stable" not in words
    assert "smaller batches" in words


def test_a_rate_at_which_nothing_is_removed_is_refused():
    for rates, units in (((0.5, 0.05), GROUPS[:1]), ((0.01,), GROUPS)):
        with pytest.raises(PxpError, match=rf"at rate {rates[-1]:g} none of the {sum(g.count for g in units)} units"):
            Watch(pxp.UntilStable(rates=rates), units)
    Watch(pxp.UntilStable(rates=(0.05,)), GROUPS)  # one of twenty neurons


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rates": 0.3}, "rates are 0.3; give a tuple of fractions"),
        ({"rates": ("0.3",)}, "rates are"),
        ({"checks": 2.5}, "checks is 2.5"),
        ({"every": 1.0}, "every is 1.0"),
        ({"checks": True}, "checks is True"),
        ({"overlap": "0.9"}, "overlap is '0.9'"),
    ],
)
def test_conditions_of_another_type_are_refused(options, message):
    with pytest.raises(PxpError, match=message):
        pxp.UntilStable(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes": [1.5]}, r"sizes are \[1.5\]; give whole numbers of images per class"),
        ({"sizes": 3}, "sizes are 3; give whole numbers"),
        ({"seeds": 2.5}, "seeds are 2.5; give how many sets to draw, or their seeds"),
        ({"seeds": ["a"]}, "seeds are"),
        ({"rate": "half"}, "rate is 'half'; it is the fraction"),
    ],
)
def test_studies_of_another_type_are_refused(options, message):
    with pytest.raises(PxpError, match=message):
        pxp.stability(synthetic(), **options)


@pytest.mark.parametrize("options", [{"rates": ()}, {"rates": (0,)}, {"overlap": 0}, {"checks": 0}, {"every": 0}])
def test_impossible_conditions_are_refused(options):
    with pytest.raises(PxpError, match=next(iter(options))):
        pxp.UntilStable(**options)
