"""Tasks: logits of restricted classifiers beside those of the whole ones, labels, loaders, and what is refused."""

import pytest
import timm
import torch
import torchvision
from oracles.networks import pictures, randomise
from timm.models.deit import VisionTransformerDistilled
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import pxp_fast as pxp
from pxp_fast import demo
from pxp_fast.data import DemoImages, Sample, demo_images
from pxp_fast.errors import ModelError, PxpError
from pxp_fast.loader import Loader
from pxp_fast.models import load

VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 10}
NETWORKS = {  # name: (network, size of its images, channels)
    "vgg, pooled": lambda: (demo.network("vgg"), 28, 1),
    "vgg, three linear layers": lambda: (vgg(), 32, 3),
    "resnet of torchvision": lambda: (torchvision.models.resnet18(num_classes=10), 32, 3),
    "resnet of timm": lambda: (timm.create_model("resnet10t", num_classes=10), 32, 3),
    "vit of torchvision": lambda: (torchvision.models.VisionTransformer(16, 8, 1, 2, 12, 16, num_classes=10), 16, 3),
    "vit of timm": lambda: (VisionTransformer(**VIT), 16, 3),
    "the mean of two heads": lambda: (VisionTransformerDistilled(**VIT), 16, 3),
    "convolution, relu, pool": lambda: (torchvision.models.squeezenet1_1(num_classes=10), 48, 3),
    "pool, convolution": lambda: (ResNetV2([1], (128,), stem_chs=32, num_classes=10), 16, 3),
}


def vgg():
    features = torchvision.models.vgg.make_layers([8, "M", 12, "M"], batch_norm=True)
    head = nn.Sequential(
        nn.Linear(12 * 4, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 10)
    )
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)


@pytest.mark.parametrize("name", NETWORKS)
def test_restricted_logits_are_columns_of_the_whole_ones(name):
    model, size, channels = NETWORKS[name]()
    images = pictures(4, size, channels)[0]
    model = randomise(model, images) if name != "vgg, pooled" else model.eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    task = pxp.Task((7, 0, 4))
    small, zeroed = task.slice(model, images), task.zero(model, images)
    with torch.no_grad():
        whole = model(images)
        torch.testing.assert_close(small(images), whole[:, [7, 0, 4]], rtol=1e-4, atol=1e-5)
        expected = torch.stack([whole[:, c] if c in task.classes else torch.zeros(4) for c in range(10)], dim=1)
        torch.testing.assert_close(zeroed(images), expected, rtol=1e-4, atol=1e-5)
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(state)
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    wide = [m for m in small.modules() if 10 in (getattr(m, "out_features", 0), getattr(m, "out_channels", 0))]
    assert not wide and getattr(small, "num_classes", 3) == 3


def test_a_sliced_networks_plan_fits_the_whole_one():
    images, labels = pictures(6, 16, classes=10)
    model = randomise(VisionTransformer(**VIT), images).double()
    task = pxp.Task((7, 0, 4))
    small = task.slice(model, images)
    own = [(images.double(), task.labels(torch.tensor([0, 7, 4, 4, 0, 7])))]
    scores = pxp.score(small, own, initial="one")
    plan = pxp.plan(scores, 0.5)
    with torch.no_grad(), pxp.masked(model, plan), pxp.masked(small, plan):
        torch.testing.assert_close(small(images.double()), model(images.double())[:, [7, 0, 4]])
    # Relevance enters at one logit: neither removing the others nor zeroing them changes it.
    for other in (model, task.zero(model, images)):
        found = pxp.score(other, [(images.double(), torch.tensor([0, 7, 4, 4, 0, 7]))], initial="one")
        torch.testing.assert_close(found.totals, scores.totals, rtol=1e-9, atol=1e-16)


class Fixed(nn.Module):
    """Logits are the image's first row, through a linear layer that changes nothing."""

    def __init__(self, after=None):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.after = after or nn.Identity()
        with torch.no_grad():
            self.linear.weight.copy_(torch.eye(4))
            self.linear.bias.zero_()

    def forward(self, x):
        return self.after(self.linear(x[:, 0, 0]))


def test_zeroing_counts_all_negative_logits_as_wrong_and_slicing_does_not():
    logits = torch.tensor([[9.0, -1, 5, -2], [9, -3, 5, -2], [9, 2, 5, 1], [9, 2, 5, 3], [1, 2, 3, 4]])
    labels = torch.tensor([1, 3, 1, 1, 0])
    loader = [(logits[:3, None, None], labels[:3]), (logits[3:, None, None], labels[3:])]
    for mode, right, per_class in (
        # kept are columns 1 and 3; the last image is of a class that is not in the task
        ("slice", 3, {0: (2, 3), 1: (1, 1)}),
        ("zero", 1, {1: (1, 3), 3: (0, 1)}),
    ):
        task = pxp.Task((1, 3), mode)
        found = pxp.evaluate(task.restrict(Fixed(), logits[:, None, None]), task.loader(loader))
        assert (found.correct, found.total, found.per_class) == (right, 4, per_class)


def test_labels_are_positions_or_stay():
    labels = torch.tensor([4, 7, 1, 0, 7])
    assert pxp.Task((7, 0, 4)).labels(labels).tolist() == [2, 0, -1, 1, 0]
    assert pxp.Task((7, 0, 4), "zero").labels(labels).tolist() == [4, 7, -1, 0, 7]


def test_images_of_a_task_come_with_its_labels_and_its_spares():
    loaded = load("demo:vgg")
    whole = demo_images("reference", model=loaded, samples_per_class=3)
    whole.spares = {label: [Sample(label, f"spare {label}")] for label in range(10)}
    task = pxp.Task((8, 3))
    own = task.images(whole)
    assert isinstance(own, DemoImages)
    expected = {str(s.path): (8, 3).index(s.label) for s in whole.samples if s.label in (8, 3)}
    assert {str(s.path): s.label for s in own.samples} == expected and len(expected) == 6
    assert own.class_names == {0: demo.CLASSES[8], 1: demo.CLASSES[3]}
    assert own.spares == {0: [Sample(0, "spare 8")], 1: [Sample(1, "spare 3")]}
    again = [(i, y) for i, y in task.loader(Loader(whole, batch_size=30))]
    assert sorted(again[0][1].tolist()) == [0, 0, 0, 1, 1, 1]
    assert [s.label for s in whole.samples] == sorted(list(range(10)) * 3)


def test_random_tasks_depend_on_the_seed_and_draw_every_class():
    tasks = [pxp.random_task(10, 3, seed) for seed in range(40)]
    assert tasks[5] == pxp.random_task(range(10), 3, 5) == pxp.random_task([*range(9, -1, -1)], 3, 5)
    assert len({task.classes for task in tasks}) > 20
    assert {label for task in tasks for label in task.classes} == set(range(10))
    assert all(len(set(task.classes)) == 3 and list(task.classes) == sorted(task.classes) for task in tasks)
    assert set(pxp.random_task([4, 6, 9], 2, 0).classes) < {4, 6, 9}
    with pytest.raises(PxpError, match="4 classes is asked for; there are 3"):
        pxp.random_task([4, 6, 9], 4)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: pxp.Task(()), "one or more labels"),
        (lambda: pxp.Task((1, 1)), "each once"),
        (lambda: pxp.Task((0, -1)), "labels >= 0"),
        (lambda: pxp.Task(("cat",)), "whole numbers"),
        (lambda: pxp.Task((0,), "mask"), "choose one of slice, zero"),
    ],
)
def test_impossible_tasks_are_refused(make, complaint):
    with pytest.raises(PxpError, match=complaint):
        make()


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        self.classes = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x[:, 0, 0] @ self.classes.T


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (lambda: Fixed(nn.Softmax(1)), "mixes the classes"),
        (lambda: Fixed(nn.LayerNorm(4)), "fails|no linear layer"),
        (Product, "no linear layer or convolution"),
        (lambda: nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "computes its"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Unflatten(1, (2, 4)), Mean()), r"is \[8, 4\]"),
        (lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.Flatten(), nn.Linear(12, 3)), "class 3, but Sequential has 3"),
    ],
)
def test_classifiers_that_cannot_be_sliced_say_why(model, complaint):
    with pytest.raises(ModelError, match=complaint):
        pxp.Task((3, 1)).slice(model(), torch.zeros(2, 1, 1, 4))


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)
