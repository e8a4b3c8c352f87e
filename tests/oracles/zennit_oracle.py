"""zennit 0.5.1 as a truth for torchvision's VGG and ResNet: relevance sums of every convolution and linear layer.

zennit's merged batch norm keeps ``running_var = 1`` and ``eps = 1e-5``, a factor 1/sqrt(1 + 1e-5) that no true fold
has, so batch norm is folded here before zennit sees the model.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from zennit.composites import LayerMapComposite
from zennit.core import Hook
from zennit.layer import Sum
from zennit.rules import Epsilon, Norm, Pass
from zennit.torchvision import ResNetCanonizer
from zennit.types import Activation, AvgPool, Linear


def folded(model: nn.Module) -> nn.Module:
    """A copy of `model` whose batch norms live in the convolutions before them (torchvision's VGG and ResNet)."""
    model = copy.deepcopy(model).eval()
    for parent in list(model.modules()):
        names = list(parent._modules)
        for first, second in zip(names, names[1:], strict=False):
            convolution, norm = parent._modules[first], parent._modules[second]
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent._modules[first] = fuse_conv_bn_eval(convolution, norm)
                parent._modules[second] = nn.Identity()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    return model


def composite(rule: Hook) -> LayerMapComposite:
    """One rule for all convolutions and linear layers."""
    rules = [(Activation, Pass()), (Sum, Norm()), (AvgPool, Norm()), (Linear, rule)]
    return LayerMapComposite(rules, canonizers=[ResNetCanonizer()])


class ZennitOracle:
    """Registered once on a folded copy of `model`; `run` may be called again and again."""

    def __init__(
        self, model: nn.Module, epsilon: float = 1e-6, rule: Hook | None = None, rules: LayerMapComposite | None = None
    ) -> None:
        self.model = folded(model)
        self.composite = rules or composite(rule or Epsilon(epsilon))
        self.composite.register(self.model)
        self.sums: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(self._recorder(name))

    def _recorder(self, name: str):
        def record(gradient: Tensor) -> None:
            relevance = gradient.unsqueeze(-1).flatten(2)
            self.sums[name] = torch.stack((relevance.sum(2), relevance.abs().sum(2)))

        def hook(module: nn.Module, inputs, output: Tensor) -> None:
            output.register_hook(record)

        return hook

    def run(self, images: Tensor, targets: Tensor, initial: str = "one") -> tuple[dict[str, Tensor], Tensor]:
        """Layer name -> [2, N, channels]: signed and absolute sums over positions; and the input's relevance."""
        self.sums = {}
        x = images.detach().clone().requires_grad_()
        logits = self.model(x)
        start = torch.eye(logits.shape[1], dtype=logits.dtype)[targets]
        if initial == "logit":
            start = start * logits.detach()
        (at_input,) = torch.autograd.grad(logits, x, start)
        return self.sums, at_input
