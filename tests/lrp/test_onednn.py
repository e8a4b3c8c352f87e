"""oneDNN's packed layers against autograd in float64."""

import pytest
import torch
from oracles.engine import relative_l1
from torch import nn

from pxp_fast.criteria import Relevance
from pxp_fast.lrp.carry import Held
from pxp_fast.lrp.onednn import (
    MirroredProduct,
    OneLinear,
    PackedConvolution,
    ScatteredProduct,
    TransposedProduct,
    serves,
)
from pxp_fast.lrp.rules import Run

CPU = torch.device("cpu")
DTYPES = [
    pytest.param(
        dtype,
        id=str(dtype).removeprefix("torch."),
        marks=pytest.mark.skipif(not serves(CPU, dtype), reason="this processor's oneDNN does not take the dtype"),
    )
    for dtype in (torch.float32, torch.bfloat16)
]
BOUND = {torch.float32: 1e-6, torch.bfloat16: 1e-2}

# Kernel, stride, padding, dilation, groups: what a convolution's input gradient can be asked for.
CONVOLUTIONS = {
    "pointwise": (1, 1, 0, 1, 1),
    "pointwise, padded": (1, 1, 1, 1, 1),
    "3x3": (3, 1, 1, 1, 1),
    "3x3, no padding": (3, 1, 0, 1, 1),
    "even kernel": (4, 1, 2, 1, 1),
    "7x7": (7, 1, 3, 1, 1),
    "oblong": ((3, 5), 1, (1, 0), 1, 1),
    "more padding than kernel": (3, 1, 3, 1, 1),
    "dilated": (3, 1, 2, 2, 1),
    "grouped": (3, 1, 1, 1, 4),
    "depthwise": (3, 1, 1, 1, 16),
    "strided": (3, 2, 1, 1, 1),
    "strided, pointwise": (1, 2, 0, 1, 1),
    "strided, grouped": (3, (2, 1), 1, 1, 2),
}


class Between(nn.Module):
    """The layer between two that are read, so that its input gradient is taken."""

    def __init__(self, layer: nn.Module, convolutional: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1) if convolutional else nn.Linear(8, 16)
        self.layer = layer
        self.head = nn.Linear(16, 5)
        self.convolutional = convolutional

    def forward(self, x):
        x = torch.relu(self.first(x if self.convolutional else x.flatten(1, 2)))
        x = torch.relu(self.layer(x))
        return self.head(x.mean((2, 3) if self.convolutional else 1))


def step_of(relevance: Relevance, kind: type):
    return [step for step in relevance.program.steps if type(step) is kind][1]


def check(model: nn.Module, images: torch.Tensor, kind: type, dtype: torch.dtype) -> None:
    """The layer's product, and what it hands down, are those of the definition."""
    relevance = Relevance(model, images, dtype=dtype)
    step = step_of(relevance, kind)
    generator = torch.Generator().manual_seed(4)
    weight, bias = (getattr(model.layer, name).detach().to(dtype) for name in ("weight", "bias"))
    shape = (3, *step.node.args[0].meta["val"].shape[1:])
    source = torch.randn(shape, generator=generator).to(dtype)
    source = source.contiguous(memory_format=torch.channels_last) if source.dim() == 4 else source
    run = Run(
        {step.node, step.node.args[0]}, {step.node.args[0]: source, **relevance.program.constants}, None, spent=False
    )
    value, saved = step.forward(run)
    wide = source.double().requires_grad_()
    truth = step.node.target(wide, weight.double(), bias.double(), *step.node.args[3:])
    assert relative_l1(value, truth.detach().relu()) < BOUND[dtype]

    scaled = torch.randn(truth.shape, generator=generator).to(dtype)
    scaled = scaled.contiguous(memory_format=torch.channels_last) if scaled.dim() == 4 else scaled
    gradient = torch.autograd.grad(truth, wide, scaled.double())[0]
    saved = saved[0], weight, saved[2]
    assert relative_l1(step.transposed(scaled, *saved[1:]).tensor(), gradient) < BOUND[dtype]
    rest = torch.randn(gradient.shape, generator=generator).to(dtype)
    for layout in (torch.contiguous_format, torch.channels_last)[: gradient.dim() - 2]:
        joining = rest.clone(memory_format=layout)
        joined = step.transposed(scaled, *saved[1:]).joined(Held(joining, 1))
        assert relative_l1(joined.tensor(), gradient + rest.double()) < BOUND[dtype]
        kept = step.transposed(scaled, *saved[1:]).joined(Held(rest))
        assert relative_l1(kept.tensor(), gradient + rest.double()) < BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("geometry", CONVOLUTIONS)
def test_convolution(geometry, dtype):
    kernel, stride, padding, dilation, groups = CONVOLUTIONS[geometry]
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 16, kernel, stride, padding, dilation, groups)
    check(Between(layer, convolutional=True).eval(), torch.randn(2, 3, 11, 9), PackedConvolution, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_linear(dtype):
    torch.manual_seed(0)
    check(Between(nn.Linear(16, 16), convolutional=False).eval(), torch.randn(2, 3, 4, 8), OneLinear, dtype)


WAYS = {
    "3x3": MirroredProduct,
    "pointwise, padded": TransposedProduct,
    "strided": TransposedProduct,
    "strided, pointwise": ScatteredProduct,
}


@pytest.mark.parametrize("geometry", WAYS)
def test_no_weight_is_kept_but_the_packed_ones(geometry):
    kernel, stride, padding, *_ = CONVOLUTIONS[geometry]
    torch.manual_seed(0)
    model = Between(nn.Conv2d(16, 16, kernel, stride, padding), convolutional=True).eval()
    step = step_of(Relevance(model, torch.randn(2, 3, 8, 8)), PackedConvolution)
    assert step.way_back is WAYS[geometry]
    assert step.weight is None
