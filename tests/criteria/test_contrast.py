"""Keeping some classes and forgetting others, by hand sums over the scores of single images."""

import pytest
import torch
from criteria_networks import batch, cnn

import pxp_fast as pxp
from pxp_fast import ops
from pxp_fast.errors import ScoresError


@pytest.fixture(scope="module")
def scored():
    """Scores per class by Taylor, and the four numbers of every unit for every image on its own."""
    model, (images, _) = cnn(), batch(9)
    labels = torch.tensor([0, 1, 3, 0, 1, 1, 3, 0, 0])  # none of class 2
    scores = pxp.score(
        model, [(images[:4], labels[:4]), (images[4:], labels[4:])], criterion="taylor", per_class=True, data={"a": 1}
    )
    alone = [pxp.score(model, [(i[None], n[None])], criterion="taylor") for i, n in zip(images, labels, strict=True)]
    return scores, torch.stack([one.totals for one in alone]), labels


def mean(singles, labels, classes):
    return sum(singles[labels == label].sum(0) for label in classes) / sum(
        int((labels == label).sum()) for label in classes
    )


@pytest.mark.parametrize(
    ("keep", "forget", "kept"),
    [([0, 3], [1], [0, 3]), ([1], [3, 0], [1]), (None, [1], [0, 3]), (None, [0, 1], [3])],
)
def test_contrast_is_the_mean_of_the_kept_less_that_of_the_forgotten(scored, keep, forget, kept):
    scores, singles, labels = scored
    found = scores.contrast(keep, forget)
    truth = mean(singles, labels, kept) - mean(singles, labels, forget)
    signed = [ops.SIGNED, ops.SAMPLE_ABSOLUTE, ops.TOKEN_ABSOLUTE]
    torch.testing.assert_close((found.totals / found.samples)[signed], truth[signed], rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(found.values(magnitude=False), truth[ops.SIGNED], rtol=1e-10, atol=1e-15)
    torch.testing.assert_close(found.values(absolute="token"), truth[ops.TOKEN_ABSOLUTE], rtol=1e-10, atol=1e-15)
    counts = {label: int((labels == label).sum()) for label in range(4)}
    total, n_kept, n_forgotten = (sum(counts[label] for label in c) for c in (kept + forget, kept, forget))
    squares = [
        single[ops.SIGNED].square() * (total / (n_kept if label in kept else n_forgotten)) ** 2
        for single, label in zip(singles, labels.tolist(), strict=True)
        if label in kept + forget
    ]
    torch.testing.assert_close(found.totals[ops.SQUARED], sum(squares), rtol=1e-10, atol=1e-18)
    assert found.samples == total and found.class_totals is None and found.units == scores.units
    assert found.header.data == {"a": 1, "contrast": {"keep": kept, "forget": sorted(forget)}}
    assert scores.header.data == {"a": 1}


def test_keeping_alone_is_scoring_those_classes_alone(scored):
    scores, singles, labels = scored
    found, plain = scores.contrast(keep=[3, 1]), scores.for_classes([1, 3])
    assert torch.equal(found.totals, plain.totals) and found.header == plain.header
    torch.testing.assert_close(found.totals / found.samples, mean(singles, labels, [1, 3]), rtol=1e-10, atol=1e-15)


def test_what_is_forgotten_goes_first():
    """A unit that only class 1 makes use of and one that only class 0 does: who forgets 1 loses the former."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1, bias=False), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1))
    model.append(torch.nn.Flatten()).append(torch.nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2, 3).view(2, 3, 1, 1))
        model[4].weight.copy_(torch.eye(2))
    images, labels = torch.rand(6, 3, 4, 4), torch.tensor([0, 1, 0, 1, 0, 1])
    scores = pxp.score(model, [(images, labels)], per_class=True)
    for keep, forget, removed in (([0], [1], 1), (None, [0], 0), ([1], None, 0)):
        assert pxp.plan(scores.contrast(keep, forget), 0.5).groups[0].removed == (removed,)


@pytest.mark.parametrize(
    ("keep", "forget", "complaint"),
    [
        (None, None, "neither classes to keep nor classes to forget are given"),
        ([0, 1], [1], r"classes \[1\] are both to be kept and to be forgotten"),
        ([0], [2], r"of classes \[2\]; choose from the 3 classes that have images: 0, 1, 3"),
        ([7], [1], r"of classes \[7\]; choose from the 3"),
        ([0], [], "of no classes; choose"),
        (None, [0, 1, 3], r"classes \[0, 1, 3\] are all that have images, so none is left to be kept"),
        (["cat"], [1], "pass whole numbers"),
    ],
)
def test_classes_that_cannot_be_contrasted_are_refused(scored, keep, forget, complaint):
    with pytest.raises(ScoresError, match=complaint):
        scored[0].contrast(keep, forget)


@pytest.mark.parametrize(("keep", "forget"), [([0, 3], [1]), (None, [0, 1]), ([1, 3], None)])
def test_classes_are_told_apart_by_the_scores_of_images_as_well(keep, forget):
    images, labels = batch(9)
    apart, single, both = (
        pxp.score(cnn(), [(images, labels % 2 * 3)] + [(images[:4], torch.tensor([1, 1, 0, 3]))], **kept)
        for kept in ({"per_class": True}, {"per_sample": True}, {"per_class": True, "per_sample": True})
    )
    truth = apart.contrast(keep, forget)
    for found in (single.contrast(keep, forget), both.contrast(keep, forget)):
        torch.testing.assert_close(found.totals, truth.totals, rtol=1e-12, atol=1e-15)
        assert found.header == truth.header


@pytest.mark.parametrize("kept", [{"per_class": True}, {"per_sample": True}])
def test_classes_of_a_sliced_task_go_by_the_labels_of_the_whole_network(kept):
    """A network sliced to the classes 7, 2, 5 and 9 has the labels 0, 1, 2, 3."""
    images, labels = batch(9)
    data = [(images, torch.tensor([0, 1, 2, 0, 1, 1, 2, 0, 0]))]
    plain = pxp.score(cnn(), data, **kept)
    task = {"task": pxp.Task((7, 2, 5, 9)).describe()}
    sliced = pxp.score(cnn(), data, data=task, **kept)
    assert torch.equal(sliced.for_classes([5, 7]).totals, plain.for_classes([2, 0]).totals)
    assert sliced.for_classes([5, 7]).header.data == task | {"for_classes": [5, 7]}
    found = sliced.contrast([2], [7])
    assert torch.equal(found.totals, plain.contrast([1], [0]).totals)
    assert found.header.data == task | {"contrast": {"keep": [2], "forget": [7]}}
    with pytest.raises(ScoresError, match=r"classes \[0\]; choose from the 3 classes that have images: 2, 5, 7"):
        sliced.for_classes([0])
    zeroed = pxp.score(cnn(), data, data={"task": pxp.Task((0, 1, 2), "zero").describe()}, **kept)
    assert torch.equal(zeroed.for_classes([2, 0]).totals, plain.for_classes([2, 0]).totals)
    short = pxp.score(cnn(), data, data={"task": pxp.Task((4, 5)).describe()}, **kept)
    with pytest.raises(ScoresError, match=r"task of classes \[4, 5\], but tell [34] apart"):
        short.for_classes([4])


def test_without_totals_per_class_nothing_can_be_contrasted():
    with pytest.raises(ScoresError, match="per_class=True"):
        pxp.score(cnn(), [batch()]).contrast([0], [1])
