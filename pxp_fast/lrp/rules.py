"""Relevance rules as modified gradients.

Relevance travels as a *carry*: the carry of a tensor ``a`` is ``c_a = R_a / a``, so ``R_a = a * c_a``, and every rule
becomes a modified vector-Jacobian product that neither multiplies inputs in nor divides them out. Throughout,
``f(z) = z / (z + eps * sgn z)`` is the stabilizing factor of the epsilon rule.

Each class below is one operator of a compiled program: `forward` computes it and puts by what the way back needs,
`backward` turns the carry of its output into carries of its inputs.
"""

from __future__ import annotations

import collections

import torch
from torch import Tensor, fx

from .. import ops
from ..errors import CaptureError
from .graph import ATEN, argument, module_of

# Each maps 0 to 0, so relevance passes through as the factor act(z) / z.
ACTIVATIONS = {
    ATEN.relu.default,
    ATEN.relu6.default,
    ATEN.hardtanh.default,
    ATEN.gelu.default,
    ATEN.silu.default,
    ATEN.hardswish.default,
    ATEN.leaky_relu.default,
    ATEN.elu.default,
    ATEN.mish.default,
    ATEN.tanh.default,
}


def fused_activation(node: fx.Node) -> str | None:
    """The name under which `ops.epsilon` knows this activation, or None."""
    if node.target is ATEN.gelu.default:
        return "gelu" if argument(node, "approximate") == "none" else "gelu_tanh"
    if node.target is ATEN.hardtanh.default:
        return "relu6" if (argument(node, "min_val"), argument(node, "max_val")) == (0, 6) else None
    names = {
        ATEN.relu.default: "relu",
        ATEN.relu6.default: "relu6",
        ATEN.silu.default: "silu",
        ATEN.hardswish.default: "hardswish",
    }
    return names.get(node.target)


def stabilized(carry: Tensor, value: Tensor, eps: float) -> Tensor:
    """``c f(z)``, where no unit is read."""
    if value.dim() < 2:
        return ops.epsilon(carry.reshape(-1, 1), value.reshape(-1, 1), eps=eps)[0].view(value.shape)
    return ops.epsilon(carry, value, eps=eps)[0]


class Run:
    """The state of one pass: values still needed, what each operator put by, carries not yet consumed."""

    def __init__(self, live: set[fx.Node], env: dict, samples: int) -> None:
        self.live = live
        self.env = env
        self.samples = samples
        self.carries: dict[fx.Node, Tensor] = {}
        self.owned: set[fx.Node] = set()
        self.table: Tensor | None = None

    def value(self, arg):
        return fx.node.map_arg(arg, self.env.__getitem__)

    def give(self, node: object, carry: Tensor | None, owned: bool = False) -> None:
        """Add a carry to a node's; a node that relevance need not reach is ignored.

        `owned`: no one else holds the tensor, so that it may be added to in place.
        """
        if carry is None or node not in self.live:
            return
        held = self.carries.get(node)
        if held is None:
            self.carries[node] = carry
        elif owned:
            self.carries[node] = carry.add_(held)
        elif node in self.owned:
            held.add_(carry)
            return
        else:
            self.carries[node] = held + carry
            owned = True
        if owned:
            self.owned.add(node)

    def read(self, reader, sums: Tensor) -> None:
        """Enter a unit layer's sums ``[2, N * k, units]`` into the table ``[2, N, U]``."""
        if reader is None:
            return
        if sums.shape[1] != self.samples:
            sums = sums.unflatten(1, (self.samples, sums.shape[1] // self.samples)).sum(2)
        columns = slice(reader.offset, reader.offset + reader.count)
        self.table[:, :, columns].add_(sums, alpha=reader.scale)


class Operator:
    """An operator that relevance does not pass: it only computes."""

    def __init__(self, node: fx.Node, eps: float) -> None:
        self.node = node
        self.eps = eps
        self.reader = None

    @property
    def output(self) -> fx.Node:
        """The node whose value `forward` yields and whose carry `backward` takes."""
        return self.node

    def forward(self, run: Run) -> tuple[object, object]:
        """The operator's value, and what `backward` needs."""
        return self.node.target(*run.value(self.node.args), **run.value(self.node.kwargs)), None

    def backward(self, run: Run, carry, saved) -> None:
        """Hand carries to the inputs."""


class Activation(Operator):
    """Pass rule: the relevance of ``act(z)`` is that of ``z``, so ``c_z = c_y act(z) / z``."""

    def forward(self, run: Run) -> tuple[object, object]:
        value, _ = super().forward(run)
        return value, (run.env[self.node.args[0]], value)

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        z, y = saved
        # Relevance at z = 0 is 0 whatever the factor; 0 keeps the division out of it.
        run.give(self.node.args[0], torch.where(z == 0, 0, carry * (y / z)))


class Sum(Operator):
    """Epsilon rule of a sum ``s = a + b`` (or difference): ``c_a = c_b = c_s f(s)``; a sole ReLU is taken along."""

    def __init__(self, node: fx.Node, eps: float, activation: fx.Node | None) -> None:
        super().__init__(node, eps)
        self.activation = activation
        self.masks = False
        alpha = argument(node, "alpha")
        factors = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[node.target.overloadpacket.__name__]
        self.factors = list(zip(node.args[:2], factors, strict=True))

    @property
    def output(self) -> fx.Node:
        return self.node if self.activation is None else self.activation

    def forward(self, run: Run) -> tuple[object, object]:
        value, _ = super().forward(run)
        if self.activation is not None:
            value.relu_()
        shapes = [run.env[a].shape if isinstance(a, fx.Node) else None for a, _ in self.factors]
        # An added -inf hides an entry (attention masks): nothing comes back from there, and 0 is easier on 0 * inf.
        return value, (value.masked_fill(torch.isinf(value), 0) if self.masks else value, shapes)

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        value, shapes = saved
        scaled = stabilized(carry, value, self.eps)
        for (operand, factor), shape in zip(self.factors, shapes, strict=True):
            if operand in run.live:
                share = scaled if scaled.shape == shape else scaled.sum_to_size(shape)
                run.give(operand, share if factor == 1 else share * factor)


class Taped(Operator):
    """An operator whose ordinary vector-Jacobian product is its rule, by autograd.

    Right for whatever is linear in the tensors that carry relevance (views, concatenation, padding, scaling by a
    constant), for max pooling (the winner takes all), and for softmax and sigmoid (AttnLRP's Taylor rule).
    """

    def __init__(self, node: fx.Node, eps: float, receivers: list[fx.Node]) -> None:
        super().__init__(node, eps)
        self.receivers = receivers

    def forward(self, run: Run) -> tuple[object, object]:
        with torch.enable_grad():
            leaves = {n: run.env[n].detach().requires_grad_() for n in self.receivers}
            read = collections.ChainMap(leaves, run.env).__getitem__
            args, kwargs = fx.node.map_arg((self.node.args, self.node.kwargs), read)
            out = self.node.target(*args, **kwargs)
        outs = out if isinstance(out, (tuple, list)) else (out,)
        edge = torch.autograd.graph.get_gradient_edge
        edges = [edge(o) if isinstance(o, Tensor) and o.requires_grad else None for o in outs]
        if not any(e is not None for e in edges):
            raise CaptureError(
                f"{module_of(self.node)}: {self.node.target} has no derivative, so relevance would be lost there"
            )
        # Edges instead of tensors: a view's value need not outlive its last reader.
        saved = edges, [edge(leaf) for leaf in leaves.values()]
        return torch.utils._pytree.tree_map_only(Tensor, Tensor.detach, out), saved

    def backward(self, run: Run, carry, saved) -> None:
        edges, leaves = saved
        carries = self.modified(carry) if isinstance(carry, dict) else {0: self.modified(carry)}
        chosen = [i for i in carries if edges[i] is not None]
        outputs, products = [edges[i] for i in chosen], [carries[i] for i in chosen]
        shares = torch.autograd.grad(outputs, leaves, products, allow_unused=True)
        for node, share in zip(self.receivers, shares, strict=True):
            run.give(node, share)

    def modified(self, carry):
        """The carry as the rule wants it before the ordinary gradient is taken."""
        return carry


class Item(Operator):
    """One output of an operator with several: its carry waits with its siblings'."""

    def forward(self, run: Run) -> tuple[object, object]:
        return run.env[self.node.args[0]][self.node.args[1]], None

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        run.carries.setdefault(self.node.args[0], {})[self.node.args[1]] = carry


class Affine(Taped):
    """Epsilon (norm) rule by autograd: the ordinary product of ``c f(out)``. Average pools, means, lone batch norms."""

    def forward(self, run: Run) -> tuple[object, object]:
        value, saved = super().forward(run)
        return value, (value, saved)

    def backward(self, run: Run, carry: Tensor, saved) -> None:
        value, saved = saved
        super().backward(run, stabilized(carry, value, self.eps), saved)


class ElementwiseProduct(Taped):
    """Uniform split of ``a * b`` where both carry relevance: each gets half of it, ``c_a = c b / 2``."""

    def modified(self, carry: Tensor) -> Tensor:
        return carry / 2
