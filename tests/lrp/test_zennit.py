"""Scores of every filter and neuron of torchvision's VGG and ResNet equal zennit's."""

import dataclasses

import pytest
import torch
import torchvision
from oracles.engine import by_unit, relative_l1, unit_sums
from oracles.networks import pictures, randomise
from oracles.zennit_oracle import ZennitOracle
from torch import Tensor

from pxp_fast.criteria import Relevance, attribute

SIZE = 64


@pytest.fixture(autouse=True, scope="module")
def two_threads():
    """Sums are split among threads, and how zennit's rounding compares with ours depends on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


COUNTS = {"vgg16": (4224, 8192), "vgg16_bn": (4224, 8192), "resnet18": (4800, 0), "resnet50": (26560, 0)}


@dataclasses.dataclass
class Case:
    """A network with its images: the engine's scores and zennit's, in float32 and float64."""

    name: str
    relevance: Relevance
    images: Tensor
    labels: Tensor
    exact: dict[str, Tensor]
    quick: dict[str, Tensor]
    double: dict[str, Tensor]
    zennit_single: dict[str, Tensor]
    zennit_double: dict[str, Tensor]
    logits: Tensor


@pytest.fixture(scope="module", params=COUNTS)
def case(request):
    torch.manual_seed(0)
    model = getattr(torchvision.models, request.param)(weights=None)
    model = randomise(model, pictures(8, SIZE, seed=3)[0])
    images, labels = pictures(16 if request.param.startswith("resnet") else 6, SIZE, seed=7)
    # Relevance that starts at the logit's value is spared a division by logits that happen to be near zero.
    exact = unit_sums(model, images, labels, "logit", exact=True)
    quick = unit_sums(model, images, labels, "logit")
    zennit_single, _ = ZennitOracle(model).run(images, labels, "logit")
    model.double()
    zennit_double, _ = ZennitOracle(model).run(images.double(), labels)
    relevance = Relevance(model, images.double())
    double = by_unit(relevance, relevance.run(images.double(), labels))
    logits = model(images.double()).detach().gather(1, labels[:, None])
    return Case(request.param, relevance, images, labels, exact, quick, double, zennit_single, zennit_double, logits)


def worst_layer(found: dict, truth: dict) -> tuple[float, str]:
    """Largest relative L1 error of a layer, signed or absolute sums, and which it is."""
    return max((relative_l1(found[name][row], truth[name][row]), name) for name in found for row in (0, 1))


def typical_error(found: dict, truth: dict, layers) -> float:
    """Median over images and layers of the relative L1 error: rounding, not the odd sample that crosses a kink."""
    size = lambda t: t.abs().sum(1)  # noqa: E731
    each = [size(found[n][0].double() - truth[n][0]) / size(truth[n][0]) for n in layers]
    return torch.cat(each).median().item()


def test_scores_equal_zennit_in_float64(case):
    count = {
        kind: sum(g.count for g in case.relevance.units if g.kind == kind) for kind in ("filter", "neuron", "head")
    }
    assert (count["filter"], count["neuron"], count["head"]) == (*COUNTS[case.name], 0)
    assert {g.name for g in case.relevance.units} | {"fc", "classifier.6"} >= case.zennit_double.keys()
    assert worst_layer(case.double, case.zennit_double) < (1e-9,)


def test_float32_rounding_beside_zennits(case):
    truth = {name: sums * case.logits for name, sums in case.zennit_double.items()}
    theirs = typical_error(case.zennit_single, truth, case.exact)
    assert typical_error(case.exact, truth, case.exact) <= 1.2 * theirs
    assert typical_error(case.quick, truth, case.exact) <= 8 * theirs


@pytest.mark.parametrize("name", ["vgg11_bn", "resnet18"])
def test_relevance_of_the_input_equals_zennit(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(num_classes=10)
    model = randomise(model, pictures(8, SIZE, seed=3)[0]).double()
    images, labels = pictures(2, SIZE, classes=10)
    _, truth = ZennitOracle(model).run(images.double(), labels)
    assert relative_l1(attribute(model, images.double(), labels), truth) < 1e-9


def test_scores_of_a_trained_resnet50_equal_zennit():
    assets = pytest.importorskip("bench.assets", reason="the repository's bench folder is not on the path")
    if assets.present("resnet50") is None:
        pytest.skip("ImageNet weights are not in the cache; python -m bench.assets resnet50 fetches them")
    model = assets.resnet50()
    images, _ = pictures(8, 224)  # fewer, and one image near a kink decides
    labels = model(images).argmax(1)
    theirs, _ = ZennitOracle(model).run(images, labels)
    single = unit_sums(model, images, labels, exact=True)
    model.double()
    truth, _ = ZennitOracle(model).run(images.double(), labels)
    found = unit_sums(model, images.double(), labels)
    assert sum(sums.shape[2] for sums in found.values()) == 26560
    assert worst_layer(found, truth) < (1e-9,)
    assert typical_error(single, truth, found) <= 1.2 * typical_error(theirs, truth, found)
