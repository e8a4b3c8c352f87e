"""Rules of normalisation by statistics of the input: the statistics are held constant (AttnLRP, proposition 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .carry import Carry, Held, Pending
from .graph import argument
from .rules import Operator, Run, stabilized


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype in which statistics are taken: float32 at least."""
    return torch.promote_types(tensor.dtype, torch.float32)


class LayerNorm(Operator):
    """Epsilon rule with the deviation held constant: ``t = c f(y) gamma / sigma``, ``c_x = t - mean(t)``."""

    def forward(self, run: Run) -> tuple[object, object]:
        source, shape = run.env[self.node.args[0]], list(self.node.args[1])
        weight, bias = (run.value(argument(self.node, k)) for k in ("weight", "bias"))
        value, _, rstd = torch.native_layer_norm(source, shape, weight, bias, argument(self.node, "eps"))
        return value, (value, rstd, weight)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        rank = len(self.node.args[1])
        run.give(self.node.args[0], NormalisedCarry(carry.tensor(), *saved, rank, self.eps))


class NormalisedCarry(Pending):
    """The carry behind a layer norm; the skip connection's carry and the stabilizer of their sum come along with it."""

    def __init__(
        self, carry: Tensor, value: Tensor, rstd: Tensor, weight: Tensor | None, rank: int, eps: float
    ) -> None:
        super().__init__()
        self.carry, self.value, self.rstd, self.weight = carry, value, rstd, weight
        self.rank, self.eps = rank, eps

    def make(self) -> Tensor:
        return self._normalised()

    def take(self) -> tuple[Tensor, bool]:
        return self._normalised(self.rest), True

    def scaled(self, value: Tensor, eps: float, *, sums: Tensor | None = None, over: bool = False, **layer) -> Tensor:
        if sums is not None or layer.get("activation", "identity") != "identity" or eps != self.eps:
            return super().scaled(value, eps, sums=sums, over=over, **layer)
        return self._normalised(self.rest, value)

    def _normalised(self, rest: Carry | None = None, join: Tensor | None = None) -> Tensor:
        residual, free = rest.take() if rest is not None else (None, False)
        free = free and residual.is_contiguous()
        tensors = (self.carry, self.value, self.rstd, None, residual, join)
        carry, value, rstd, _, residual, join = (t if t is None else t.flatten(-self.rank) for t in tensors)
        weight = self.weight.flatten() if self.weight is not None else None
        operator = ops.layer_norm_ if free else ops.layer_norm
        return operator(carry, value, rstd, weight, residual, join, eps=self.eps).view(self.value.shape)


class GroupNorm(Operator):
    """Layer norm's rule within each group of channels."""

    def forward(self, run: Run) -> tuple[object, object]:
        source, groups = run.env[self.node.args[0]], argument(self.node, "num_groups")
        weight, bias = (run.value(argument(self.node, k)) for k in ("weight", "bias"))
        value = torch.group_norm(source, groups, weight, bias, argument(self.node, "eps"))
        variance = source.flatten(1).unflatten(1, (groups, -1)).to(_wide(source)).var(-1, unbiased=False)
        return value, (value, (variance + argument(self.node, "eps")).rsqrt().to(source.dtype), weight)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        value, rstd, weight = saved
        scaled = stabilized(carry, value, self.eps)
        if weight is not None:
            scaled = scaled * weight.view(-1, *[1] * (value.dim() - 2))
        t = scaled.flatten(1).unflatten(1, (rstd.shape[1], -1)) * rstd.unsqueeze(-1)
        run.give(self.node.args[0], Held((t - t.mean(-1, keepdim=True)).view(value.shape), 1))


class RootMeanSquareNorm(Operator):
    """Epsilon rule with the scale held constant: ``c_x = c f(y) gamma / rms``."""

    def forward(self, run: Run) -> tuple[object, object]:
        source = run.env[self.node.args[0]]
        weight, eps = run.value(argument(self.node, "weight")), argument(self.node, "eps")
        value, _ = super().forward(run)
        axes = tuple(range(-len(self.node.args[1]), 0))
        eps = torch.finfo(source.dtype).eps if eps is None else eps
        scale = (source.to(_wide(source)).square().mean(axes, keepdim=True) + eps).rsqrt().to(source.dtype)
        return value, (value, scale if weight is None else scale * weight)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        value, scale = saved
        run.give(self.node.args[0], Held(stabilized(carry, value, self.eps).mul_(scale), 1))
