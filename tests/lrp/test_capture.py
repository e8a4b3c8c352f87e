"""What capture refuses, what it leaves alone, and which units it finds where networks are written unusually."""

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from pxp_fast import masked, plan, score
from pxp_fast.criteria import Relevance
from pxp_fast.errors import CaptureError

IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2])


class Between(nn.Module):
    """Convolution, then a function of the convolution's output, then pooling and a classifier."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.function = function

    def forward(self, x):
        return self.fc(self.function(self, self.conv(x)).mean((2, 3)))


def count_calls(model, hidden):
    model.calls.add_(1)
    return hidden


def write_under_a_view(model, hidden):
    view = hidden.flatten(2)
    F.relu_(hidden)
    return view.unflatten(2, (8, 8))


class Folded(nn.Module):
    """Two views of every image folded into the batch, images outermost or side by side."""

    def __init__(self, outermost):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc, self.outermost = nn.Conv2d(3, 4, 3), nn.Linear(4, 5), outermost

    def forward(self, x):
        views = torch.stack((x, x.flip(3)), 1).flatten(0, 1) if self.outermost else torch.cat((x, x.flip(3)))
        logits = self.fc(self.conv(views).relu().mean((2, 3)))
        return logits.unflatten(0, (-1, 2) if self.outermost else (2, -1)).mean(1 if self.outermost else 0)


class TwoOutputs(Between):
    def forward(self, x):
        hidden = self.conv(x).mean((2, 3))
        return hidden, self.fc(hidden)


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.scale = nn.Linear(192, 6), nn.Linear(6, 4), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return F.log_softmax(self.second(F.relu(self.first(x.flatten(1)))) * self.scale / 0.07, 1)


class TwoNorms(nn.Module):
    """One convolution used twice, each time with a norm of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 3, 1), nn.Linear(3, 4)
        self.one, self.two = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.fc(self.two(self.conv(self.one(self.conv(x)).relu())).relu().mean((2, 3)))


def counts(model):
    return {group.name: group.count for group in Relevance(model, IMAGES).units}


@pytest.mark.parametrize(
    "function",
    [
        lambda model, h: F.scaled_dot_product_attention(h, h, h, dropout_p=0.3),
        lambda model, h: h + torch.randn(4, 1, 1),
        lambda model, h: F.alpha_dropout(h, 0.5, True),
        write_under_a_view,
    ],
    ids=["attention that drops", "noise", "dropout always on", "a write under a view"],
)
def test_what_is_no_fixed_function_is_refused(function):
    with pytest.raises(CaptureError):
        Relevance(Between(function), IMAGES)


@pytest.mark.parametrize("inplace", [False, True])
def test_dropout_that_is_switched_off_changes_nothing(inplace):
    plain, dropping = (
        Between(f) for f in (lambda m, h: h.relu(), lambda m, h: F.dropout(h.relu(), 0.5, False, inplace))
    )
    assert torch.equal(*(score(m, [(IMAGES, LABELS)]).totals for m in (plain, dropping)))


def test_buffers_that_forward_writes_stay_the_models_own():
    model = Between(count_calls)
    score(model, [(IMAGES, LABELS)])
    assert model.calls == 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (TwoOutputs(None), "C = 4, 5"),
        (nn.DataParallel(Between(count_calls)), "model.module"),
        (torch.compile(Between(count_calls)), "torch.compile"),
        (Folded(outermost=False), "outermost"),
    ],
    ids=["two outputs", "data parallel", "compiled", "images side by side"],
)
def test_the_refusal_says_what_to_do(model, words):
    with pytest.raises(CaptureError, match=words):
        Relevance(model, IMAGES)


def test_images_folded_outermost_score_alike_in_any_batch():
    model = Folded(outermost=True).double()
    whole = score(model, [(IMAGES.double(), LABELS)])
    single = score(model, [(IMAGES[i : i + 1].double(), LABELS[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole.totals, single.totals, rtol=1e-12, atol=0)


def test_contexts_inside_forward_are_looked_through():
    def contexts(model, hidden):
        with torch.autocast("cpu", enabled=False):
            hidden = hidden.relu()
        with torch.no_grad():
            return hidden * 2

    plain, within = (Between(f) for f in (lambda model, h: h.relu() * 2, contexts))
    assert torch.equal(*(score(m, [(IMAGES, LABELS)]).totals for m in (plain, within)))


def test_inference_mode_and_autocast_around_the_call_change_nothing():
    model = Between(lambda model, h: h.relu())
    plain = score(model, [(IMAGES, LABELS)]).totals
    with torch.inference_mode():
        assert torch.equal(plain, score(model, [(IMAGES.clone(), LABELS)]).totals)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain, score(model, [(IMAGES, LABELS)]).totals)


def test_a_mask_of_minus_infinity_hides_and_harms_nothing():
    def attend(fill):
        def attention(model, hidden):
            tokens = hidden.flatten(2).transpose(1, 2)[:, :6]
            logits = tokens @ tokens.transpose(1, 2) + torch.full((6, 6), fill).triu(1)
            return (logits.softmax(-1) @ tokens).transpose(1, 2).unsqueeze(3)

        return score(Between(attention).double(), [(IMAGES.double(), LABELS)]).totals

    torch.testing.assert_close(attend(-torch.inf), attend(-1e4), rtol=1e-9, atol=0)


def test_the_classifier_is_no_unit_whatever_follows_it():
    assert counts(Scaled()) == {"first": 6}


def test_a_shared_layer_is_masked_with_all_its_norms():
    torch.manual_seed(0)
    model = TwoNorms().eval()
    for norm in (model.one, model.two):
        nn.init.normal_(norm.bias)
    scores = score(model, [(IMAGES, LABELS)])
    with masked(model, plan(scores, 0.5)) as pruned:
        gone = plan(scores, 0.5).groups[0].removed
        for norm in (model.one, model.two):
            out = norm(torch.nn.functional.conv2d(IMAGES, model.conv.weight, model.conv.bias))
            assert not out[:, list(gone)].any()
        assert pruned is model


def test_filters_with_standardised_weights_are_units_and_can_be_masked():
    torch.manual_seed(0)
    model = timm.create_model("test_nfnet").eval()
    images = torch.randn(2, *model.default_cfg["input_size"])
    scores = score(model, [(images, LABELS[:2])])
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert {g.name: g.count for g in scores.units} == {n: m.out_channels for n, m in convolutions.items()}
    chosen = plan(scores, 0.3, order="random", units=["filter"], norm="layer")
    outputs = {}
    hooks = [m.register_forward_hook(lambda m, i, o, n=n: outputs.update({n: o})) for n, m in convolutions.items()]
    with masked(model, chosen), torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    for group in chosen.groups:
        assert not outputs[group.name][:, list(group.removed)].any(), group.name


def test_fixed_filters_are_no_units():
    class Blurred(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)
            self.register_buffer("blur", torch.full((4, 1, 3, 3), 1 / 9))

        def forward(self, x):
            return self.fc(F.conv2d(self.conv(x).relu(), self.blur, groups=4).mean((2, 3)))

    with pytest.warns(UserWarning, match="not units"):
        assert counts(Blurred()) == {"conv": 4}
