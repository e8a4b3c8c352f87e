"""Rules of normalisation by statistics of the input: the statistics are held constant (AttnLRP, proposition 3.4)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
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

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        value, rstd, weight = saved
        source, rank = self.node.args[0], len(self.node.args[1])
        residual = run.carries.pop(source, None)
        out = ops.layer_norm(
            carry.flatten(-rank),
            value.flatten(-rank),
            rstd.flatten(-rank),
            weight=weight.flatten() if weight is not None else None,
            residual=residual.flatten(-rank) if residual is not None else None,
            eps=self.eps,
        )
        run.give(source, out.view(value.shape), owned=True)


class GroupNorm(Operator):
    """Layer norm's rule within each group of channels."""

    def forward(self, run: Run) -> tuple[object, object]:
        source, groups = run.env[self.node.args[0]], argument(self.node, "num_groups")
        weight, bias = (run.value(argument(self.node, k)) for k in ("weight", "bias"))
        value = torch.group_norm(source, groups, weight, bias, argument(self.node, "eps"))
        variance = source.flatten(1).unflatten(1, (groups, -1)).to(_wide(source)).var(-1, unbiased=False)
        return value, (value, (variance + argument(self.node, "eps")).rsqrt().to(source.dtype), weight)

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        value, rstd, weight = saved
        scaled = stabilized(carry, value, self.eps)
        if weight is not None:
            scaled = scaled * weight.view(-1, *[1] * (value.dim() - 2))
        t = scaled.flatten(1).unflatten(1, (rstd.shape[1], -1)) * rstd.unsqueeze(-1)
        run.give(self.node.args[0], (t - t.mean(-1, keepdim=True)).view(value.shape))


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

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        value, scale = saved
        run.give(self.node.args[0], stabilized(carry, value, self.eps) * scale)
