"""What the engine promises beside the numbers: any batch, no traces left in the model, cuts that change nothing."""

import copy
import warnings

import pytest
import timm
import torch
import torchvision
from oracles.engine import by_unit, relative_l1, unit_sums
from oracles.networks import pictures, randomise
from torch import nn

from pxp_fast.criteria import Relevance, attribute
from pxp_fast.errors import CaptureError, DataError, ModelError, PxpError
from pxp_fast.lrp import Program, capture
from pxp_fast.lrp.attention import Attention
from pxp_fast.lrp.fused import FusedLinear


def explained(model, images):
    """The model, images, and its own predictions: logits that are well away from zero."""
    return model, images, model(images).argmax(1)


def small_resnet():
    torch.manual_seed(0)
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=10)
    return explained(randomise(model, pictures(8, 32, seed=3)[0]), pictures(5, 32)[0])


def small_vit():
    torch.manual_seed(0)
    config = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 10}
    images, _ = pictures(5, 32)
    return explained(randomise(timm.models.vision_transformer.VisionTransformer(**config), images), images)


def vit_of_65_tokens():
    """Long enough for attention's other way back in bfloat16 on a CPU."""
    torch.manual_seed(0)
    config = {"img_size": 64, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 4, "num_classes": 10}
    images, _ = pictures(5, 64)
    return explained(randomise(timm.models.vision_transformer.VisionTransformer(**config), images), images)


NETWORKS = [pytest.param(small_resnet, id="resnet"), pytest.param(small_vit, id="vit")]


@pytest.mark.parametrize("build", NETWORKS)
def test_one_capture_serves_every_batch_size(build):
    model, images, labels = build()
    model, images = model.double(), images.double()
    relevance = Relevance(model, images[:3])
    whole = relevance.run(images, labels)
    for size in (1, 2, 4):
        torch.testing.assert_close(relevance.run(images[:size], labels[:size]), whole[:, :size], rtol=1e-9, atol=1e-14)
    assert relevance.run(images[:0], labels[:0]).shape == (2, 0, whole.shape[2])
    for example in (images[:1], images):
        again = Relevance(model, example).run(images, labels)
        torch.testing.assert_close(again, whole, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize("build", NETWORKS)
def test_two_runs_agree_bit_for_bit(build):
    model, images, labels = build()
    relevance = Relevance(model, images)
    first = relevance.run(images, labels)
    assert torch.equal(first, relevance.run(images, labels))
    assert torch.equal(first, Relevance(model, images).run(images, labels))
    by_strides = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(first, relevance.run(by_strides, labels))


@pytest.mark.parametrize("build", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(build, training):
    model, images, labels = build()
    expected = unit_sums(model, images, labels)
    model.train(training)
    next(model.children()).train(not training)
    first = next(model.parameters())
    first.requires_grad_(False)
    last = list(model.parameters())[-1]
    last.grad = torch.ones_like(last)

    def state():
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return (
            [(n, t.data_ptr(), t._version, t.clone()) for n, t in (*model.named_parameters(), *model.named_buffers())],
            [(n, m.training, type(m), m.forward, sorted(vars(m))) for n, m in model.named_modules()],
            [len(getattr(m, h)) for m in model.modules() for h in hooks],
            [(p.requires_grad, p.grad is None) for p in model.parameters()],
        )

    before, images_before = state(), images.clone()
    found = unit_sums(model, images, labels)
    attribute(model, images, labels)
    after = state()
    for (name, address, version, value), (_, address2, version2, value2) in zip(before[0], after[0], strict=True):
        assert (address, version) == (address2, version2), name
        assert torch.equal(value, value2), name
    assert before[1:] == after[1:]
    assert torch.equal(images, images_before)
    for name, sums in expected.items():  # and the mode it was in did not matter
        assert torch.equal(found[name], sums), name


@pytest.mark.parametrize("build", NETWORKS)
def test_scores_do_not_depend_on_where_propagation_stops(build):
    """Wanting the images' relevance too takes the cut below the first unit away; wanting one kind moves it up."""
    model, images, labels = build()
    model, images = model.double(), images.double()
    relevance = Relevance(model, images)
    table = relevance.run(images, labels)
    captured = capture(model, images)
    from pxp_fast.finding import find_units
    from pxp_fast.lrp import Reader

    readers, offset = {}, 0
    for site in find_units(captured):
        readers[site.node] = Reader(offset, site.group.count, site.batch_dim, site.scale)
        offset += site.group.count
    uncut = Program(captured, readers, input_relevance=True).run(images, labels)
    torch.testing.assert_close(uncut, table, rtol=1e-12, atol=1e-16)
    sums = by_unit(relevance, table)
    for kind in {group.kind for group in relevance.units}:
        alone = unit_sums(model, images, labels, kinds=(kind,))
        assert alone.keys() == {group.name for group in relevance.units if group.kind == kind}
        for name, found in alone.items():
            assert relative_l1(found, sums[name]) < 1e-12, name


def test_a_class_token_is_all_that_the_last_block_computes_and_nothing_changes():
    """A head that reads the class token, and one that adds 0 times the other tokens, which spoils the cut."""

    class Spoiled(nn.Module):
        def __init__(self, vit):
            super().__init__()
            self.vit, self.nothing = vit, nn.Parameter(torch.zeros(()))

        def forward(self, x):
            tokens = self.vit.forward_features(x)
            tokens = torch.cat((tokens[:, :1] + self.nothing * tokens[:, 1:].mean(1, keepdim=True), tokens[:, 1:]), 1)
            return self.vit.forward_head(tokens)

    model, images, labels = small_vit()
    model, images = model.double(), images.double()
    # A sum is stabilised once more in the spoiled network, so the two agree to the stabilizer, not to the last digit.
    cut, whole = unit_sums(model, images, labels), unit_sums(Spoiled(model).double(), images, labels)
    for name, sums in cut.items():
        assert relative_l1(whole[f"vit.{name}"], sums) < 1e-4, name


@pytest.mark.parametrize("build", [*NETWORKS, pytest.param(vit_of_65_tokens, id="vit-65")])
def test_bfloat16_ranks_units_as_float32_does(build):
    model, images, labels = build()
    full = Relevance(model, images).run(images, labels)
    short = Relevance(model, images, dtype=torch.bfloat16).run(images, labels)
    assert short.dtype == torch.float32
    a, b = (t[1].sum(0).argsort().argsort().double() for t in (full, short))
    assert torch.corrcoef(torch.stack((a, b)))[0, 1] > 0.98
    assert relative_l1(short[1].sum(0), full[1].sum(0)) < 0.15


@pytest.mark.parametrize("build", NETWORKS)
def test_float32_takes_quicker_kernels_to_the_same_scores(build):
    model, images, labels = build()
    truth = Relevance(copy.deepcopy(model).double(), images.double()).run(images.double(), labels)[1].sum(0)
    exact, quick = (Relevance(model, images, exact=choice).run(images, labels)[1].sum(0) for choice in (True, False))
    assert relative_l1(quick, truth) < max(1e-5, 10 * relative_l1(exact, truth))


def test_another_dtype_than_the_models():
    model, images, labels = small_resnet()
    truth = Relevance(copy.deepcopy(model).double(), images.double()).run(images.double(), labels)
    found = Relevance(model, images, dtype=torch.float64).run(images, labels)
    assert found.dtype == torch.float64
    assert relative_l1(found, truth) < 1e-12  # folded weights are not rounded to the model's own dtype first


def test_an_operator_without_a_rule_is_named_once():
    class Cubic(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 10)

        def forward(self, x):
            x = self.conv(x)
            return self.head(torch.sin(torch.sin(x)).mean((2, 3)))

    images, labels = pictures(2, 8, classes=10)
    with pytest.warns(UserWarning, match="aten.sin") as caught:
        relevance = Relevance(Cubic().eval(), images)
    assert len(caught) == 1
    assert list(relevance.program.fallbacks.values()) == [2]
    assert torch.isfinite(relevance.run(images, labels)).all()


def test_a_network_with_rules_for_everything_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for build in (small_resnet, small_vit):
            model, images, _ = build()
            assert not Relevance(model, images).program.fallbacks


def test_labels_and_images_that_do_not_fit_are_refused():
    model, images, labels = small_resnet()
    relevance = Relevance(model, images)
    for wrong in (torch.full((5,), 10), torch.full((5,), -1)):
        with pytest.raises(DataError, match="10 classes"):
            relevance.run(images, wrong)
    with pytest.raises(DataError, match="int64"):
        relevance.run(images, labels.float())
    with pytest.raises(DataError, match="int64"):
        relevance.run(images, labels[:3])
    with pytest.raises(DataError, match="32"):
        relevance.run(images[..., :24], labels)
    with pytest.raises(PxpError, match="two"):
        relevance.run(images, labels, initial="two")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    model, images, _ = small_resnet()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = value
    with pytest.raises(ModelError, match=r"layer2\.0\.conv1\.weight"):
        Relevance(model, images)


class BranchesOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(27, 4)

    def forward(self, x):
        return self.fc(x.flatten(1)) if x.sum() > 0 else -self.fc(x.flatten(1))


class NoLogits(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return self.conv(x)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(27, 4)

    def forward(self, x):
        return self.fc(x.flatten(1) + torch.randn_like(x.flatten(1)))


class BatchStatistics(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("network", [BranchesOnData, NoLogits, Noisy, BatchStatistics])
def test_a_model_that_cannot_be_explained_is_refused(network):
    with pytest.raises(CaptureError) as caught:
        Relevance(network().eval(), torch.randn(2, 3, 3, 3))
    assert len(str(caught.value)) > 40


@pytest.mark.parametrize("build", [*NETWORKS, pytest.param(vit_of_65_tokens, id="vit-65")])
def test_fused_products_score_as_separate_ones(build):
    model, images, labels = build()
    model, images = copy.deepcopy(model).double(), images.double()
    truth = Relevance(model, images).run(images, labels)
    assert relative_l1(Relevance(model, images, fused=True).run(images, labels), truth) < 1e-12


def test_attention_leaves_its_split_to_the_weights_below():
    model, images, _ = small_vit()
    relevance = Relevance(model, images, fused=True)
    attentions = [step for step in relevance.program.steps if isinstance(step, Attention)]
    layers = [step for step in relevance.program.steps if isinstance(step, FusedLinear) and step.shares is not None]
    assert attentions and all(step.shares == (1, 1, 1) for step in attentions)
    assert len(layers) == len(attentions)
    for layer in layers:  # queries, keys and values side by side
        assert layer.shares.view(3, -1).unique(dim=1).tolist() == [[0.25], [0.25], [0.5]]
