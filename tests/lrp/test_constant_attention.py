"""Attention of which a query, key or value is a parameter: relevance is split among the factors that carry any."""

import pytest
import torch
import torch.nn.functional as F
from oracles.definition import matmul_rule, stab
from oracles.engine import observed, relative_l1, unit_sums
from oracles.networks import pictures, randomise
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from pxp_fast.lrp import Composite

EPSILON = 1e-9
NAMES = ("query", "key", "value")


class Attending(nn.Module):
    """Attention of 2 heads over 8 tokens of 6 features; what is not in `carry` is a parameter."""

    def __init__(self, carry, fused):
        super().__init__()
        self.carry, self.fused = carry, fused
        self.layers = nn.ModuleDict({name: nn.Linear(6, 6, bias=False) for name in NAMES})
        self.constants = nn.ParameterDict({name: nn.Parameter(torch.randn(1, 2, 8, 6)) for name in NAMES})
        self.head = nn.Linear(96, 5, bias=False)

    def operands(self, images):
        shape = images.shape[0], -1, -1, -1
        return [self.layers[n](images) if n in self.carry else self.constants[n].expand(shape) for n in NAMES]

    def forward(self, images):
        query, key, value = self.operands(images)
        if self.fused:
            out = F.scaled_dot_product_attention(query, key, value)
        else:
            out = (query @ key.transpose(-2, -1) * 6**-0.5).softmax(-1) @ value
        return self.head(out.flatten(1))


def split(a, b, relevance, carry):
    """Uniform split of ``a b`` between the factors that carry relevance, of which there is at least one."""
    if all(carry):
        return matmul_rule(a, b, relevance, EPSILON)
    portion = relevance / stab(a @ b, EPSILON)
    return a * (portion @ b.mT) if carry[0] else None, b * (a.mT @ portion) if carry[1] else None


def by_definition(operands, carry, relevance, softmax):
    """The relevance of the operands that carry any."""
    query, key, value = operands
    carries = [name in carry for name in NAMES]
    logits = query @ key.mT * 6**-0.5
    weights = logits.softmax(-1)
    weighing = any(carries[:2]) and softmax != "cp"
    at_weights, at_value = split(weights, value, relevance, (weighing, carries[2]))
    if not weighing:
        return {"value": at_value}
    at_logits = logits * (at_weights - weights * at_weights.sum(-1, keepdim=True))
    at_query, at_key = split(query * 6**-0.5, key.mT, at_logits, carries[:2])
    found = {"query": at_query, "key": None if at_key is None else at_key.mT, "value": at_value}
    return {name: found[name] for name in carry}


@pytest.mark.parametrize("softmax", ["epsilon", "cp"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(
    "carry", [NAMES, NAMES[1:], NAMES[::2], NAMES[:2], NAMES[:1], NAMES[1:2], NAMES[2:]], ids=" ".join
)
def test_the_factors_that_carry_relevance_share_it(carry, fused, softmax):
    if softmax == "cp" and "value" not in carry:
        return  # the values alone get any, and they are no one's
    torch.manual_seed(0)
    model = Attending(carry, fused).double().eval()
    images, labels = torch.randn(3, 2, 8, 6, dtype=torch.float64), torch.tensor([0, 3, 4])
    seen = observed(model, images, labels, Composite(stabilizer=EPSILON, softmax=softmax))
    relevance = next(r for name, r in seen if r.shape == (3, 2, 8, 6))  # the first on the way back: attention's output
    truth = by_definition(model.operands(images), carry, relevance, softmax)
    layers = [r for name, r in seen if name.startswith("linear") and r.dim() == 4][::-1]
    for name, found in zip([n for n in NAMES if n in truth], layers, strict=True):
        assert relative_l1(found, truth[name]) < 1e-6, name


@pytest.mark.parametrize("softmax", ["epsilon", "z-plus", "cp"])
def test_a_learned_query_loses_no_relevance(softmax):
    """timm's attention pooling: fused and written out alike; heads are read by the same share."""
    torch.manual_seed(0)
    images, labels = pictures(3, 16, classes=4)
    config = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 3, "num_classes": 4}
    model = randomise(VisionTransformer(**config, global_pool="map", class_token=False), images).double()
    found = []
    for fused in (True, False):
        model.attn_pool.fused_attn = fused
        found.append(
            unit_sums(model, images.double(), labels, composite=Composite(stabilizer=EPSILON, softmax=softmax))
        )
    assert set(found[0]) == set(found[1]) and "attn_pool" in found[0]
    for name, sums in found[0].items():
        assert relative_l1(found[1][name], sums) < 1e-5, name
