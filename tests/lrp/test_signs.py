"""What is known never to be negative is not, and what can be seen not to be is known."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pxp_fast.lrp import capture
from pxp_fast.lrp.signs import nonnegative

BIAS = torch.linspace(-1, 1, 4).view(1, 4, 1, 1)

# A function of an activation y >= 0 and the signed x it was made from; whether its result is seen to be >= 0.
EXPRESSIONS = {
    "relu": (lambda y, x: y, True),
    "relu6": (lambda y, x: F.relu6(x), True),
    "sigmoid": (lambda y, x: x.sigmoid(), True),
    "hardtanh above 0": (lambda y, x: F.hardtanh(x, 0.0, 2.0), True),
    "hardtanh": (lambda y, x: F.hardtanh(x), False),
    "max pool": (lambda y, x: F.max_pool2d(y, 3, 1, 1), True),
    "average pool": (lambda y, x: F.avg_pool2d(y, 3, 1, 1), True),
    "adaptive pool": (lambda y, x: F.adaptive_avg_pool2d(y, 3), True),
    "sum": (lambda y, x: y + F.max_pool2d(y, 3, 1, 1), True),
    "weighted sum": (lambda y, x: torch.add(y, y, alpha=0.5), True),
    "subtracting sum": (lambda y, x: torch.add(y, y, alpha=-2), False),
    "sum with a signed one": (lambda y, x: y + x, False),
    "sum with a constant": (lambda y, x: y + BIAS, False),
    "sum with a positive constant": (lambda y, x: y + BIAS.abs(), True),
    "product": (lambda y, x: y * x.sigmoid(), True),
    "scaled": (lambda y, x: y * 0.5, True),
    "turned around": (lambda y, x: y * -0.5, False),
    "divided": (lambda y, x: y / 3, True),
    "cat": (lambda y, x: torch.cat((y, x.sigmoid()), 1)[:, :4], True),
    "cat with a signed one": (lambda y, x: torch.cat((y, x), 1)[:, 2:6], False),
    "views": (lambda y, x: y.permute(0, 2, 3, 1).flatten(1, 2).transpose(1, 2).unflatten(2, (6, 6)), True),
    "chunk": (lambda y, x: torch.cat(y.chunk(2, 1)[::-1], 1), True),
    "dropout": (lambda y, x: F.dropout(y, 0.5, False), True),
    "zero padding": (lambda y, x: F.pad(y, (1, 1))[..., 1:-1], True),
    "negative padding": (lambda y, x: F.pad(y, (1, 1), value=-1.0), False),
    "clamp": (lambda y, x: x.clamp(min=0), True),
    "clamp above -1": (lambda y, x: x.clamp(min=-1), False),
    "clamp between": (lambda y, x: x.clamp(0.0, 2.0), True),
    "clamp of what is positive, below 2": (lambda y, x: y.clamp(max=2.0), True),
    "clamp below -1": (lambda y, x: y.clamp(0.0, -1.0), False),
    "minimum": (lambda y, x: torch.minimum(y, x.sigmoid()), True),
    "minimum with a signed one": (lambda y, x: torch.minimum(y, x.flip(1)), False),
    "minimum with a constant": (lambda y, x: torch.minimum(y, BIAS), False),
    "maximum with a signed one": (lambda y, x: torch.maximum(x.flip(1), y), True),
    "maximum of signed ones": (lambda y, x: torch.maximum(x.flip(1), x), False),
    "bilinear": (lambda y, x: F.interpolate(y, scale_factor=2.0, mode="bilinear"), True),
    "bicubic": (lambda y, x: F.interpolate(y, scale_factor=2.0, mode="bicubic"), False),
    "gelu": (lambda y, x: F.gelu(x), False),
    "gelu of what is positive": (lambda y, x: F.gelu(y), True),
    "convolution": (lambda y, x: F.conv2d(y, torch.ones(4, 4, 1, 1)), False),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_sign(name):
    function, known = EXPRESSIONS[name]

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

        def forward(self, images):
            x = self.stem(images)
            return self.head(function(x.relu(), x)).mean((2, 3))

    torch.manual_seed(0)
    images = torch.randn(3, 3, 6, 6) * 3
    captured = capture(Net().eval(), images)
    found = nonnegative(captured.nodes(), captured.constants)
    (head,) = [n for n in captured.nodes() if n.target is torch.ops.aten.conv2d.default][-1:]
    assert (head.args[0] in found) == known
    assert captured.images not in found
    for node, value in captured.values(images, found).items():
        values = [v for v in (value if isinstance(value, (tuple, list)) else [value]) if v.is_floating_point()]
        assert all(bool((v >= 0).all()) for v in values), node
