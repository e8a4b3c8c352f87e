"""A pipeline of the kind that PXP was published with: hooks at every layer, one image at a time, relevance to the host.

Written from the method's description. zennit's epsilon rule carries the relevance; every layer's whole relevance map is
copied to the host for every image and reduced there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..networks import fold
from .interface import Peer
from .zennit import epsilon_rules, positions


class Hooks(Peer):
    """Batches are taken apart into single images; `totals` adds up ``|sum of R|`` per unit, on the host."""

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype) -> None:
        self.model = fold(model).to(dtype)
        self.dtype = dtype
        epsilon_rules().register(self.model)
        self.layers = {n: m for n, m in self.model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        self.maps: dict[str, Tensor] = {}
        for name, module in self.layers.items():
            module.register_forward_hook(self._keeper(name))
        self.totals: dict[str, Tensor] = {}

    def _keeper(self, name: str):
        def keep(relevance: Tensor) -> None:
            self.maps[name] = relevance.detach().cpu().clone()

        return lambda module, inputs, output: output.register_hook(keep) and None

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(self.dtype)

    def run(self, images: Tensor, labels: Tensor) -> None:
        samples: dict[str, list[Tensor]] = {name: [] for name in self.layers}
        for image, label in zip(images, labels, strict=True):
            x = image[None].detach().clone().requires_grad_()
            logits = self.model(x)
            torch.autograd.grad(logits, x, torch.zeros_like(logits).index_fill_(1, label, 1))
            for name, relevance in self.maps.items():
                dims = positions(relevance)
                samples[name].append(relevance.sum(dims) if dims else relevance)
        self.sums = {name: torch.cat(rows) for name, rows in samples.items()}
        for name, sums in self.sums.items():
            self.totals[name] = self.totals.get(name, 0) + sums.abs().sum(0)

    def unit_sums(self) -> dict[str, Tensor]:
        return self.sums
