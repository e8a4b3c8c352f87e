"""The rules of convolutions and linear layers, against their definitions and against zennit."""

import pytest
import torch
import torchvision
from oracles.definition import Definition
from oracles.engine import by_unit, observed, relative_l1, unit_sums
from oracles.networks import pictures, randomise
from oracles.operators import WIDTH, Sandwich, Tokens, conv
from oracles.rule_definitions import definition_of
from oracles.zennit_oracle import ZennitOracle
from torch import nn
from zennit import rules as zennit
from zennit import types as zennit_types
from zennit.composites import LayerMapComposite, MixedComposite, NameMapComposite

from pxp_fast.criteria import Relevance, attribute
from pxp_fast.errors import CaptureError
from pxp_fast.lrp import Composite, Program, capture
from pxp_fast.lrp.registry import rule
from pxp_fast.lrp.ruled import Multiplier, Ruled

RULES_TRIED = {
    "z-plus": {"rule": "z-plus"},
    "gamma": {"rule": "gamma"},
    "gamma 3": {"rule": "gamma", "gamma": 3.0, "stabilizer": 1e-3},
    "alpha-beta": {"rule": "alpha-beta"},
    "alpha-beta 1.5": {"rule": "alpha-beta", "alpha": 1.5, "beta": 0.5, "stabilizer": 1e-2},
    "alpha-beta 1": {"rule": "alpha-beta", "alpha": 1.0, "beta": 0.0},
    "flat": {"rule": "flat"},
    "w-square": {"rule": "w-square", "stabilizer": 1e-2},
    "epsilon 0.1": {"rule": "epsilon", "epsilon": 0.1},
    "norm": {"rule": "norm"},
}


def everywhere(given, **options) -> Composite:
    return Composite(layers=(("*", rule(given)),), **options)


def between(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


# What stands between a first convolution, which sees signed images, and a classifier.
LAYERS = {
    "conv": lambda: Sandwich(conv(6, 3, padding=1)),
    "relu, strided, relu": lambda: Sandwich(between(conv(6, 3, stride=2, padding=1), nn.ReLU()), after_relu=True),
    "relu, grouped, dilated, gelu": lambda: Sandwich(
        between(conv(6, 3, groups=2, dilation=2), nn.GELU(), nn.MaxPool2d(2)), after_relu=True
    ),
    "depthwise, relu6, average": lambda: Sandwich(
        between(conv(8, (3, 2), padding="same", groups=8, bias=False), nn.ReLU6(), nn.AvgPool2d(2))
    ),
    "batch norm, residual": lambda: Sandwich(Residual(), after_relu=True),
    "tokens": lambda: Tokens(between(nn.Linear(WIDTH, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 4), nn.ReLU())),
}


class Residual(nn.Module):
    """relu(b(relu(a(x))) + x): what flat gives to the sum's zeros is shared among the summands."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(8, 3, padding=1, bias=False), nn.BatchNorm2d(8), conv(8, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.relu(self.b(self.relu(self.norm(self.a(x)))) + x)


@pytest.mark.parametrize("layer", LAYERS)
def test_rules_follow_their_definitions(layer):
    torch.manual_seed(0)
    model = LAYERS[layer]()
    images, labels = pictures(2, 9, classes=5)
    model, images = randomise(model, pictures(8, 9)[0]).double(), images.double()
    for name, given in RULES_TRIED.items():
        truth = Definition(model, affine=definition_of(lambda _, given=given: given))(images, labels)
        composite = everywhere(given)
        assert relative_l1(attribute(model, images, labels, composite=composite), truth.input) < 1e-10, name
        if name not in ("z-plus", "alpha-beta", "flat"):  # the sums are read alike whatever the rule makes of them
            continue
        for unit, sums in unit_sums(model, images, labels, composite=composite).items():
            at = truth.at[unit]
            at = at.flatten(2) if at.dim() == 4 else at.transpose(1, 2)
            assert relative_l1(sums, torch.stack((at.sum(2), at.abs().sum(2)))) < 1e-10, (name, unit)


def test_every_layer_may_have_a_rule_of_its_own():
    """Relevance that flat gives to zeros meets a gamma layer, an epsilon layer and a residual sum below it."""
    described = {
        "stem": {"rule": "gamma"}, "middle.a": {"rule": "epsilon", "epsilon": 0.05}, "middle.b": {"rule": "flat"},
        "head": {"rule": "alpha-beta"},
    }  # fmt: skip
    composite = Composite(layers=tuple((name, rule(given)) for name, given in described.items()))
    torch.manual_seed(0)
    images, labels = pictures(2, 9, classes=5)
    model, images = randomise(Sandwich(Residual(), after_relu=True), pictures(8, 9)[0]).double(), images.double()
    truth = Definition(model, affine=definition_of(described.__getitem__))(images, labels)
    assert relative_l1(attribute(model, images, labels, composite=composite), truth.input) < 1e-10
    found = unit_sums(model, images, labels, composite=composite)
    for name, sums in found.items():
        assert relative_l1(sums[1], truth.at[name].abs().sum((2, 3))) < 1e-10, name


def vgg_like() -> nn.Module:
    layers, into = [], 3
    for out, pool in ((8, False), (8, True), (12, False), (12, True)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] if pool else []
        into = out
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(), nn.Dropout(), nn.Linear(20, 10)]
    return nn.Sequential(*layers, *head)


NETWORKS = {"VGG-like": vgg_like, "ResNet-18": lambda: torchvision.models.resnet18(num_classes=10)}
ZENNIT = {
    "z-plus": lambda: zennit.ZPlus(),
    "gamma": lambda: zennit.Gamma(0.25),
    "alpha-beta": lambda: zennit.AlphaBeta(2, 1),
    "flat": lambda: zennit.Flat(),
    "w-square": lambda: zennit.WSquare(1e-2),
    "epsilon 0.1": lambda: zennit.Epsilon(0.1),
    "norm": lambda: zennit.Norm(1e-6),
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    torch.manual_seed(0)
    return randomise(NETWORKS[request.param](), pictures(8, 32, seed=3)[0]), *pictures(2, 32, seed=7, classes=10)


@pytest.mark.parametrize("name", ZENNIT)
def test_scores_equal_zennits(network, name):
    model, images, labels = network
    composite = everywhere(RULES_TRIED[name])
    model.double()
    truth, at_input = ZennitOracle(model, rule=ZENNIT[name]()).run(images.double(), labels)
    found = unit_sums(model, images.double(), labels, composite=composite)
    for layer, sums in found.items():
        assert relative_l1(sums, truth[layer]) < 1e-9, layer
    assert relative_l1(attribute(model, images.double(), labels, composite=composite), at_input) < 1e-9


@pytest.mark.parametrize("name", ["z-plus", "gamma", "alpha-beta"])
def test_rounding_of_narrower_numbers(network, name):
    """The quick kernels, whose negative contributions are a difference, beside zennit's rounding in float32."""
    model, images, labels = network
    composite = everywhere(RULES_TRIED[name])
    single, _ = ZennitOracle(model.float(), rule=ZENNIT[name]()).run(images, labels, "logit")
    truth, _ = ZennitOracle(model.double(), rule=ZENNIT[name]()).run(images.double(), labels, "logit")
    model.float()

    def worst(found: dict) -> float:
        return max(relative_l1(found[layer], truth[layer]) for layer in found)

    for exact in (False, True):
        found = unit_sums(model, images, labels, "logit", composite=composite, exact=exact)
        assert worst(found) <= 8 * worst({layer: single[layer] for layer in found})
    for dtype, bound in ((torch.bfloat16, 0.15), (torch.float16, 0.05)):
        assert worst(unit_sums(model, images, labels, "logit", composite=composite, dtype=dtype)) < bound, dtype


@pytest.mark.parametrize("name", ["z-plus", "gamma", "alpha-beta", "flat", "w-square", "norm"])
def test_relevance_is_conserved_without_biases(name):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 12, 3, groups=2), nn.GELU(),
        nn.Conv2d(12, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(54, 20), nn.SiLU(), nn.Linear(20, 5),
    )  # fmt: skip
    images, labels = pictures(3, 10, classes=5)
    model = randomise(model, images, zero_bias=True).double()
    composite, one = everywhere(name, stabilizer=0.0), torch.ones(3).double()
    for layer, sums in unit_sums(model, images.double(), labels, composite=composite).items():
        torch.testing.assert_close(sums[0].sum(1), one, rtol=0, atol=1e-9, msg=layer)
    heat = attribute(model, images.double(), labels, composite=composite)
    torch.testing.assert_close(heat.flatten(1).sum(1), one, rtol=0, atol=1e-9)


def test_pass_equals_zennits_and_conserves():
    """A convolution that keeps the shape hands on what it got, entry by entry."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(96, 5, bias=False),
    )  # fmt: skip
    images, labels = pictures(3, 8, classes=5)
    model = randomise(model, images, zero_bias=True).double()
    found = unit_sums(model, images.double(), labels, composite=Composite(stabilizer=0.0, layers={"2": "pass"}))
    rules = [(zennit_types.Activation, zennit.Pass()), (zennit_types.Linear, zennit.Epsilon(0.0))]
    theirs = NameMapComposite([(["2"], zennit.Pass()), (["0", "6"], zennit.Epsilon(0.0))])
    theirs = MixedComposite([theirs, LayerMapComposite(rules)])
    truth, _ = ZennitOracle(model, rules=theirs).run(images.double(), labels)
    for layer, sums in found.items():
        assert relative_l1(sums, truth[layer]) < 1e-10, layer
        torch.testing.assert_close(sums[0].sum(1), torch.ones(3).double(), rtol=0, atol=1e-10)


def test_z_plus_leaves_no_negative_relevance():
    torch.manual_seed(0)
    model = randomise(vgg_like(), pictures(8, 32)[0]).double()
    images, labels = pictures(2, 32, classes=10)
    found = unit_sums(model, images.double(), labels, composite=everywhere("z-plus"))
    assert all(bool((sums[0] == sums[1]).all()) and bool((sums[0] >= 0).all()) for sums in found.values())


@pytest.mark.parametrize("name", ["z-plus", "alpha-beta", "gamma"])
@pytest.mark.parametrize("signed", [True, False])
def test_contributions_beside_much_larger_ones_of_the_other_sign_are_not_lost(name, signed):
    """Every entry by itself, of inputs eight powers of ten apart, where P or N is all but nothing beside the other."""
    torch.manual_seed(0)
    act = nn.LeakyReLU(0.3) if signed else nn.ReLU()
    model = nn.Sequential(nn.Conv2d(4, 4, 1), act, nn.Conv2d(4, 6, 1, bias=False), nn.Flatten(), nn.Linear(54, 3))
    images, labels = torch.randn(3, 4, 3, 3), torch.tensor([0, 1, 2])
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(10.0 ** torch.arange(-3, 5, 2)).view(4, 4, 1, 1))
        model[0].bias.zero_()
        model[2].weight[:3] = torch.tensor([[1, -1, 2, -2], [1, 1, 1, -1], [-1, -1, -1, 1.0]]).view(3, 4, 1, 1)
    composite = Composite(stabilizer=1e-30, layers={"2": name})
    rules = definition_of(lambda layer: {"rule": name if layer == "2" else "epsilon"})
    truth = Definition(model.double(), epsilon=1e-30, affine=rules)(images.double(), labels).input
    found = attribute(model, images.double(), labels, composite=composite)
    torch.testing.assert_close(found, truth, rtol=1e-11 if name != "gamma" else 1e-7, atol=0)
    if name == "gamma":  # whose shares are of the output, which cancels by itself
        return
    program = Program(capture(model.float(), images), {}, composite, input_relevance=True, exact=True)
    seen = {}
    program.run(images, labels, observe=lambda node, value, carry: seen.update({node: value * carry}))
    exact = seen[program.captured.images]
    torch.testing.assert_close(exact.double(), truth, rtol=1e-3, atol=0)


def test_halves_are_skipped_where_the_graph_allows():
    """What each layer of a ReLU network multiplies with: the images are signed, what follows a ReLU is not."""
    torch.manual_seed(0)
    model, images = vgg_like().eval(), torch.randn(2, 3, 32, 32)
    parts = {}
    for name in ("z-plus", "gamma", "alpha-beta"):
        program = Program(capture(model, images), {}, everywhere(name), input_relevance=True)
        parts[name] = [set(step.multipliers) for step in program.steps if isinstance(step, Ruled)]
    signed = {"magnitude", "weight"}
    assert parts["z-plus"] == [signed] + [{"positive"}] * 5
    assert parts["gamma"] == [signed] + [{"scaled"}] * 4 + [signed]  # no ReLU behind the classifier
    assert parts["alpha-beta"] == [signed] + [{"positive", "negative"}] * 5


def test_pass_norm_and_block():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.square, self.norm = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.GroupNorm(2, 6)
            self.pool, self.act, self.head = nn.AvgPool2d(2), nn.ReLU(), nn.Linear(6, 5)

        def forward(self, x):
            return self.head(self.pool(self.norm(self.square(self.act(self.stem(x))))).mean((2, 3)))

    torch.manual_seed(0)
    images, labels = pictures(2, 9, classes=5)
    model, images = randomise(Net(), images).double(), images.double()

    def sums(*layers) -> dict:
        return unit_sums(model, images, labels, composite=Composite(layers=tuple((n, rule(r)) for n, r in layers)))

    plain = sums()
    blocked = sums(("square", "block"))
    assert not blocked["stem"].any() and torch.equal(blocked["square"], plain["square"])
    composite = Composite(layers=(("pool", rule("block")),))
    assert not attribute(model, images, labels, composite=composite).any()
    passed = sums(("square", "pass"))
    assert relative_l1(passed["stem"], passed["square"]) < 1e-12

    # The group norm passes what the pool gave it: relevance at the pool's input, by definition.
    seen = dict(observed(model, images, labels))
    at_norm = next(relevance for name, relevance in seen.items() if name.startswith("group_norm"))
    expected = torch.stack((at_norm.sum((2, 3)), at_norm.abs().sum((2, 3))))
    assert relative_l1(sums(("norm", "pass"))["square"], expected) < 1e-10
    softened = sums(("*", {"rule": "norm", "stabilizer": 0.5}))
    wide = Definition(model, epsilon=0.5)(images, labels)
    assert relative_l1(softened["stem"][0], wide.at["stem"].sum((2, 3))) < 1e-10

    for layer, what in (("stem", "3, 9, 9"), ("pool", "6, 7, 7")):
        with pytest.raises(CaptureError, match=f"rule pass on {layer}.*{what}"):
            sums((layer, "pass"))
            attribute(model, images, labels, composite=Composite(layers=((layer, rule("pass")),)))


@pytest.mark.parametrize("name", ["flat", "w-square"])
def test_what_depends_on_weights_alone_is_computed_once(name, monkeypatch):
    multiplied = []
    product = Multiplier.product
    monkeypatch.setattr(Multiplier, "product", lambda self, source: multiplied.append(1) or product(self, source))
    model, (images, labels) = vgg_like().double().eval(), pictures(4, 32, classes=10)
    relevance = Relevance(model, images.double(), composite=everywhere(name))
    whole = relevance.run(images.double(), labels)
    assert len(multiplied) == 5  # all but the first layer, below which nothing is wanted
    parts = [relevance.run(images[i].double(), labels[i]) for i in (slice(3), slice(3, 4))]
    assert len(multiplied) == 5
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-12, atol=1e-15)


def test_tables_of_one_batch_are_the_same_every_time():
    torch.manual_seed(0)
    model, (images, labels) = vgg_like().eval(), pictures(2, 32, classes=10)
    relevance = Relevance(model, images, composite=everywhere("alpha-beta"))
    first = relevance.run(images, labels)
    assert torch.equal(first, relevance.run(images, labels))
    assert by_unit(relevance, first).keys() == {"0", "3", "7", "10", "16"}
