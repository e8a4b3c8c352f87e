"""Relevance that no carry can express, because some of it lies where the value is 0, on its way to the next layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from .carry import Carry, Held
from .graph import packet
from .registry import Rule
from .rules import ACTIVATIONS, Activation, Operator, Run, Taped

# Operators whose every output entry is one entry of their sole input: relevance goes where the entry came from.
RELAYING = {
    "_unsafe_view", "adaptive_max_pool1d", "adaptive_max_pool2d", "amax", "clone", "constant_pad_nd", "contiguous",
    "expand", "flatten", "flip", "gather", "index_select", "max_pool1d", "max_pool2d", "max_pool3d", "movedim",
    "narrow", "pad", "permute", "pixel_shuffle", "pixel_unshuffle", "repeat", "reshape", "roll", "select", "slice",
    "squeeze", "t", "tile", "to", "transpose", "unflatten", "unsqueeze", "view", "_to_copy",
}  # fmt: skip


class Relevance(Carry):
    """Relevance itself where others hold a carry, and the carry that met it.

    Activations, pools, views and layers with weights take it as it is. For all others it is a carry, ``R / a``, in
    which what lies at ``a = 0`` is lost.

    Parameters
    ----------
    relevance
        Of the node that it is given to.
    value
        That node's value.
    """

    leads = True

    def __init__(self, relevance: Tensor, value: Tensor, rest: Carry | None = None) -> None:
        self.amount, self.value, self.rest = relevance, value, rest

    def held(self) -> Carry:
        return Relevance(self.amount, self.value, self.rest and self.rest.held())

    def tensor(self) -> Tensor:
        # What is that small would make a carry that overflows.
        zero = self.value.abs() < torch.finfo(self.value.dtype).tiny
        carry = torch.where(zero, 0, self.amount / self.value.masked_fill(zero, 1))
        return carry if self.rest is None else carry + self.rest.tensor()

    def take(self) -> tuple[Tensor, bool]:
        return self.tensor(), True

    def joined(self, other: Carry) -> Carry:
        if not isinstance(other, Relevance):
            return Relevance(self.amount, self.value, other if self.rest is None else self.rest.joined(other))
        rests = [carry.rest for carry in (self, other) if carry.rest is not None]
        rest = rests[0].joined(rests[1]) if len(rests) == 2 else rests[0] if rests else None
        return Relevance(self.amount + other.amount, self.value, rest)

    def scaled(self, value: Tensor, eps: float, **layer) -> Tensor:
        if layer.get("sums") is not None or layer.get("activation", "identity") != "identity":
            return Held(self.tensor(), 1).scaled(value, eps, **layer)
        stabilizer = torch.full_like(value, eps).copysign_(value.masked_fill(value == 0, 1))
        scaled = self.amount / (value + stabilizer)
        return scaled if self.rest is None else scaled + self.rest.scaled(value, eps, **layer)

    def at(self, value: Tensor) -> Tensor:
        """All of the relevance at a node with this value, in memory of its own."""
        return self.amount.clone() if self.rest is None else self.amount + self.rest.tensor() * value


class RelayedActivation(Activation):
    """An activation that passes relevance on also where its output is 0."""

    def backward(self, run: Run, carry: Carry, saved) -> None:
        if isinstance(carry, Relevance):
            run.give(self.node.args[0], Relevance(carry.amount, saved[0]))
            carry = carry.rest
        if carry is not None:
            super().backward(run, carry, saved)


class Relayed(Taped):
    """A view, padding or max pool that passes relevance on also where its output is 0."""

    def forward(self, run: Run) -> tuple[object, object]:
        value, saved = super().forward(run)
        return value, (saved, run.env[self.receivers[0]])

    def backward(self, run: Run, carry: Carry, saved) -> None:
        saved, source = saved
        if not isinstance(carry, Relevance):
            super().backward(run, carry, saved)
            return
        products = [carry.amount] if carry.rest is None else [carry.amount, carry.rest.tensor()]
        edges, leaves = saved
        amount, *rest = (
            torch.autograd.grad(edges[:1], leaves, product, retain_graph=len(products) > 1)[0] for product in products
        )
        run.give(self.receivers[0], Relevance(amount, source, Held(rest[0]) if rest else None))


class Passed(Operator):
    """The pass rule for any operator that leaves the shape as it is: its input has its output's relevance."""

    def forward(self, run: Run) -> tuple[object, object]:
        value, _ = super().forward(run)
        return value, (run.env[self.node.args[0]], value)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        source, value = saved
        amount = carry.at(value) if isinstance(carry, Relevance) else carry.tensor() * value
        run.give(self.node.args[0], Relevance(amount, source))


def spread(nodes: Iterable[fx.Node], rules: dict[fx.Node, Rule], live: set[fx.Node]) -> set[fx.Node]:
    """The nodes that may be given relevance itself, since a layer above them `spreads` it."""
    found: set[fx.Node] = set()
    for node in reversed(list(nodes)):
        relays = node in found and (node.target in ACTIVATIONS or packet(node) in RELAYING)
        source = node.args[0] if node.args else None
        if source in live and (relays or node in rules and rules[node].spreads):
            found.add(source)
    return found
