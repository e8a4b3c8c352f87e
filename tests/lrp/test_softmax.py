"""Softmax rules: the closed form against the Jacobian, whole networks against relevance written from its definition."""

import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from oracles import definition
from oracles.engine import by_unit, observed, relative_l1, unit_sums
from oracles.explicit_vit import from_timm, from_torchvision
from oracles.networks import pictures, randomise
from oracles.operators import Tokens, attention, build_network, softmax_between_matmuls
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pxp_fast.criteria import Relevance
from pxp_fast.lrp import Composite
from pxp_fast.lrp.attention_matrices import Settings, pull_back
from pxp_fast.lrp.softmax import z_plus

PLUS = ["z-plus", "z-plus-bias"]
RULES = [*PLUS, "cp"]
CONFIG = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 10}


def by_jacobian(x, relevance, eps, virtual_bias):
    """z-plus on the linearisation of softmax at x [..., T], every J_ji x_i a number of its own: relevance of x."""
    s = x.softmax(-1)
    jacobian = torch.diag_embed(s) - s.unsqueeze(-1) * s.unsqueeze(-2)  # [..., j, i]
    contributions = jacobian * x.unsqueeze(-2)
    denominator = contributions.clamp_min(0).sum(-1)
    if virtual_bias:
        denominator = denominator + (s - contributions.sum(-1)).clamp_min(0)
    portion = definition.share(relevance, definition.stab(denominator, eps))
    return (contributions.clamp_min(0) * portion.unsqueeze(-1)).sum(-2)


class Definition(definition.Definition):
    """Relevance by definition, with another rule for softmax."""

    def __init__(self, model, epsilon, rule):
        super().__init__(model, epsilon)
        self.rule = rule

    def attend(self, weights, values, relevance):
        """Relevance of attention's weights and values: under CP the weights are constants."""
        if self.rule != "cp":
            return definition.matmul_rule(weights, values, relevance, self.epsilon)
        portion = relevance / definition.stab(weights @ values, self.epsilon)
        return torch.zeros_like(weights), values * (weights.mT @ portion)

    def softmax(self, x, relevance):
        return (
            torch.zeros_like(x) if self.rule == "cp" else by_jacobian(x, relevance, self.epsilon, self.rule != "z-plus")
        )

    def share_out(self, node, here, value, live, owner, result):
        kind, args, kwargs = (
            self.kind(node),
            *torch.fx.node.map_arg((node.args, node.kwargs), lambda n: value[n]),
        )
        if kind in definition.SOFTMAX:
            return [(node.args[0], self.softmax(args[0], here))]
        if kind in definition.MATMUL and self.kind(node.args[0]) in definition.SOFTMAX:
            return list(zip(node.args, self.attend(*args, here), strict=True))
        if kind is definition.ATTENTION:
            q, k, v = args
            factor = kwargs.get("scale") or q.shape[-1] ** -0.5
            logits = q @ k.mT * factor + (0 if kwargs.get("attn_mask") is None else kwargs["attn_mask"])
            weights = logits.softmax(-1)
            at_weights, at_values = self.attend(weights, v, here)
            through = definition.share(here * (weights @ v), definition.stab(weights @ v, self.epsilon))
            # What passes through a head: under CP its weights get nothing, and its relevance is all that it handles.
            result.attention.append(at_weights if self.rule != "cp" else through)
            # By proportion of each q_d k_d to the logit that the softmax's rule explained, the mask set aside.
            carry = definition.share(self.softmax(logits, at_weights), logits) / 2 * factor
            return list(zip(node.args, (q * (carry @ k), k * (carry.mT @ q), at_values), strict=True))
        return super().share_out(node, here, value, live, owner, result)


def rows(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2)]


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("virtual_bias", [False, True])
@pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
def test_z_plus_in_closed_form_is_that_of_the_jacobian(virtual_bias, eps, scale):
    x, carry = rows(4, 5, 33)
    x = x * scale
    s = x.softmax(-1)
    found = x * z_plus(x, s, carry.clone(), eps, virtual_bias)
    assert relative_l1(found, by_jacobian(x, carry * s, eps, virtual_bias)) < 1e-10


@pytest.mark.parametrize("virtual_bias", [False, True])
def test_z_plus_of_rows_that_are_all_of_one_sign_or_nearly(virtual_bias):
    x, carry = rows(6, 9)
    x[0], x[1], x[2, 1:], x[3, 1:] = x[0].abs(), -x[1].abs(), x[2, 1:].abs(), -x[3, 1:].abs()
    x[2, 0], x[3, 0], x[4] = -1.0, 2.0, 0.0
    s = x.softmax(-1)
    truth = by_jacobian(x, carry * s, 1e-6, virtual_bias)
    assert relative_l1(x * z_plus(x, s, carry.clone(), 1e-6, virtual_bias), truth) < 1e-10
    single = [t.float() for t in (x, s, carry)]
    assert relative_l1(single[0] * z_plus(*single, 1e-6, virtual_bias), truth) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_z_plus_conserves_relevance(dtype):
    """Without the virtual bias, where any contribution is positive; the virtual bias keeps a part for itself."""
    x, carry = rows(7, 50, dtype=dtype)
    s = x.softmax(-1)
    given = (carry * s).sum(-1)
    tolerance = {"rtol": 0, "atol": 1e3 * torch.finfo(dtype).eps}
    torch.testing.assert_close((x * z_plus(x, s, carry.clone(), 0.0, False)).sum(-1), given, **tolerance)
    positive = carry.abs()
    kept = (x * z_plus(x, s, positive.clone(), 0.0, True)).sum(-1)
    assert (kept > 0).all() and (kept < 0.9 * (positive * s).sum(-1)).all()


NETWORKS = {
    "fused": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "scale": lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.9),
    "few queries": lambda m, q, k, v: F.pad(F.scaled_dot_product_attention(q[:, :, :3], k, v), (0, 0, 0, 78)),
    "written out": softmax_between_matmuls,
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", NETWORKS)
def test_attention_follows_its_definition(name, rule):
    model, images, labels = build_network(Tokens, lambda: attention(NETWORKS[name]))
    epsilon = 1e-6
    truth = Definition(model, epsilon, rule)(images, labels)
    composite = Composite(stabilizer=epsilon, softmax=rule)
    found = observed(model, images, labels, composite)[-1][1]
    assert relative_l1(found, truth.input) < 1e-9
    if name in ("fused", "scale"):
        heads = unit_sums(model, images, labels, composite=composite, kinds=("head",))
        per_query = truth.attention[0].sum(-1)
        expected = torch.stack((per_query.sum(-1), per_query.abs().sum(-1)))
        assert relative_l1(heads["middle"], expected) < 1e-9


@pytest.mark.parametrize("rule", RULES)
def test_a_vit_follows_its_definition(rule):
    torch.manual_seed(0)
    images, labels = pictures(3, 32, classes=10)
    images = images.double()
    model = randomise(VisionTransformer(**CONFIG), images.float()).double()
    truth = Definition(from_timm(model), 1e-6, rule)(images, labels)
    composite = Composite(softmax=rule)
    fused = unit_sums(model, images, labels, composite=composite)
    for block, at_softmax in enumerate(truth.attention):
        for layer in ("fc1", "fc2"):
            at = truth.at[f"blocks.{block}.{layer}"]
            expected = torch.stack((at.sum(1), at.abs().sum(1)))
            assert relative_l1(fused[f"blocks.{block}.mlp.{layer}"], expected) < 1e-9
        per_query = at_softmax.sum(-1)
        expected = torch.stack((per_query.sum(-1), per_query.abs().sum(-1)))
        assert relative_l1(fused[f"blocks.{block}.attn"], expected) < 1e-9
    again = unit_sums(model, images, labels, composite=composite, fused=True)
    for block in model.blocks:
        block.attn.fused_attn = False
    written_out = unit_sums(model, images, labels, composite=composite)
    for name, sums in fused.items():
        assert relative_l1(again[name], sums) < 1e-10, name
        assert relative_l1(written_out[name], sums) < 1e-4, name  # a logit's split is stabilised only there


def explicit(q, k, v, bias=None, scale=None):
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale) + (0 if bias is None else bias)
    return logits, logits.softmax(-1)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", ["plain", "bool", "added", "causal", "grouped", "broadcast"])
def test_masks_and_shapes_of_fused_attention(kind, rule):
    """Keys that a mask hides take no part: the same as attention over the keys that are seen."""
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    heads = 1 if kind == "broadcast" else 2 if kind == "grouped" else 4
    q, k, v, c = make(3, 4, 5, 6), make(3, heads, 7, 6), make(3, heads, 7, 6), make(3, 4, 5, 6)
    seen = torch.rand(1, 1, 5, 7, generator=generator) < 0.6
    seen[..., 0] = True
    bias, causal = None, kind == "causal"
    if causal:
        seen = torch.ones(5, 7, dtype=torch.bool).tril().view(1, 1, 5, 7)
    if kind in ("bool", "added", "causal"):
        bias = torch.zeros(1, 1, 5, 7, dtype=torch.float64).masked_fill_(~seen, -torch.inf)
    mask = {"bool": seen, "added": bias}.get(kind)
    wide_k, wide_v = (t.repeat_interleave(4 // heads, 1) for t in (k, v))
    out = F.scaled_dot_product_attention(
        q, k if kind != "broadcast" else wide_k, v if kind != "broadcast" else wide_v, mask,
        is_causal=causal, enable_gqa=kind == "grouped",
    )  # fmt: skip
    found = pull_back((q, k, v), out, c, (0.25, 0.25, 0.5), Settings(6**-0.5, mask, causal), rule, 1e-6)
    logits, weights = explicit(q, wide_k, wide_v, bias)
    assert relative_l1(weights @ wide_v, out) < 1e-12
    at_v = weights.mT @ c
    if rule == "cp":
        expected = (None, None, at_v * 0.5)
    else:
        at_weights = (c @ wide_v.mT) * weights
        at = torch.zeros_like(logits)
        for n in range(3):
            for h in range(4):
                for query in range(5):
                    keys = torch.isfinite(logits[n, h, query])
                    x, r = logits[n, h, query, keys], at_weights[n, h, query, keys]
                    at[n, h, query, keys] = by_jacobian(x, r, 1e-6, rule != "z-plus") / x
        at = at * 6**-0.5
        expected = (at @ wide_k * 0.25, at.mT @ q * 0.25, at_v * 0.5)
    for place, (one, other) in enumerate(zip(found, expected, strict=True)):
        if other is not None and place and heads < 4:
            other = other.unflatten(1, (heads, -1)).sum(2)
        assert one is None if other is None else relative_l1(one, other) < 1e-10


@pytest.mark.parametrize("rule", PLUS)
def test_windows_with_bias_and_mask(rule):
    """Swin: a position bias is added and shifted windows hide keys, by -100 in timm, written out in torchvision."""
    torch.manual_seed(0)
    images, labels = pictures(2, 32, classes=10)
    options = {"img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 24, "depths": (2,), "num_heads": (3,)}
    model = timm.models.swin_transformer.SwinTransformer(num_classes=10, **options)
    model = randomise(model, images).double()
    found = []
    for fused in (True, False):
        for block in model.layers[0].blocks:
            block.attn.fused_attn = fused
        found.append(unit_sums(model, images.double(), labels, composite=Composite(softmax=rule)))
    assert len(found[0]) == 6
    for name, sums in found[0].items():
        assert sums[1].any() and relative_l1(found[1][name], sums) < 1e-4, name


def test_a_gate_is_stopped_and_a_softmax_at_the_end_is_not():
    """CP keeps relevance out of what weighs; class probabilities weigh nothing and explain as ever."""

    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            gated = self.conv(x) * self.gate(x).mean((2, 3), keepdim=True).softmax(1)
            return self.head(gated.mean((2, 3))).softmax(1)

    torch.manual_seed(0)
    images, labels = pictures(3, 8, classes=5)
    model = Ends().double().eval()
    plain, stopped = (
        unit_sums(model, images.double(), labels, composite=Composite(softmax=r)) for r in ("epsilon", "cp")
    )
    assert plain["gate"][1].any() and not stopped["gate"][1].any()
    torch.testing.assert_close(stopped["conv"], 2 * plain["conv"])


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_ranks_as_float64_does(rule):
    torch.manual_seed(0)
    images, _ = pictures(4, 64)
    model = randomise(VisionTransformer(**(CONFIG | {"img_size": 64})), images)
    labels = model(images).argmax(1)
    composite = Composite(softmax=rule)
    truth = Relevance(model, images, composite=composite, dtype=torch.float64).run(images, labels)[1].sum(0)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.15)):
        found = Relevance(model, images, composite=composite, dtype=dtype).run(images, labels)[1].sum(0)
        assert relative_l1(found, truth) < tolerance


LXT = """
import sys
import torch
import transformers.pytorch_utils as utilities
for name in ("find_pruneable_heads_and_indices", "prune_linear_layer", "apply_chunking_to_forward"):
    if not hasattr(utilities, name):
        setattr(utilities, name, None)
import torchvision
from lxt.efficient import monkey_patch
from torchvision.models import vision_transformer
monkey_patch(vision_transformer)
asked = torch.load(sys.argv[1])
model = torchvision.models.VisionTransformer(**asked["config"]).double().eval()
model.load_state_dict(asked["state"])
x = asked["images"].requires_grad_()
chosen = model(x).gather(1, asked["targets"][:, None])
torch.save(x.detach() * torch.autograd.grad(chosen, x, 1 / chosen.detach())[0], sys.argv[2])
"""


def test_cp_equals_lxts(tmp_path):
    """LXT's cp-lrp for torchvision's ViT, in a process of its own: it patches classes for good. No stabilizer."""
    torch.manual_seed(0)
    config = {
        "image_size": 32, "patch_size": 8, "num_layers": 2, "num_heads": 4, "hidden_dim": 24, "mlp_dim": 48,
        "num_classes": 10,
    }  # fmt: skip
    images, labels = pictures(3, 32, classes=10)
    model = randomise(torchvision.models.VisionTransformer(**config), images).double()
    question, answer, script = (tmp_path / name for name in ("question.pt", "answer.pt", "ask.py"))
    torch.save({"config": config, "state": model.state_dict(), "images": images.double(), "targets": labels}, question)
    script.write_text(LXT)
    subprocess.run([sys.executable, script, question, answer], check=True, capture_output=True, text=True)
    composite = Composite(stabilizer=0.0, softmax="cp")
    found = observed(model, images.double(), labels, composite)[-1][1]
    assert relative_l1(found, torch.load(answer)) < 1e-7  # what LXT's activation rule itself carries
    assert relative_l1(found, Definition(from_torchvision(model), 0.0, "cp")(images.double(), labels).input) < 1e-9


def test_cp_conserves_and_its_heads_hold_all_that_passes_them():
    """Without biases or a class token's constant no relevance is lost in attention that is held constant."""
    model, images, labels = build_network(Tokens, lambda: attention(NETWORKS["fused"]))
    for module in model.modules():
        if getattr(module, "bias", None) is not None and isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.zeros_(module.bias)
    composite = Composite(stabilizer=0.0, softmax="cp")
    seen = observed(model, images, labels, composite)
    torch.testing.assert_close(seen[-1][1].flatten(1).sum(1), torch.ones(3).double(), rtol=0, atol=1e-9)
    relevance = Relevance(model, images, composite=composite, kinds=("head",))
    heads = by_unit(relevance, relevance.run(images, labels))["middle"][0].sum(1)
    side_by_side = next(r for name, r in seen if name == "flatten_1")  # what the projection reads
    torch.testing.assert_close(heads, side_by_side.flatten(1).sum(1), rtol=1e-9, atol=1e-12)
