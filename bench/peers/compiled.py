"""The same modified gradient, written for autograd and handed to torch.compile: what a compiler makes of the method.

A VGG or ResNet has its batch norms folded, its weights frozen and the epsilon rule put behind every convolution, linear
layer, residual sum and average pool. Inductor then compiles its forward and backward as a whole, channels-last.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx, nn

from ..networks import fold
from .interface import Peer
from .zennit import EPSILON

SUMS = (operator.add, operator.iadd, torch.add)
POOLS = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class Stabilize(torch.autograd.Function):
    """The identity. Going back it multiplies the carry by ``|z| / (|z| + epsilon)``.

    With `probe`, which is not used going forward, the gradient of the probe is the unit's relevance sum.
    """

    @staticmethod
    def forward(ctx, value: Tensor, probe: Tensor | None) -> Tensor:
        ctx.save_for_backward(value)
        ctx.read = probe is not None
        return value.view_as(value)

    @staticmethod
    def backward(ctx, carry: Tensor):
        (value,) = ctx.saved_tensors
        wide = torch.promote_types(value.dtype, torch.float32)
        z, c = value.to(wide), carry.to(wide)
        sums = (c * z).flatten(2).sum(2) if ctx.read and z.dim() == 4 else c * z if ctx.read else None
        magnitude = z.abs()
        return (c * torch.where(magnitude == 0, 0, magnitude / (magnitude + EPSILON))).to(value.dtype), sums


def stabilize(value: Tensor, probe: Tensor | None) -> Tensor:
    return Stabilize.apply(value, probe)


def stabilized(model: nn.Module) -> tuple[fx.GraphModule, dict[str, int]]:
    """The network with `Stabilize` in place, taking one probe ``[N, units]`` per layer after the images; the layers."""
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # would overwrite what Stabilize keeps
    graph = fx.symbolic_trace(model).graph
    modules = dict(model.named_modules())
    layers: dict[str, int] = {}
    last_input = next(node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        module = modules.get(node.target) if node.op == "call_module" else None
        probe = None
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers[node.target] = module.weight.shape[0]
            with graph.inserting_after(last_input):
                probe = last_input = graph.placeholder(f"probe_{len(layers)}")
        elif node.op == "call_function" and node.target in SUMS:
            node.target = operator.add
        elif not isinstance(module, POOLS):
            continue
        with graph.inserting_after(node):
            marked = graph.call_function(stabilize, (node, probe))
        node.replace_all_uses_with(marked, delete_user_cb=lambda user, keep=marked: user is not keep)
    return fx.GraphModule(model, graph), layers


class Compiled(Peer):
    """`graph` replays CUDA graphs of what was compiled; `backend` is torch.compile's."""

    def __init__(
        self, model: nn.Module, images: Tensor, dtype: torch.dtype, *, graph: bool = False, backend: str = "inductor"
    ) -> None:
        model = fold(model).requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)
        self.dtype = dtype
        module, self.layers = stabilized(model)
        wide = torch.promote_types(dtype, torch.float32)
        like = {"dtype": wide, "device": images.device, "requires_grad": True}
        self.probes = [torch.zeros(len(images), units, **like) for units in self.layers.values()]
        self.compiled = torch.compile(module, dynamic=False, backend=backend, mode="reduce-overhead" if graph else None)
        self.run(self.prepare(images), torch.zeros(len(images), dtype=torch.int64, device=images.device))

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(dtype=self.dtype, memory_format=torch.channels_last)

    def run(self, images: Tensor, labels: Tensor) -> None:
        chosen = self.compiled(images, *self.probes).gather(1, labels[:, None])
        self.sums = torch.autograd.grad(chosen, self.probes, 1 / chosen.detach())

    def unit_sums(self) -> dict[str, Tensor]:
        return dict(zip(self.layers, self.sums, strict=True))
