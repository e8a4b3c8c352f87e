"""Rules of attention's softmax ``S = softmax(x)``, beside its ordinary gradient.

- ``"epsilon"``: the gradient, ``c_x = S (c_S - sum(S c_S))`` (AttnLRP, Achtibat et al., 2024, proposition 3.1).
- ``"z-plus"``: the z-plus rule on the softmax's linearisation ``S_j ~ sum_i J_ji x_i + b_j`` with
  ``J_ji = S_j (d_ij - S_i)``: ``R_i = sum_j max(J_ji x_i, 0) R_j / sum_k max(J_jk x_k, 0)``. ``"z-plus-bias"`` lets the
  virtual bias ``b_j = S_j (1 - x_j + sum_i S_i x_i)`` take its part, ``max(b_j, 0)`` in the denominator.
- ``"cp"``: attention weights are constants (Ali et al., 2022): no relevance passes the softmax, and the values get all
  of it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from .carry import Carry, Held
from .graph import ATEN, Captured, argument, packet
from .rules import Operator, Run

SOFTMAX_RULES = ("epsilon", "z-plus", "z-plus-bias", "cp")
SOFTMAX = {ATEN.softmax.int, ATEN._softmax.default}
PRODUCTS = {"matmul", "bmm", "mm", "einsum", "mul"}

# Entries of attention matrices that are worked on at a time on a CPU, so that they stay in its cache.
CACHED = 1 << 18


def z_plus(logits: Tensor, weights: Tensor, carry: Tensor, eps: float, virtual_bias: bool) -> Tensor:
    """The carry of the logits by the z-plus rule, in a few passes over each row; no Jacobian is made.

    With ``n = max(-x, 0)``, ``p = max(x, 0)`` and ``P = sum_i S_i n_i`` the denominator of output j is
    ``S_j (P - S_j n_j + (1 - S_j) p_j)``. With ``h_j = S_j R_j / stab(denominator)`` and ``H`` their sum,
    ``c_i = h_i (1 - S_i)`` where ``x_i > 0``, else ``-S_i (H - h_i)``.

    Parameters
    ----------
    logits, weights, carry
        ``[..., keys]``, float32 or float64: finite x, S, and c_S, which is written over.
    eps
        The stabilizer of the denominator.
    virtual_bias
        Let the virtual bias take its part.
    """
    terms = weights * logits
    bias = terms.sum(-1, keepdim=True).sub(logits).add_(1).relu_() if virtual_bias else None
    negative = terms.clamp_max(0).sum(-1, keepdim=True)
    # |S x| is subtracted from what holds it, which rounding must not make negative.
    share = logits.relu().sub_(terms.abs_()).sub_(negative).relu_()
    if bias is not None:
        share.add_(bias)
    share.mul_(weights).add_(eps)
    if eps == 0:
        share.masked_fill_(share == 0, torch.inf)  # nothing is shared out where there is nothing to share it by
    h = carry.mul_(weights).mul_(weights).div_(share)
    own = torch.mul(h, weights, out=share)
    whole = h.sum(-1, keepdim=True)
    positive = logits > 0
    h.sub_(own)
    return torch.where(positive, h, own.addcmul_(weights, whole, value=-1))


class Softmax(Operator):
    """A softmax that is written out, by the z-plus rule."""

    def __init__(self, node: fx.Node, eps: float, virtual_bias: bool) -> None:
        super().__init__(node, eps)
        self.virtual_bias = virtual_bias
        self.dim = argument(node, "dim")

    def forward(self, run: Run) -> tuple[object, object]:
        value, _ = super().forward(run)
        return value, (run.env[self.node.args[0]], value)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        logits, weights = (t.movedim(self.dim, -1) for t in saved)
        outer = carry.tensor().movedim(self.dim, -1)
        found = torch.empty_like(outer)
        for piece in pieces(logits.shape, logits.device):
            parts = [t[piece] for t in (logits, weights, outer)]
            x, s, c = (t.to(wide(t.dtype), copy=i == 2) for i, t in enumerate(parts))
            x = x.masked_fill(torch.isinf(x), 0)  # hidden by a mask: its weight is 0, and 0 * inf is not
            found[piece] = z_plus(x, s, c, self.eps, self.virtual_bias)
        run.give(self.node.args[0], Held(found.movedim(-1, self.dim), 1))


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over keys, whose terms cancel: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def pieces(shape: tuple[int, ...], device: torch.device) -> list[slice]:
    """Slices of some matrices' first dimension, to be worked on one after the other: on a CPU few at a time."""
    if device.type != "cpu":
        return [slice(None)]
    step = max(1, CACHED // math.prod(shape[1:]))
    return [slice(start, start + step) for start in range(0, shape[0], step)]


def attention_softmaxes(captured: Captured, carrying: set[fx.Node]) -> set[fx.Node]:
    """The operators that hold a softmax of attention: fused attention, and softmaxes whose output weighs other values.

    A softmax whose output reaches the logits without being multiplied with what does not come from it, as one that
    turns logits into probabilities, is none.
    """
    found = set()
    for node in captured.nodes():
        written_out = node.target in SOFTMAX and node in carrying and not _reaches_logits(captured, node, carrying)
        if written_out or packet(node) == "scaled_dot_product_attention":
            found.add(node)
    return found


def _reaches_logits(captured: Captured, softmax: fx.Node, carrying: set[fx.Node]) -> bool:
    from_it, pending = {softmax}, [softmax]
    while pending:
        node = pending.pop()
        if node is captured.logits:
            return True
        for user in node.users:
            weighs = packet(user) in PRODUCTS and any(n in carrying - from_it for n in user.all_input_nodes)
            if user not in from_it and not weighs:
                from_it.add(user)
                pending.append(user)
    return False
