"""Accuracy, sweeps over rates, A_PR and Top-PR: by hand."""

import collections

import pytest
import torch
from oracles.networks import pictures, randomise
from torch import nn

import pxp_fast as pxp
from pxp_fast.errors import PxpError


class Fixed(nn.Module):
    """Logits are the image's first row."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(1, 1)

    def forward(self, x):
        return x[:, 0, 0]


def test_accuracy_counted_by_hand():
    logits = torch.tensor([[3.0, 1, 2], [0, 5, 1], [9, 1, 1], [1, 2, 0], [0, 0, 1]])
    labels = torch.tensor([0, 1, 2, 0, 2])
    images = logits[:, None, None]
    loader = [(images[:2], labels[:2]), (images[2:], labels[2:])]
    found = pxp.evaluate(Fixed(), loader)
    assert (found.correct, found.total) == (3, 5)
    assert found.accuracy == pytest.approx(0.6)
    assert found.per_class == {0: (1, 2), 1: (1, 1), 2: (1, 2)}
    assert found.class_accuracy == {0: 0.5, 1: 1, 2: 0.5}
    assert found.balanced_accuracy == pytest.approx(2 / 3)


def test_evaluation_uses_evaluation_mode_and_gives_every_flag_back():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 30), nn.BatchNorm1d(30), nn.Dropout(0.9), nn.Linear(30, 4))
    images, labels = pictures(9, 2, classes=4)
    model.eval()
    truth = (model(images).argmax(1) == labels).sum().item()
    model.train()
    model[1].eval()
    flags = [m.training for m in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert pxp.evaluate(model, [(images, labels)]).correct == truth
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(PxpError):
        pxp.evaluate(Fixed(), [])


@pytest.fixture
def task():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 20),
        nn.ReLU(),
        nn.Linear(20, 4),
    )
    images, _ = pictures(40, 8, classes=4)
    model = randomise(model, images).double()
    images = images.double()
    labels = model(images).argmax(1)
    labels[:6] = (labels[:6] + 1) % 4
    return model, images, labels


class Normalising(nn.Module):
    """Writes into the images it is given."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x.sub_(0.3).div_(0.5))


def test_a_model_that_writes_into_its_images_gets_them_anew_for_every_plan(task):
    model, images, labels = task
    plain = nn.Sequential(collections.OrderedDict(body=model))
    scores = pxp.score(plain, [(images, labels)])
    before = images.clone()
    truth = pxp.sweep(plain, scores, [((images - 0.3) / 0.5, labels)])
    found = pxp.sweep(Normalising(model), scores, [(images, labels)])
    assert found.accuracies == truth.accuracies
    assert torch.equal(images, before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_images_are_cast_to_the_models_parameters(task, dtype):
    model, images, labels = task
    expected = (model(images.to(dtype).double()).argmax(1) == labels).sum().item()
    assert pxp.evaluate(model, [(images.to(dtype), labels)]).correct == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="labels elsewhere than on the CPU need a GPU")
@pytest.mark.parametrize("place", ["cpu", "cuda"])
def test_labels_may_be_on_the_gpu(task, place):
    model, images, labels = task
    found = pxp.evaluate(model.to(place), [(images.cuda(), labels.cuda())])
    assert (found.correct, found.total) == (34, 40)


class Wrapping(nn.Module):
    def __init__(self, wrap) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(x[:, 0, 0])


@pytest.mark.parametrize(
    ("wrap", "found"),
    [
        (lambda logits: {"logits": logits}, "dict"),
        (lambda logits: (logits, logits), "tuple"),
        (lambda logits: logits[0], r"\(3,\)"),
        (lambda logits: logits[:, :, None], r"\(2, 3, 1\)"),
        (lambda logits: logits[:1], r"\(1, 3\)"),
    ],
)
def test_a_model_that_returns_no_logits_is_named(wrap, found):
    with pytest.raises(PxpError, match=f"Wrapping returned .*{found}.* for 2 images.* logits"):
        pxp.evaluate(Wrapping(wrap), [(torch.zeros(2, 1, 1, 3), torch.zeros(2, dtype=torch.int64))])


@pytest.mark.parametrize("order", ["least", "most", "random"])
def test_a_sweep_is_one_evaluation_per_rate(task, order):
    model, images, labels = task
    loader = [(images, labels)]
    scores = pxp.score(model, loader)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    curve = pxp.sweep(model, scores, loader, order=order, seed=2)
    assert tuple(curve.rates) == tuple(pxp.RATES)
    for rate, accuracy, removed in zip(curve.rates, curve.accuracies, curve.removed, strict=True):
        plan = pxp.plan(scores, rate, order=order, seed=2)
        with pxp.masked(model, plan), torch.no_grad():
            right = (model(images).argmax(1) == labels).double().mean().item()
        assert accuracy == pytest.approx(right)
        assert removed == plan.removed_count
    assert curve.accuracies[0] == pytest.approx(34 / 40)
    assert curve.a_pr == pytest.approx(sum(curve.accuracies) / 20)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_sweep_takes_the_options_of_a_plan(task):
    model, images, labels = task
    scores = pxp.score(model, [(images, labels)])
    curve = pxp.sweep(model, scores, [(images, labels)], rates=(0, 0.5), units=["filter"], scope="global")
    assert list(curve.removed) == [0, 6]


def curve_of(rates, accuracies):
    return pxp.Curve(rates=tuple(rates), accuracies=tuple(accuracies), removed=tuple(range(len(rates))))


def test_a_pr_and_top_pr_by_hand():
    curve = curve_of((0, 0.1, 0.2, 0.3), (0.8, 0.8, 0.77, 0.4))
    assert curve.a_pr == pytest.approx((0.8 + 0.8 + 0.77 + 0.4) / 4)
    assert curve.top_pr == 0.2  # 0.77 >= 0.95 * 0.8 = 0.76
    assert curve_of((0, 0.1), (0.8, 0.7)).top_pr == 0
    assert curve_of((0, 0.1, 0.2), (0.8, 0.75, 0.79)).top_pr == 0.2  # the highest rate, whatever lies between
    assert curve_of((0, 0.05), (1.0, 0.95)).top_pr == 0.05  # exactly 95 % is kept


def test_a_network_that_is_never_right_has_nothing_to_keep():
    assert curve_of((0, 0.5, 0.95), (0.0, 0.0, 0.0)).top_pr == 0
    assert curve_of((0, 0.5, 0.95), (0.0, 0.1, 0.0)).top_pr == 0


def test_a_sweep_without_rates_is_an_error(task):
    model, images, labels = task
    scores = pxp.score(model, [(images, labels)])
    with pytest.raises(PxpError, match="no rates"):
        pxp.sweep(model, scores, [(images, labels)], rates=[])
