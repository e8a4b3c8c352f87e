"""Convolution and linear layers by the epsilon rule, with the activation behind them: nearly all the time goes here."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .. import ops
from .carry import Carry, Held, Pending
from .graph import ATEN, argument
from .rules import Operator, Run, fused_activation


class Weighted(Operator):
    """Convolution or linear layer with the activation that alone reads it, by the epsilon rule.

    ``c_a = W^T (c_z f(z))``, with ``c_z = c_y act(z) / z`` behind an activation. Stabilizing, the activation's factor
    and the units' sums are one pass over memory (`ops.epsilon_`), and the product with ``W^T`` waits for the layer
    below, whose pass may be part of it. After a ReLU only its output is kept: where that is zero, so are relevance and
    ``f``.
    """

    unit_dim = 1

    def __init__(self, node: fx.Node, eps: float, activation: fx.Node | None, needs_input: bool) -> None:
        super().__init__(node, eps)
        self.activation = activation
        self.name = fused_activation(activation) if activation is not None else "identity"
        self.needs_input = needs_input

    @property
    def output(self) -> fx.Node:
        return self.node if self.activation is None else self.activation

    def forward(self, run: Run) -> tuple[object, object]:
        source, weight, bias = (run.value(self.node.args[0]), *self.parameters(run))
        z = self.product(source, weight, bias)
        saved = z, weight, source
        if self.name == "identity":
            return z, self.keep(*saved)
        if self.name == "relu":
            return torch.relu_(z), self.keep(*saved)
        return self.activation.target(z, *self.activation.args[1:], **self.activation.kwargs), self.keep(*saved)

    def parameters(self, run: Run) -> tuple[Tensor, Tensor | None]:
        return run.env[self.node.args[1]], run.value(argument(self.node, "bias"))

    def keep(self, z: Tensor, weight: Tensor, source: Tensor) -> tuple:
        """What `backward` needs; of the source only its shape."""
        return z, weight, source.shape

    def backward(self, run: Run, carry: Carry, saved) -> None:
        z, weight, shape = saved
        # A ReLU's kept output serves as z: its sign is the mask, and identity then costs nothing.
        name = "identity" if self.name == "relu" else self.name
        reader = self.reader
        layer = {"activation": name, "unit_dim": self.unit_dim}
        if reader is not None and (reader.batch_dim or not self.needs_input):
            carry = Held(carry.tensor())
            unit_dim = -1 if reader.batch_dim else self.unit_dim
            c, value = (t.movedim(reader.batch_dim, 0) for t in (carry.value, z))
            with run.sums(reader, len(value)) as sums:
                ops.unit_sums_(sums, c, value, activation=name, unit_dim=unit_dim)
            reader = None
        if not self.needs_input:
            return
        with run.sums(reader, len(z)) as sums:
            scaled = carry.scaled(z, self.eps, sums=sums, over=run.spent, **layer)
        run.give(self.node.args[0], self.transposed(scaled, weight, shape))

    def product(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer itself."""
        raise NotImplementedError

    def transposed(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Pending:
        """The product with the transposed weight; `shape` is that of the layer's input."""
        raise NotImplementedError


class Linear(Weighted):
    """A linear layer on the last dimension."""

    unit_dim = -1

    def product(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Contiguous: of strided tokens ATen makes a batched product, with a copy of the weight for each.
        return torch.nn.functional.linear(source.contiguous(), weight, bias)

    def transposed(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Pending:
        return LinearProduct(scaled, weight)


class LinearProduct(Pending):
    """``W^T s`` of a linear layer."""

    def __init__(self, scaled: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.scaled_output, self.weight = scaled, weight

    def make(self) -> Tensor:
        return torch.nn.functional.linear(self.scaled_output.contiguous(), self.weight.t())


class Convolution(Weighted):
    """A convolution of any rank."""

    def __init__(self, node: fx.Node, eps: float, activation: fx.Node | None, needs_input: bool) -> None:
        super().__init__(node, eps, activation, needs_input)
        self.geometry = Geometry(node)

    def product(self, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self.node.target(source, weight, bias, *self.node.args[3:], **self.geometry.keywords)

    def transposed(self, scaled: Tensor, weight: Tensor, shape: torch.Size) -> Pending:
        return ConvolutionProduct(scaled, weight, shape, self.geometry)


class Geometry:
    """Stride, padding, dilation and groups of a convolution."""

    def __init__(self, node: fx.Node) -> None:
        self.node = node
        self.rank = node.meta["val"].dim() - 2
        self.keywords = {k: v for k, v in node.kwargs.items() if k not in ("input", "weight", "bias")}
        padding = argument(node, "padding")
        self.padding = padding if isinstance(padding, str) else self._each(padding)
        self.stride, self.dilation = (self._each(argument(node, name)) for name in ("stride", "dilation"))
        self.groups = argument(node, "groups")

    def _each(self, value) -> list[int]:
        """ATen's ``int[2]`` arguments, which may come as one number."""
        value = [value] if isinstance(value, int) else list(value)
        return value * self.rank if len(value) == 1 else value


class ConvolutionProduct(Pending):
    """``W^T s`` of a convolution: its input gradient."""

    def __init__(self, scaled: Tensor, weight: Tensor, shape: torch.Size, geometry: Geometry) -> None:
        super().__init__()
        self.scaled_output, self.weight, self.shape, self.geometry = scaled, weight, shape, geometry

    def make(self) -> Tensor:
        scaled, geometry = self.scaled_output, self.geometry
        # Only its shape and layout matter: the layout decides that of the result.
        channels_last = geometry.rank == 2 and scaled.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if channels_last else torch.contiguous_format
        source = torch.empty(self.shape, dtype=scaled.dtype, device=scaled.device, memory_format=layout)
        if isinstance(geometry.padding, str):
            node = geometry.node
            source.requires_grad_()
            with torch.enable_grad():
                out = node.target(source, self.weight, None, *node.args[3:], **geometry.keywords)
            return torch.autograd.grad(out, source, scaled)[0]
        zeros, mask = [0] * geometry.rank, [True, False, False]
        sizes = (geometry.stride, geometry.padding, geometry.dilation)
        return ATEN.convolution_backward(
            scaled, source, self.weight, None, *sizes, False, zeros, geometry.groups, mask
        )[0]
