"""Relevance rules as modified gradients.

Relevance travels as a *carry*: the carry of a tensor ``a`` is ``c_a = R_a / a``, so ``R_a = a * c_a``, and every rule
becomes a modified vector-Jacobian product that neither multiplies inputs in nor divides them out. Throughout,
``f(z) = z / (z + eps * sgn z)`` is the stabilizing factor of the epsilon rule.

Each class below is one operator of a compiled program: `forward` computes it and puts by what the way back needs,
`backward` turns the carry of its output into carries of its inputs.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, fx

from .. import ops
from ..errors import CaptureError
from .carry import Carry, Held, fresh
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


def stabilized(carry: Carry, value: Tensor, eps: float, over: bool = False) -> Tensor:
    """``c f(z)`` in memory that is free, where no unit is read; `over`: that of `value` is."""
    if value.dim() < 2:
        return Held(carry.tensor().reshape(-1, 1)).scaled(value.reshape(-1, 1), eps).view(value.shape)
    return carry.scaled(value, eps, over=over)


class Run:
    """The state of one pass: values still needed, what each operator put by, carries not yet used.

    `spent` says that on the way back an operator's own value is needed by nobody else: all who read it come before.
    """

    def __init__(self, live: set[fx.Node], env: dict, table: Tensor, spent: bool) -> None:
        self.live = live
        self.env = env
        self.table = table
        self.spent = spent
        self.carries: dict[fx.Node, Carry | dict[int, Tensor]] = {}

    def value(self, arg):
        return fx.node.map_arg(arg, self.env.__getitem__)

    def give(self, node: object, carry: Carry | Tensor | None) -> None:
        """Add a carry to a node's; a node that relevance need not reach is ignored.

        A bare tensor is one that others may know: it will not be changed.
        """
        if carry is None or node not in self.live:
            return
        carry = Held(carry) if isinstance(carry, Tensor) else carry
        held = self.carries.get(node)
        self.carries[node] = carry if held is None else held.joined(carry)

    @contextlib.contextmanager
    def sums(self, reader, samples: int) -> Iterator[Tensor | None]:
        """Where a unit layer's sums ``[2, samples, units]`` are to be added: its columns of the table ``[2, N, U]``.

        A layer that works on windows has several samples for each image, whose sums are added up.
        """
        if reader is None:
            yield None
            return
        columns = self.table[:, :, reader.offset : reader.offset + reader.count]
        images = columns.shape[1]
        if samples == images:
            yield columns
            return
        parts = columns.new_zeros(2, samples, reader.count)
        yield parts
        columns += parts.unflatten(1, (images, samples // images)).sum(2)


class Operator:
    """An operator that relevance does not pass: it only computes."""

    def __init__(self, node: fx.Node, eps: float) -> None:
        self.node = node
        self.eps = eps
        self.reader = None
        self.bypassed = False

    @property
    def output(self) -> fx.Node:
        """The node whose value `forward` yields."""
        return self.node

    def forward(self, run: Run) -> tuple[object, object]:
        """The operator's value, and what `backward` needs."""
        return self.node.target(*run.value(self.node.args), **run.value(self.node.kwargs)), None

    def adopt(self, constants: dict[fx.Node, Tensor]) -> None:
        """Make ready before the first batch; weights that nobody else needs may be taken out of the constants."""

    @property
    def takes(self) -> fx.Node | None:
        """The node whose carry `backward` takes; None where the carry passes this operator by."""
        return None if self.bypassed else self.output

    def backward(self, run: Run, carry, saved) -> None:
        """Turn the carry of the output, a :class:`Carry`, into carries of the inputs."""


class Activation(Operator):
    """Pass rule: the relevance of ``act(z)`` is that of ``z``, so ``c_z = c_y act(z) / z``."""

    def forward(self, run: Run) -> tuple[object, object]:
        value, _ = super().forward(run)
        return value, (run.env[self.node.args[0]], value)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        z, y = saved
        # Relevance at z = 0 is 0 whatever the factor; 0 keeps the division out of it.
        run.give(self.node.args[0], Held(torch.where(z == 0, 0, carry.tensor() * (y / z)), 1))


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
        if self.activation is None:
            value, _ = super().forward(run)
        else:
            value = self._rectified(run)
        shapes = [run.env[a].shape if isinstance(a, fx.Node) else None for a, _ in self.factors]
        # An added -inf hides an entry (attention masks): nothing comes back from there, and 0 is easier on 0 * inf.
        return value, (value.masked_fill(torch.isinf(value), 0) if self.masks else value, shapes)

    def _rectified(self, run: Run) -> Tensor:
        operands = [run.env.get(a) if isinstance(a, fx.Node) else None for a, _ in self.factors]
        plain = all(factor == 1 for _, factor in self.factors) and all(t is not None for t in operands)
        if plain and len({(t.shape, t.dtype) for t in operands}) == 1:
            return ops.add_relu(*operands)
        return super().forward(run)[0].relu_()

    def backward(self, run: Run, carry: Carry, saved) -> None:
        value, shapes = saved
        scaled = stabilized(carry, value, self.eps, over=run.spent)
        whole = [
            operand in run.live and factor == 1 and scaled.shape == shape
            for (operand, factor), shape in zip(self.factors, shapes, strict=True)
        ]
        # First what is computed from it: once given away whole, it may be added to.
        for (operand, factor), shape, direct in zip(self.factors, shapes, whole, strict=True):
            if operand in run.live and not direct:
                run.give(operand, Held(scaled.sum_to_size(shape) * factor, 1))
        shared = Held(scaled, sum(whole))
        for (operand, _), direct in zip(self.factors, whole, strict=True):
            if direct:
                run.give(operand, shared)


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

    def backward(self, run: Run, carry: Carry | dict[int, Tensor], saved) -> None:
        self.pull(run, carry if isinstance(carry, dict) else {0: carry.tensor()}, saved)

    def pull(self, run: Run, carries: dict[int, Tensor], saved) -> None:
        """Give the receivers the vector-Jacobian product of the outputs' carries."""
        edges, leaves = saved
        chosen = [i for i in carries if edges[i] is not None]
        outputs, products = [edges[i] for i in chosen], [carries[i] for i in chosen]
        shares = torch.autograd.grad(outputs, leaves, products, allow_unused=True)
        for node, share in zip(self.receivers, shares, strict=True):
            # Shares of several receivers may lie in each other's memory.
            alone = share is not None and len(shares) == 1
            run.give(node, fresh(share, *products) if alone else share)


class Item(Operator):
    """One output of an operator with several: its carry waits with its siblings'."""

    def forward(self, run: Run) -> tuple[object, object]:
        return run.env[self.node.args[0]][self.node.args[1]], None

    def backward(self, run: Run, carry: Carry, saved) -> None:
        siblings, place, value = run.carries.setdefault(self.node.args[0], {}), self.node.args[1], carry.tensor()
        siblings[place] = value if place not in siblings else siblings[place] + value


class Affine(Taped):
    """Epsilon (norm) rule by autograd: the ordinary product of ``c f(out)``. Average pools, means, lone batch norms."""

    def forward(self, run: Run) -> tuple[object, object]:
        value, saved = super().forward(run)
        return value, (value, saved)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        value, saved = saved
        self.pull(run, {0: stabilized(carry, value, self.eps)}, saved)


class ElementwiseProduct(Taped):
    """Uniform split of ``a * b`` where both carry relevance: each gets half of it, ``c_a = c b / 2``."""

    def pull(self, run: Run, carries: dict[int, Tensor], saved) -> None:
        super().pull(run, {i: carry / 2 for i, carry in carries.items()}, saved)
