"""Many tasks at once, beside pruning for each by hand."""

import json
import statistics

import pytest
import torch
from torch import nn

import pxp_fast as pxp
from pxp_fast.errors import PxpError

CLASSES = 5


@pytest.fixture(scope="module")
def network():
    """A network of random weights, whose every unit matters a little."""
    torch.manual_seed(4)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, 2), nn.ReLU(), nn.Conv2d(12, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, CLASSES, bias=False),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def parts(network):
    """Images that score and images that judge, labelled by the logit that is highest beside its mean."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for count in (40, 60):
        pixels = torch.randn(2, count, 3, 12, 12, generator=generator)
        with torch.no_grad():
            labels = [(network(batch) - network(batch).mean(0)).argmax(1) for batch in pixels]
        found.append(list(zip(pixels, labels, strict=True)))
    return found


def right(network, plan, classes, batches):
    """Images right among some classes, by zeroing parameters in a copy and looking at these classes' logits."""
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for group in plan.groups:
        for piece in group.slices:
            state[piece.parameter].index_fill_(piece.dim, torch.tensor(group.removed, dtype=torch.int64), 0)
    correct = total = 0
    for images, labels in batches:
        with torch.no_grad():
            logits = torch.func.functional_call(network, state, (images,))
        predicted = torch.tensor(classes)[logits[:, list(classes)].argmax(1)]
        own = torch.isin(labels, torch.tensor(classes))
        correct, total = correct + int((predicted == labels)[own].sum()), total + int(own.sum())
    return correct / total


def own(batches, task):
    """The images of a task's classes."""
    chosen = [torch.isin(labels, torch.tensor(task.classes)) for _, labels in batches]
    return [(images[here], labels[here]) for (images, labels), here in zip(batches, chosen, strict=True)]


def test_each_task_is_what_pruning_for_it_by_hand_gives(network, parts):
    reference, judging = parts
    tasks = [pxp.random_task(CLASSES, 3, seed) for seed in range(4)]
    rates = (0.0, 0.2, 0.5)
    study = pxp.over_tasks(network, tasks, reference, judging, rates=rates, scoring={"initial": "one"})
    a_prs, tops, whole = [], [], []
    for task, curve in zip(tasks, study.curves, strict=True):
        scores = pxp.score(network, own(reference, task), initial="one")  # at one logit, whatever the others are
        found = [right(network, pxp.plan(scores, rate), task.classes, judging) for rate in rates]
        assert list(curve.accuracies) == pytest.approx(found)
        a_prs.append(statistics.fmean(found))
        tops.append(max(rate for rate, accuracy in zip(rates, found, strict=True) if accuracy >= 0.95 * found[0]))
        whole.append(found[0])
    for values, estimate in ((a_prs, study.a_pr), (tops, study.top_pr), (whole, study.unpruned)):
        assert estimate == pytest.approx((statistics.fmean(values), statistics.stdev(values) / 2))
    assert len(set(a_prs)) > 1
    assert study.describe()["a_pr"]["mean"] == study.a_pr.mean


def test_options_reach_scoring_and_planning(network, parts, tmp_path):
    tasks = [pxp.random_task(CLASSES, 2, 0)] * 2
    common = {"rates": (0.0, 0.4), "planning": {"order": "random"}}
    study = pxp.over_tasks(network, tasks, *parts, **common)
    scores = pxp.score(network, own(parts[0], tasks[0]))
    for seed, curve in enumerate(study.curves):
        plan = pxp.plan(scores, 0.4, order="random", seed=seed)
        assert curve.accuracies[1] == pytest.approx(right(network, plan, tasks[0].classes, parts[1]))
    by_magnitude = pxp.over_tasks(network, tasks[:1], *parts, rates=(0.4,), scoring={"criterion": "magnitude"})
    plan = pxp.plan(pxp.score(network, parts[0], criterion="magnitude"), 0.4)
    assert by_magnitude.a_pr.mean == pytest.approx(right(network, plan, tasks[0].classes, parts[1]))
    assert by_magnitude.a_pr.error is None and str(by_magnitude.a_pr) == f"{by_magnitude.a_pr.mean:.4f}"
    study.save(tmp_path / "tasks.json")
    assert json.loads((tmp_path / "tasks.json").read_text()) == study.describe()


def test_units_are_scored_in_the_restricted_network(network, parts):
    """Bounded initial relevance looks at all logits that there are."""
    task = pxp.Task((0, 3))
    study = pxp.over_tasks(network, [task], *parts, rates=(0.3, 0.6))
    images = [(x, (y == 3).long()) for x, y in own(parts[0], task)]
    scores = pxp.score(task.slice(network, parts[0][0][0]), images)
    found = [right(network, pxp.plan(scores, rate), task.classes, parts[1]) for rate in (0.3, 0.6)]
    assert list(study.curves[0].accuracies) == pytest.approx(found)


def test_studies_of_nothing_are_refused(network, parts):
    with pytest.raises(PxpError, match="of no tasks"):
        pxp.over_tasks(network, [], *parts)
    with pytest.raises(PxpError, match="no images to judge by"):
        pxp.over_tasks(network, [pxp.Task((0, 1))], parts[0], [])
    with pytest.raises(PxpError, match="images that score come from an iterator"):
        pxp.over_tasks(network, [pxp.Task((0, 1))], iter(parts[0]), parts[1])
