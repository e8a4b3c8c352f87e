"""Rules of attention, after AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from .rules import Affine, Operator, Run, Taped


class MatrixProduct(Affine):
    """Uniform split of ``O = A V``: ``c' = c O / stab(2 O)``, then ``c_A = c' V^T`` and ``c_V = A^T c'`` (AttnLRP)."""

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        value, saved = saved
        halved = _split_evenly(run, carry, value, self.eps, self.reader)
        Taped.backward(self, run, halved, saved)


def _split_evenly(run: Run, carry: Tensor, value: Tensor, eps: float, reader) -> Tensor:
    """``c O / stab(2 O)`` of an attention output ``[..., heads, queries, d]``, and its heads' relevance on the way.

    The relevance that reaches the softmax of a head and query, summed over keys, is ``c' . O`` there: half of the row
    dot ``c . O``.
    """
    if reader is None:
        return ops.epsilon(carry, value, eps=eps / 2)[0] / 2
    shape = value.shape

    def heads(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, reader.count, *shape[-2:]).transpose(1, 2).flatten(2)

    scaled, sums = ops.epsilon(heads(carry), heads(value), eps=eps / 2, unit_dim=-1, group=shape[-1])
    run.read(reader, sums)
    return scaled.unflatten(2, (reader.count, shape[-1])).transpose(1, 2).reshape(shape) / 2


class Attention(Operator):
    """Fused attention by AttnLRP: the ordinary fused backward of the evenly split carry, no attention matrix kept.

    The value path receives all of the split carry, queries and keys half of it each (the second product's split). The
    stabilizer of the product of queries and keys is left out: it only matters where a logit is within eps of zero.
    """

    def forward(self, run: Run) -> tuple[object, object]:
        with torch.enable_grad():
            leaves = [run.env[n].detach().requires_grad_() for n in self.node.args[:3]]
            rest = run.value((self.node.args[3:], self.node.kwargs))
            out = self.node.target(*leaves, *rest[0], **rest[1])
        return out.detach(), (out, leaves)

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        out, leaves = saved
        halved = _split_evenly(run, carry, out.detach(), self.eps, self.reader)
        query, key, value = torch.autograd.grad(out, leaves, halved)
        run.give(self.node.args[0], query.mul_(0.5))
        run.give(self.node.args[1], key.mul_(0.5))
        run.give(self.node.args[2], value)
