"""Attention by a split of its product with the values, after AttnLRP (Achtibat et al., ICML 2024, arXiv 2402.05602)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, fx
from torch.nn.attention import SDPBackend

from .attention_matrices import Settings, pull_back
from .carry import Carry, Held
from .graph import packet, same_size
from .rules import Affine, Operator, Run, stabilized

# Views after attention that leave [N, queries, heads * d] behind, or [queries, N, heads * d].
TOKENS_FIRST = (2, 0, 1, 3)
SAMPLES_FIRST = (0, 2, 1, 3)
COPIES = {"clone", "contiguous"}
FLATTENING = {"reshape", "view", "flatten", "_unsafe_view"}


class HeadOutput(Operator):
    """An operator whose output is that of attention heads, ``[..., heads, queries, d]``.

    Where nothing but views lies between it and the layer that reads all heads of a token side by side, it takes the
    carry there, as that layer hands it over.

    Parameters
    ----------
    parts
        How many factors share the relevance: weights and values, or the values alone.
    """

    def __init__(self, node: fx.Node, eps: float, parts: int = 2) -> None:
        super().__init__(node, eps)
        self.parts = parts
        self.views, self.order = merging_views(node)

    @property
    def takes(self) -> fx.Node:
        return self.views[-1] if self.views else self.node

    def split(self, run: Run, carry: Carry, value: Tensor) -> Tensor:
        """``c O / stab(O)``, which is what the uniform split ``c O / stab(2 O)`` gives either factor (AttnLRP, eq. 13),
        times their number.

        The relevance that passes through a head at a query, summed over keys, is the row dot of this with ``O``: it is
        read on the way. Where it is shared, the softmax's part, which is what PXP reads, is half of it.
        """
        eps = self.eps / self.parts
        if self.reader is None and not self.views:
            return stabilized(carry, value, eps)
        heads, queries, width = value.shape[-3:]
        if self.views:
            # Free where attention leaves its output with a token's heads side by side.
            tokens = value.permute(SAMPLES_FIRST).flatten(2)
            if self.order == TOKENS_FIRST:
                carry = Held(carry.tensor().transpose(0, 1))
        else:
            tokens = _side_by_side(value)
            carry = Held(_side_by_side(carry.tensor()))
        group = width if self.reader is not None else 1
        with run.sums(self.reader, len(tokens)) as sums:
            scaled = carry.scaled(tokens, eps, unit_dim=-1, group=group, sums=sums, stabilized_sums=sums is not None)
        return scaled.unflatten(2, (heads, width)).transpose(1, 2).reshape(value.shape)


def _side_by_side(tensor: Tensor) -> Tensor:
    """``[..., heads, queries, d]`` as ``[N, queries, heads * d]``."""
    return tensor.reshape(-1, *tensor.shape[-3:]).transpose(1, 2).flatten(2)


def merging_views(node: fx.Node) -> tuple[list[fx.Node], tuple[int, ...]]:
    """The views that bring the heads ``[N, heads, queries, d]`` side by side, and the order of dimensions they make."""
    shape = node.meta["val"].shape
    views, order, current = [], (0, 1, 2, 3), node
    while len(shape) == 4 and len(current.users) == 1:
        current = next(iter(current.users))
        name = packet(current)
        if name in ("permute", "transpose") and not views:
            order = _order_of(current)
        elif name in FLATTENING and order in (SAMPLES_FIRST, TOKENS_FIRST):
            first, second = (shape[i] for i in order[:2])
            merged = current.meta["val"].shape
            fits = len(merged) == 3 and all(map(same_size, merged, (first, second, shape[1] * shape[3])))
            return ([*views, current], order) if fits else ([], ())
        elif name not in COPIES:
            break
        views.append(current)
    return [], ()


def _order_of(node: fx.Node) -> tuple[int, ...]:
    """The order in which a permutation of four dimensions takes them."""
    if packet(node) == "permute":
        return tuple(d % 4 for d in node.args[1])
    order = list(range(4))
    a, b = node.args[1] % 4, node.args[2] % 4
    order[a], order[b] = b, a
    return tuple(order)


class MatrixProduct(Affine, HeadOutput):
    """Uniform split of ``O = A V``: ``c' = c O / stab(2 O)``, then ``c_A = c' V^T`` and ``c_V = A^T c'`` (AttnLRP).

    Where one factor alone carries relevance it gets all of it, by the epsilon rule.
    """

    def __init__(self, node: fx.Node, eps: float, receivers: list[fx.Node], parts: int) -> None:
        HeadOutput.__init__(self, node, eps, parts)
        self.receivers = receivers

    def forward(self, run: Run) -> tuple[object, object]:
        if not self.receivers:  # read, but nothing below wants relevance
            value, _ = Operator.forward(self, run)
            return value, (value, None)
        return super().forward(run)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        value, saved = saved
        split = self.split(run, carry, value)
        if self.receivers:
            self.pull(run, {0: split.mul_(1 / self.parts) if self.parts > 1 else split}, saved)


class Attention(HeadOutput):
    """Fused attention: the fused backward of the evenly split carry by AttnLRP, matrix products by other softmax rules.

    No attention matrix is kept for the way back. The stabilizer of the product of queries and keys is left out: it only
    matters where a logit is within eps of zero.

    Parameters
    ----------
    carrying
        Whether queries, keys and values carry relevance: a learned query, say, takes no part of it.
    rule
        Of the softmax, one of :data:`pxp_fast.lrp.softmax.SOFTMAX_RULES`.
    """

    def __init__(
        self,
        node: fx.Node,
        eps: float,
        receivers: list[fx.Node],
        carrying: tuple[bool, bool, bool] = (True, True, True),
        rule: str = "epsilon",
    ) -> None:
        # The matrix and the values share alike, and of the matrix's part queries and keys, as far as they carry any.
        *in_matrix, in_values = carrying
        weighing = sum(in_matrix) if rule != "cp" else 0
        super().__init__(node, eps, max(1, (weighing > 0) + in_values))
        self.receivers = receivers
        self.rule = rule
        self.plain = len(node.args) == 3 and set(node.kwargs) <= {"scale"}
        share = 1 / self.parts
        self.shares = (*(share / weighing if weighing and one else 0 for one in in_matrix), share if in_values else 0)

    def forward(self, run: Run) -> tuple[object, object]:
        sources, rest = run.value(self.node.args[:3]), run.value((self.node.args[3:], self.node.kwargs))
        same = len({tuple(s.shape[:2]) for s in sources}) == 1
        by_matrices = self.rule != "epsilon" or self.plain and same and _recomputes(sources[1])
        if not self.receivers or by_matrices:
            out = self.node.target(*sources, *rest[0], **rest[1])
            return out, (out, sources, Settings.of(self.node, run, sources[0]))
        with torch.enable_grad():
            leaves = [source.detach().requires_grad_() for source in sources]
            out = self.node.target(*leaves, *rest[0], **rest[1])
            # Not by matrix products, which would refuse to be deterministic.
            fused = leaves[0].is_cuda and torch._fused_sdp_choice(*leaves, *rest[0], **rest[1]) != SDPBackend.MATH.value
        return out.detach(), (out, leaves, fused)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        out, sources, way = saved
        split = self.split(run, carry, out.detach())
        if not self.receivers:
            return
        if out.requires_grad:
            with in_one_order() if way else contextlib.nullcontext():
                grads = torch.autograd.grad(out, sources, split)
            for grad, share in zip(grads, self.shares, strict=True):
                if share != 1:
                    grad.mul_(share)
        else:
            grads = pull_back(sources, out, split, self.shares, way, self.rule, self.eps)
        for source, grad in zip(self.node.args[:3], grads, strict=True):
            run.give(source, grad)


@contextlib.contextmanager
def in_one_order() -> Iterator[None]:
    """Let the fused kernels of a GPU add up in one order, which they only do where PyTorch insists on it."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fills


def _recomputes(key: Tensor) -> bool:
    """Whether plain matrix products beat the fused backward: on a CPU in reduced precision they take half its time."""
    return key.device.type == "cpu" and key.dtype == torch.bfloat16 and key.dim() == 4 and key.shape[-2] >= 64
