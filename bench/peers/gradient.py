"""Torch's forward and the gradient of the label's logit with respect to the image: the yardstick.

The least that any gradient-based explanation costs. It keeps no unit sums.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .interface import Peer


class Gradient(Peer):
    """`channels_last` lays out images and weights so; `graph` replays a CUDA graph instead of launching kernels."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        dtype: torch.dtype,
        *,
        channels_last: bool = False,
        graph: bool = False,
    ) -> None:
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.dtype = dtype
        self.model = model.to(dtype=dtype, memory_format=self.layout)
        self.graph = self._capture(images) if graph else None

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(dtype=self.dtype, memory_format=self.layout)

    def run(self, images: Tensor, labels: Tensor) -> None:
        if self.graph is None:
            self.result = self._gradient(images, labels)
        else:
            self.images.copy_(images)
            self.labels.copy_(labels)
            self.graph.replay()

    def _gradient(self, images: Tensor, labels: Tensor) -> Tensor:
        x = images.detach().requires_grad_()
        return torch.autograd.grad(self.model(x).gather(1, labels[:, None]).sum(), x)[0]

    def _capture(self, images: Tensor) -> torch.cuda.CUDAGraph:
        self.images = self.prepare(images).clone(memory_format=torch.preserve_format)
        self.labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # libraries choose their algorithms outside the graph
            for _ in range(3):
                self._gradient(self.images, self.labels)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self._gradient(self.images, self.labels)
        return graph
