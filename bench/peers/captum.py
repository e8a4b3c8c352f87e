"""captum's LayerLRP with the epsilon rule, on VGG.

Elsewhere it is left out. On ResNets its relevance is wrong (tests/bench/test_peers.py): a sum written as ``+`` has no
rule, so both branches get the whole relevance and it grows with every block. It knows neither layer norm nor attention,
and batch norm would be a layer of its own instead of being merged.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from .interface import Peer
from .zennit import EPSILON


class Captum(Peer):
    """captum starts from the label's logit, so its sums are divided by it here, after the clock has stopped."""

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
        from captum.attr import LayerLRP

        self.model = model.to(dtype)
        self.dtype = dtype
        # An activation that overwrites its input, which captum's hooks have already replaced, is an error.
        for module in self.model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        self.layers = {n: m for n, m in self.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        self.pools = [m for m in self.model.modules() if isinstance(m, (nn.AvgPool2d, nn.AdaptiveAvgPool2d))]
        self.method = LayerLRP(self.model, list(self.layers.values()))
        warnings.filterwarnings("ignore", message="Input Tensor 0 did not already require gradients")

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(self.dtype)

    def run(self, images: Tensor, labels: Tensor) -> None:
        from captum.attr._utils.lrp_rules import EpsilonRule

        for module in (*self.layers.values(), *self.pools):
            module.rule = EpsilonRule(EPSILON)  # captum takes its rules away again after every call
        relevance = self.method.attribute(images.detach().clone().requires_grad_(), target=labels)
        self.sums = [r.detach().sum((2, 3)) if r.dim() == 4 else r.detach() for r in relevance]

    def unit_sums(self) -> dict[str, Tensor]:
        logit = self.sums[-1].sum(1, keepdim=True)  # all relevance of the last layer lies at the label
        return {name: sums / logit for name, sums in zip(self.layers, self.sums, strict=True)}
