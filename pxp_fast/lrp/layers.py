"""Convolution and linear layers by the epsilon rule, with the activation behind them: nearly all the time goes here."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .. import ops
from .graph import ATEN, argument
from .rules import Operator, Run, fused_activation

# Without oneDNN PyTorch has no such operator.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


class Weighted(Operator):
    """Convolution or linear layer with the activation that alone reads it, by the epsilon rule.

    ``c_a = W^T (c_z f(z))``, with ``c_z = c_y act(z) / z`` behind an activation. Stabilizing, the activation's factor
    and the units' sums are one pass over memory (`ops.epsilon`). After a ReLU only its output is kept: where that is
    zero, so are relevance and ``f``.
    """

    def __init__(self, node: fx.Node, eps: float, activation: fx.Node | None, needs_input: bool) -> None:
        super().__init__(node, eps)
        self.activation = activation
        self.name = fused_activation(activation) if activation is not None else "identity"
        self.needs_input = needs_input
        self.linear = node.target is ATEN.linear.default
        self.unit_dim = -1 if self.linear else 1

    @property
    def output(self) -> fx.Node:
        return self.node if self.activation is None else self.activation

    def forward(self, run: Run) -> tuple[object, object]:
        source, weight = run.env[self.node.args[0]], run.env[self.node.args[1]]
        if self.linear:
            # Contiguous: of strided tokens ATen makes a batched product, with a copy of the weight for each.
            z = self.product(source.contiguous(), weight, run.value(argument(self.node, "bias")))
        else:
            z = self.node.target(*run.value(self.node.args), **run.value(self.node.kwargs))
        saved = z, weight, source.shape
        if self.activation is None:
            return z, saved
        if self.name == "relu":
            return torch.relu_(z), saved
        return self.activation.target(z, *self.activation.args[1:], **self.activation.kwargs), saved

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        z, weight, shape = saved
        # A ReLU's kept output serves as z: its sign is the mask, and identity then costs nothing.
        name = "identity" if self.name == "relu" else self.name
        reader = self.reader
        if reader is not None and reader.batch_dim:
            moved = (t.movedim(reader.batch_dim, 0) for t in (carry, z))
            _, sums = ops.epsilon(*moved, eps=self.eps, activation=name, unit_dim=-1)
            run.read(reader, sums)
            reader = None
        scaled, sums = ops.epsilon(carry, z, eps=self.eps, activation=name, unit_dim=self.unit_dim)
        run.read(reader, sums)
        if not self.needs_input:
            return
        if self.linear:
            through = self.product(scaled.contiguous(), weight.t(), None)
        else:
            through = self._through_convolution(scaled, weight, shape)
        run.give(self.node.args[0], through, owned=True)

    def product(self, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``tokens @ weight^T + bias``."""
        return torch.nn.functional.linear(tokens, weight, bias)

    def _through_convolution(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        node, rank = self.node, weight.dim() - 2
        # Only its shape and layout matter: the layout decides that of the result.
        channels_last = rank == 2 and scaled.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        source = torch.empty(shape, dtype=scaled.dtype, device=scaled.device, memory_format=layout)
        padding = argument(node, "padding")
        if isinstance(padding, str):
            source.requires_grad_()
            with torch.enable_grad():
                out = node.target(source, weight, None, *node.args[3:], **node.kwargs)
            return torch.autograd.grad(out, source, scaled)[0]
        stride, dilation = argument(node, "stride"), argument(node, "dilation")
        groups = argument(node, "groups")
        zeros = [0] * rank
        mask = [True, False, False]
        sizes = (_sizes(stride, rank), _sizes(padding, rank), _sizes(dilation, rank))
        return ATEN.convolution_backward(scaled, source, weight, None, *sizes, False, zeros, groups, mask)[0]


class FastLinear(Weighted):
    """A linear layer by oneDNN, whose float32 products take half the time of ATen's on some CPUs, and add up longer."""

    def product(self, tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return ONEDNN_LINEAR(tokens, weight, bias, "none", [], "")


def _sizes(value, rank: int) -> list[int]:
    """ATen's ``int[2]`` arguments, which may come as one number."""
    value = [value] if isinstance(value, int) else list(value)
    return value * rank if len(value) == 1 else value
