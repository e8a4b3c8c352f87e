"""zennit's epsilon rule, registered once, on the network with its batch norms folded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from zennit.composites import LayerMapComposite
from zennit.core import Hook
from zennit.layer import Sum
from zennit.rules import Epsilon, Norm, Pass
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, Linear

from ..networks import fold
from .interface import Peer

EPSILON = 1e-6


def epsilon_rules(weighted: Hook | None = None) -> LayerMapComposite:
    """The epsilon rule for sums and pools, and for weights unless another is given.

    The canonizer makes torchvision's residual sums modules.
    """
    rules = [(Activation, Pass()), (Sum, Norm()), (AvgPool, Norm()), (Linear, weighted or Epsilon(EPSILON))]
    return LayerMapComposite(rules, canonizers=[ResNetCanonizer()])


def positions(relevance: Tensor) -> tuple[int, ...]:
    """The dimensions of a layer's output that a unit's relevance is summed over: pixels, or tokens."""
    return (2, 3) if relevance.dim() == 4 else tuple(range(1, relevance.dim() - 1))


class Zennit(Peer):
    """Unit sums are read where zennit leaves relevance: as the gradient at a layer's output."""

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype, rule: Hook | None = None) -> None:
        self.model = fold(model).to(dtype)
        self.dtype = dtype
        epsilon_rules(rule).register(self.model)
        self.sums: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(self._reader(name))

    def _reader(self, name: str):
        def read(relevance: Tensor) -> None:
            dims = positions(relevance)
            self.sums[name] = relevance.sum(dims) if dims else relevance.clone()

        return lambda module, inputs, output: output.register_hook(read) and None

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(self.dtype)

    def run(self, images: Tensor, labels: Tensor) -> None:
        x = images.detach().clone().requires_grad_()
        logits = self.model(x)
        start = torch.zeros_like(logits).scatter_(1, labels[:, None], 1)
        torch.autograd.grad(logits, x, start)

    def unit_sums(self) -> dict[str, Tensor]:
        return self.sums
