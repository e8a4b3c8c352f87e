"""Repair against its definition: means, and least squares solved at once in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pxp_fast as pxp
from pxp_fast import demo
from pxp_fast.lrp import capture
from pxp_fast.lrp.fold import WEIGHTED
from pxp_fast.plan import Plan, PlannedGroup
from pxp_fast.slimming.patches import by_position, patches
from pxp_fast.units import ParameterSlice


def plan_of(**removed):
    """A plan that masks rows of layers, by name (``__`` for a dot): (kind, count, units)."""
    groups = []
    for key, (kind, count, units) in removed.items():
        name = key.replace("__", ".")
        slices = tuple(ParameterSlice(f"{name}.{own}", 0) for own in ("weight", "bias"))
        groups.append(PlannedGroup(name=name, kind=kind, count=count, removed=tuple(units), slices=slices))
    return Plan(model="net", rate=0.5, groups=tuple(groups))


class Convolutions(nn.Module):
    """Two convolutions with an activation between them, pooled to logits."""

    def __init__(self, second):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), second
        self.last = nn.Linear(second.out_channels, 4)

    def forward(self, x):
        return self.last(F.relu(self.second(F.gelu(self.first(x)))).mean((2, 3)))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.head = nn.Linear(5, 12), nn.Linear(12, 7), nn.Linear(7, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.fc2(F.gelu(self.fc1(x.flatten(2).transpose(1, 2))))).mean(1))


READING = {
    "padded": lambda: nn.Conv2d(8, 6, 3, padding=1),
    "strided": lambda: nn.Conv2d(8, 6, 3, stride=2, padding=(1, 0)),
    "grouped": lambda: nn.Conv2d(8, 6, 3, groups=2, padding=1),
    "dilated": lambda: nn.Conv2d(8, 6, (3, 2), dilation=2, padding="same"),
    "no bias": lambda: nn.Conv2d(8, 6, 1, bias=False),
}
GONE = (1, 3, 6)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(params=READING)
def network(request):
    torch.manual_seed(3)
    return Convolutions(READING[request.param]()).double().eval()


def plan():
    return plan_of(first=("filter", 8, GONE))


def images(count=24, size=7):
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masked_copy(model, plan):
    model = copy.deepcopy(model)
    pxp.apply_mask(model, plan)
    return model


def without_bias(layer, x):
    return layer(x) - (0 if layer.bias is None else layer.bias.view(1, -1, 1, 1))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 6, 9, 8), {"kernel_size": 3, "padding": 1}),
        ((2, 6, 9, 8), {"kernel_size": (3, 2), "stride": (2, 1), "padding": (0, 2), "groups": 3}),
        ((2, 6, 9, 8), {"kernel_size": (2, 3), "dilation": (2, 1), "padding": "same", "groups": 2}),
        ((2, 6, 9), {"kernel_size": 4, "stride": 3, "padding": 2}),
        ((2, 6, 5, 4, 6), {"kernel_size": (2, 1, 3), "padding": (0, 1, 2), "dilation": (1, 1, 2)}),
    ],
)
def test_a_convolution_is_its_patches_times_its_weights(shape, options):
    kind = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)]
    layer = kind(6, 12, **options).double()
    network = nn.Sequential(layer, nn.AdaptiveAvgPool1d(1) if len(shape) == 3 else nn.Identity(), nn.Flatten())
    captured = capture(network, torch.zeros(shape, dtype=torch.float64))
    node = next(n for n in captured.nodes() if n.target in WEIGHTED)
    x = torch.randn(shape, dtype=torch.float64)
    rows = layer.weight.unflatten(0, (layer.groups, -1)).flatten(2)
    width = torch.arange(6 // layer.groups)
    found = [patches(node, layer.weight, x, group, width) @ own.T for group, own in enumerate(rows)]
    torch.testing.assert_close(torch.cat(found, 1) + layer.bias, by_position(node, layer(x)))


def test_mean_repair_gives_back_what_removed_units_gave_on_average(network):
    x, made = images(), plan()
    repaired = pxp.repair(network, made, x, "mean").repaired(network)
    read = F.gelu(network.first(x))
    kept = read.clone()
    kept[:, GONE] = 0
    lost = without_bias(network.second, read) - without_bias(network.second, kept)
    before = 0 if network.second.bias is None else network.second.bias
    torch.testing.assert_close(repaired.second.bias - before, lost.mean((0, 2, 3)))
    difference = network.second(read) - repaired.second(kept)
    assert difference.mean((0, 2, 3)).abs().max() < 1e-12
    torch.testing.assert_close(repaired.second.weight, network.second.weight)


def test_mean_repair_takes_what_a_norm_makes_of_a_removed_filter():
    """With the filter's own weights masked alone, its norm goes on to yield a constant, which is not lost."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 1), nn.Flatten(1))
    model.append(nn.Linear(5 * 25, 4))
    model = model.double().eval()
    nn.init.normal_(model[1].bias, 1.0)
    nn.init.normal_(model[1].running_mean)
    made = Plan(
        model="net",
        rate=0.5,
        norm="layer",
        groups=(
            PlannedGroup(
                name="0",
                kind="filter",
                count=8,
                removed=GONE,
                slices=(
                    ParameterSlice("0.weight", 0),
                    ParameterSlice("0.bias", 0),
                    ParameterSlice("1.weight", 0, role="norm"),
                    ParameterSlice("1.bias", 0, role="norm"),
                ),
            ),
        ),
    )
    x = images()
    repaired = pxp.repair(model, made, x, "mean").repaired(model)
    difference = model[:4](x) - repaired[:4](x)
    assert (model[:4](x) - masked_copy(model, made)[:4](x)).mean((0, 2, 3)).abs().max() > 1e-3
    assert difference.mean((0, 2, 3)).abs().max() < 1e-12


def least_squares(inputs, lacking, penalty):
    """The change [O, columns] and intercept of ridge regression, as least squares with rows for the penalty."""
    mean, level = inputs.mean(0), lacking.mean(0)
    width = inputs.shape[1]
    rows = torch.cat((inputs - mean, penalty**0.5 * torch.eye(width, dtype=inputs.dtype)))
    targets = torch.cat((lacking - level, lacking.new_zeros(width, lacking.shape[1])))
    change = torch.linalg.lstsq(rows, targets, driver="gelsd").solution.T
    return change, level - change @ mean


def strength_of(inputs, strength):
    return strength * float((inputs - inputs.mean(0)).square().sum()) / inputs.shape[1]


@pytest.mark.parametrize("count", [2, 24])  # fewer rows than columns, and more
def test_ridge_repair_is_least_squares(network, count):
    x, made, strength = images(count, 5), plan(), 1e-2
    found = pxp.repair(network, made, x, "ridge", strength=strength)
    repaired, masked = found.repaired(network), masked_copy(network, made)
    layer, groups = network.second, network.second.groups
    kept = F.gelu(masked.first(x))
    lacking = layer(F.gelu(network.first(x))) - layer(kept)
    node = next(n for n in list(capture(network, x).nodes())[1:] if n.target in WEIGHTED)
    change = repaired.second.weight - layer.weight
    shift = repaired.second.bias - (0 if layer.bias is None else layer.bias)
    for group in range(groups):
        width = 8 // groups
        alive = torch.tensor([c for c in range(width) if c + group * width not in GONE])
        inputs = patches(node, layer.weight, kept, group, alive)
        rows = slice(group * 6 // groups, (group + 1) * 6 // groups)
        expected = least_squares(inputs, by_position(node, lacking)[:, rows], strength_of(inputs, strength))
        torch.testing.assert_close(change[rows][:, alive].flatten(1), expected[0], rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(shift[rows], expected[1], rtol=1e-6, atol=1e-9)
        dead = [c for c in range(width) if c + group * width in GONE]
        assert not change[rows][:, dead].any()
    last = (layer(F.gelu(network.first(x))) - repaired.second(kept)).square().mean().sqrt()
    spread = (outputs := layer(F.gelu(network.first(x)))) - outputs.mean((0, 2, 3), keepdim=True)
    assert found.layers[0].name == "second"
    assert found.layers[0].after == pytest.approx(float(last / spread.square().mean().sqrt()), rel=1e-6)


def test_ridge_repair_of_tokens_with_what_comes_before_repaired():
    model = Tokens().double().eval()
    x = torch.randn(30, 5, 3, 2, dtype=torch.float64)
    made, strength = plan_of(fc1=("neuron", 12, (0, 2, 5, 7, 11))), 1e-3
    repaired = pxp.repair(model, made, x, "ridge", strength=strength).repaired(model)
    tokens = x.flatten(2).transpose(1, 2)
    alive = torch.tensor([1, 3, 4, 6, 8, 9, 10])
    hidden = F.gelu(model.fc1(tokens))
    inputs = hidden[..., alive].flatten(0, 1)
    lacking = (model.fc2(hidden) - hidden[..., alive] @ model.fc2.weight[:, alive].T - model.fc2.bias).flatten(0, 1)
    change, shift = least_squares(inputs, lacking, strength_of(inputs, strength))
    torch.testing.assert_close((repaired.fc2.weight - model.fc2.weight)[:, alive], change, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(repaired.fc2.bias - model.fc2.bias, shift, rtol=1e-6, atol=1e-9)
    assert torch.equal(repaired.fc2.weight[:, [0, 2, 5, 7, 11]], model.fc2.weight[:, [0, 2, 5, 7, 11]])
    # The head reads what the repaired fc2 yields.
    inputs = torch.tanh(repaired.fc2(hidden * torch.isin(torch.arange(12), alive))).mean(1)
    lacking = model(x) - model.head(inputs)
    change, shift = least_squares(inputs, lacking, strength_of(inputs, strength))
    torch.testing.assert_close(repaired.head.weight - model.head.weight, change, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(repaired.head.bias - model.head.bias, shift, rtol=1e-6, atol=1e-9)


def test_removed_rows_stay_zero_and_a_layer_without_bias_uses_the_norm_after_it():
    model = demo.network("resnet").double()
    scores = pxp.score(model, criterion="magnitude", example=torch.zeros(1, 1, 28, 28, dtype=torch.float64))
    made = pxp.plan(scores, 0.4)
    x = demo.normalize(demo.images("reference")[0][::25]).double()
    found = pxp.repair(model, made, x)
    repaired, masked = found.repaired(model), masked_copy(model, made)
    assert repaired.state_dict().keys() == model.state_dict().keys()
    for group in made.groups:
        for piece in group.slices:
            zeros = repaired.get_parameter(piece.parameter)[list(group.removed)]
            assert not zeros.any(), piece.parameter
    assert any(not torch.equal(a, b) for a, b in zip(repaired.parameters(), masked.parameters(), strict=True))
    assert all(layer.after <= layer.before for layer in found.layers)


@pytest.mark.parametrize(("name", "method"), [("vgg", "mean"), ("resnet", "ridge"), ("vit", "ridge")])
def test_the_repaired_model_is_cut_and_little_memory_changes_nothing(name, method):
    model = demo.network(name)
    x = demo.normalize(demo.images("reference")[0][::20])
    scores = pxp.score(model, criterion="random", example=x[:1])
    made = pxp.plan(scores, 0.3)
    found = pxp.repair(model, made, x.split(20), method)
    again = pxp.repair(model, made, x.split(20), method, memory=0)
    assert all(torch.equal(found.tensors[key], again.tensors[key]) for key in found.tensors | again.tensors)
    small = pxp.slim(model, made, x[:4], found)
    with torch.no_grad():
        wanted = found.repaired(model)(x)
        assert (small(x) - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert small.pxp_slim.after.parameters < small.pxp_slim.before.parameters
    assert [layer.cut for layer in small.pxp_slim.layers] == [
        layer.cut for layer in pxp.slim(model, made, x[:4]).pxp_slim.layers
    ]


@pytest.mark.parametrize("name", demo.NETWORKS)
def test_ridge_repair_keeps_accuracy_on_images_that_it_has_not_seen(name):
    model = demo.network(name)
    x, labels = demo.images("reference")
    x = demo.normalize(x)
    made = pxp.plan(pxp.score(model, [(x[::10], labels[::10])]), 0.4)
    pixels, answers = demo.images("test")
    judging = [(demo.normalize(pixels[::4]), answers[::4])]
    unpruned = pxp.evaluate(model, judging).accuracy
    with pxp.masked(model, made):
        pruned = pxp.evaluate(model, judging).accuracy
    repaired = pxp.evaluate(pxp.repair(model, made, x[::4]).repaired(model), judging).accuracy
    assert pruned < repaired
    assert repaired > 0.9 * unpruned


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.own = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))

    def forward(self, x):
        x = F.relu(self.first(x.flatten(1)))
        return self.head(F.relu(self.own(F.relu(self.twice(self.twice(x))))))


def test_shared_and_computed_weights_are_left_alone_and_said_so():
    model = Shared().double().eval()
    x = torch.randn(40, 3, 2, 2, dtype=torch.float64)
    found = pxp.repair(model, plan_of(first=("neuron", 8, (1, 4))), x)
    assert [(one.name, one.reason) for one in found.left] == [
        ("twice", "its weight is shared"),
        ("own", "its weight is computed"),
    ]
    assert set(found.tensors) == {"head.weight", "head.bias"}
    repaired, masked = found.repaired(model), masked_copy(model, plan_of(first=("neuron", 8, (1, 4))))
    assert (repaired(x) - model(x)).square().mean() < (masked(x) - model(x)).square().mean()


def test_no_repair_is_the_masked_model():
    model, made = Tokens().double().eval(), plan_of(fc1=("neuron", 12, (0, 2)))
    x = torch.randn(3, 5, 3, 2, dtype=torch.float64)
    found = pxp.repair(model, made, x, "none")
    assert torch.equal(found.repaired(model)(x), masked_copy(model, made)(x))


def test_what_cannot_be_done_is_said():
    model, made = Tokens().double().eval(), plan_of(fc1=("neuron", 12, (0, 2)))
    x = torch.randn(3, 5, 3, 2, dtype=torch.float64)
    with pytest.raises(pxp.PxpError, match="choose one of none, mean, ridge"):
        pxp.repair(model, made, x, "median")
    with pytest.raises(pxp.PxpError, match="must not be negative"):
        pxp.repair(model, made, x, strength=-1.0)
    with pytest.raises(pxp.PxpError, match="no images"):
        pxp.repair(model, made, [])
    with pytest.raises(pxp.PxpError, match="plan for this model"):
        pxp.repair(model, plan_of(fc9=("neuron", 12, (0, 2))), x)
