"""Rules of attention, after AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602)."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .. import ops
from .rules import Affine, Operator, Run, Taped, stabilized


class MatrixProduct(Affine):
    """Uniform split of ``O = A V``: ``c' = c O / stab(2 O)``, then ``c_A = c' V^T`` and ``c_V = A^T c'`` (AttnLRP)."""

    def forward(self, run: Run) -> tuple[object, object]:
        if not self.receivers:  # read, but nothing below wants relevance
            value, _ = Operator.forward(self, run)
            return value, (value, None)
        return super().forward(run)

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        value, saved = saved
        halved = _split_evenly(run, carry, value, self.eps, self.reader)
        if self.receivers:
            Taped.backward(self, run, halved, saved)


def _split_evenly(run: Run, carry: Tensor, value: Tensor, eps: float, reader) -> Tensor:
    """``c O / stab(2 O)`` of an attention output ``[..., heads, queries, d]``, and its heads' relevance on the way.

    The relevance that reaches the softmax of a head and query, summed over keys, is the row dot ``c' . O``.
    """
    if reader is None:
        return stabilized(carry, value, eps / 2) / 2
    shape = value.shape

    def heads(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1, reader.count, *shape[-2:]).transpose(1, 2).flatten(2)

    value = heads(value)
    scaled, _ = ops.epsilon(heads(carry), value, eps=eps / 2, unit_dim=-1)
    _, sums = ops.epsilon(scaled, value, eps=0, unit_dim=-1, group=shape[-1])
    run.read(reader, sums)
    return scaled.unflatten(2, (reader.count, shape[-1])).transpose(1, 2).reshape(shape) / 2


class Attention(Operator):
    """Fused attention by AttnLRP: the ordinary fused backward of the evenly split carry, no attention matrix kept.

    The value path receives all of the split carry, queries and keys half of it each (the second product's split). The
    stabilizer of the product of queries and keys is left out: it only matters where a logit is within eps of zero.
    """

    def __init__(self, node: fx.Node, eps: float, receivers: list[fx.Node]) -> None:
        super().__init__(node, eps)
        self.receivers = receivers
        self.plain = len(node.args) == 3 and set(node.kwargs) <= {"scale"}

    def forward(self, run: Run) -> tuple[object, object]:
        sources, rest = run.value(self.node.args[:3]), run.value((self.node.args[3:], self.node.kwargs))
        same = len({tuple(s.shape[:2]) for s in sources}) == 1
        if not self.receivers or self.plain and same and _recomputes(sources[1]):
            out = self.node.target(*sources, *rest[0], **rest[1])
            return out, (out, sources)
        with torch.enable_grad():
            leaves = [source.detach().requires_grad_() for source in sources]
            out = self.node.target(*leaves, *rest[0], **rest[1])
        return out.detach(), (out, leaves)

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        out, leaves = saved
        halved = _split_evenly(run, carry, out.detach(), self.eps, self.reader)
        if not self.receivers:
            return
        if out.requires_grad:
            query, key, value = torch.autograd.grad(out, leaves, halved)
        else:
            query, key, value = _backward_by_sample(*leaves, out, halved, self.node.kwargs.get("scale"))
        run.give(self.node.args[0], query.mul_(0.5))
        run.give(self.node.args[1], key.mul_(0.5))
        run.give(self.node.args[2], value)


def _recomputes(key: Tensor) -> bool:
    """Whether plain matrix products beat the fused backward: on a CPU in reduced precision they take half its time."""
    return key.device.type == "cpu" and key.dtype == torch.bfloat16 and key.dim() == 4 and key.shape[-2] >= 64


def _backward_by_sample(
    query: Tensor, key: Tensor, value: Tensor, out: Tensor, carry: Tensor, scale: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient of attention, one sample's attention matrices at a time: they stay in cache and are never stored.

    All tensors ``[N, heads, tokens, d]``; returns the gradients of query, key and value.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in (query, key, value))
    delta = (carry * out).sum(-1, keepdim=True)
    for sample in range(len(query)):
        q, k, v, c = (t[sample].contiguous() for t in (query, key, value, carry))
        weights = torch.softmax((q * scale) @ k.transpose(-1, -2), -1)
        logits = (c @ v.transpose(-1, -2)).sub_(delta[sample]).mul_(weights)
        torch.bmm(logits, k, out=grads[0][sample]).mul_(scale)
        torch.bmm(logits.transpose(-1, -2), q, out=grads[1][sample]).mul_(scale)
        torch.bmm(weights.transpose(-1, -2), c, out=grads[2][sample])
    return grads
