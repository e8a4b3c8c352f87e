"""Attention's way back by plain matrix products, a few attention matrices at a time: they are never all stored."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, fx

from .graph import argument
from .rules import Run
from .softmax import pieces, wide, z_plus


@dataclasses.dataclass
class Settings:
    """How fused attention makes its weights from queries and keys.

    Attributes
    ----------
    scale
        Factor on the logits.
    mask
        ``[..., queries, keys]``, added to the logits, or bool: which keys are seen. None: nothing is hidden.
    causal
        Whether a query sees only the keys up to its own place.
    """

    scale: float
    mask: Tensor | None
    causal: bool

    @classmethod
    def of(cls, node: fx.Node, run: Run, query: Tensor) -> Settings:
        scale = argument(node, "scale")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return cls(scale, run.value(argument(node, "attn_mask")), bool(argument(node, "is_causal")))

    def full_mask(self, shape: tuple[int, ...], device: torch.device) -> Tensor | None:
        """The mask for logits ``shape``."""
        mask = self.mask
        if self.causal:
            mask = torch.ones(shape[-2:], dtype=torch.bool, device=device).tril()
        return mask.expand(shape) if mask is not None else None


def pull_back(
    sources: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    carry: Tensor,
    shares: tuple[float, float, float],
    settings: Settings,
    rule: str,
    eps: float,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The carries of queries, keys and values by a softmax rule.

    Parameters
    ----------
    sources
        Queries ``[N, ..., queries, d]``, keys and values ``[N, ..., keys, d]``; where keys and values have fewer heads
        than queries, each of theirs serves several.
    out, carry
        ``[N, ..., queries, d]``: what attention yields, and the carry that its attention matrix and its values take
        their share of.
    shares
        Factors on the three results.
    rule, eps
        The softmax rule, one of :data:`pxp_fast.lrp.softmax.SOFTMAX_RULES`, and its stabilizer. With ``"cp"`` queries
        and keys get None.
    """
    widened = _side_by_side(sources)
    grads = tuple(torch.empty_like(t, memory_format=torch.contiguous_format) for t in widened)
    query, key, _ = widened
    shape = (*query.shape[:-1], key.shape[-2])
    mask = settings.full_mask(shape, query.device)
    delta = (carry * out).sum(-1, keepdim=True) if rule == "epsilon" else None
    factors = (shares[0] * settings.scale, shares[1] * settings.scale, shares[2])
    for piece in pieces(shape, query.device):
        q, k, v, c = (t[piece].flatten(0, -3).contiguous() for t in (*widened, carry))
        logits = (q * settings.scale) @ k.mT
        if rule.startswith("z-plus"):
            logits = logits.to(wide(logits.dtype))
        if mask is None:
            weights = torch.softmax(logits, -1)
        else:
            logits = _masked(logits, mask[piece].flatten(0, -3))
            weights = torch._safe_softmax(logits, -1)
        pairs = [(grads[2], factors[2], weights.mT, c)]
        if rule != "cp":
            at_weights = c @ v.mT
            if rule == "epsilon":
                at_logits = at_weights.sub_(delta[piece].flatten(0, -3)).mul_(weights)
            else:
                if mask is not None:
                    logits.masked_fill_(torch.isinf(logits), 0)
                at_logits = z_plus(logits, weights, at_weights.to(logits.dtype), eps, rule == "z-plus-bias")
            at_logits = at_logits.to(q.dtype)
            pairs += [(grads[0], factors[0], at_logits, k), (grads[1], factors[1], at_logits.mT, q)]
        for grad, factor, left, right in pairs:
            target = grad[piece].flatten(0, -3)
            torch.baddbmm(target, left.to(right.dtype), right, beta=0, alpha=factor, out=target)
    found = [_shared_out(grad, source) for grad, source in zip(grads, sources, strict=True)]
    return (None, None, found[2]) if rule == "cp" else tuple(found)


def _side_by_side(sources: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with as many heads, and of the same leading dimensions."""
    query, *others = sources
    heads = query.shape[-3]
    others = [t.repeat_interleave(heads // t.shape[-3], -3) if t.shape[-3] not in (1, heads) else t for t in others]
    leading = torch.broadcast_shapes(*(t.shape[:-2] for t in (query, *others)))
    return tuple(t.expand(*leading, *t.shape[-2:]) for t in (query, *others))


def _shared_out(grad: Tensor, source: Tensor) -> Tensor:
    """The carry of a source from that of what :func:`_side_by_side` made of it."""
    if grad.shape == source.shape:
        return grad
    if source.shape[-3] not in (1, grad.shape[-3]):
        grad = grad.unflatten(-3, (source.shape[-3], -1)).sum(-3)
    return grad.sum_to_size(source.shape)


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    return logits.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else logits.add_(mask)
