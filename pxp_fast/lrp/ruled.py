"""Convolutions and linear layers by any rule of the registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, fx

from .carry import Carry, Held
from .graph import argument
from .layers import Weighted
from .onednn import Packed
from .registry import Part, Rule, Situation
from .relevance import Relevance
from .rules import Operator, Run


class Multiplier:
    """Products with one part of a layer's weight, laid out like the layer's own.

    Parameters
    ----------
    kernel
        The layer in the form that suits the machine, without its activation.
    part
        The weight and the bias that take the place of the layer's.
    """

    def __init__(self, kernel: Weighted, part: Part) -> None:
        self.kernel, self.bias, self.unpacked = kernel, part.bias, part.weight
        if isinstance(kernel, Packed):
            kernel.adopt({kernel.node.args[1]: part.weight})
            self.unpacked = kernel.weight
            if not part.forward:
                kernel.packed = None

    def product(self, source: Tensor) -> Tensor:
        return self.kernel.product(source, self.unpacked, self.bias)

    def transposed(self, shared: Tensor, shape: torch.Size) -> Carry:
        return self.kernel.transposed(shared, self.unpacked, shape)


@dataclasses.dataclass
class Layer:
    """What a rule is given of a layer and a batch.

    Attributes
    ----------
    source
        The layer's input ``[N, inputs, *]`` (convolutions) or ``[N, *, inputs]`` (linear layers). Only to be read.
    output
        ``z``, what the layer made of it, bias included. Only to be read. Where `rectified`, 0 takes the place of
        negative entries, at which there is no relevance.
    relevance
        Of the output, in memory of its own: a rule may write over it.
    stabilizer
        The rule's own, or else the composite's.
    nonnegative, rectified
        See :class:`Situation`.
    """

    source: Tensor
    output: Tensor
    relevance: Tensor
    stabilizer: float
    situation: Situation
    multipliers: dict[str, Multiplier]

    @property
    def nonnegative(self) -> bool:
        return self.situation.nonnegative

    @property
    def rectified(self) -> bool:
        return self.situation.rectified

    def product(self, part: str, source: Tensor) -> Tensor:
        """The layer with the weight and bias of a part, in memory of its own."""
        return self.multipliers[part].product(source)

    def transposed(self, part: str, shared: Tensor) -> Tensor:
        """The product of `shared`, of the output's shape, with the transposed weight of a part."""
        return self.carry(part, shared).tensor()

    def carry(self, part: str, shared: Tensor) -> Carry:
        """:meth:`transposed`, made where it is used: carries that are joined add up within the products."""
        return self.multipliers[part].transposed(shared, self.source.shape)


class Ruled(Operator):
    """Convolution or linear layer by a rule of the registry, with the activation that alone reads it.

    Its input is kept, and whatever else the rule multiplies is computed on the way back: the input is mostly kept in
    any case, as the output of the layer before it, while products would have to be stored.

    Parameters
    ----------
    rule
        The rule.
    layer
        The layer itself; its `backward` is not used.
    kernel
        Makes a form of the layer without activation, given whether its transposed product is needed.
    nonnegative
        Whether the layer's input has no negative entry.
    """

    def __init__(
        self,
        node: fx.Node,
        eps: float,
        rule: Rule,
        layer: Weighted,
        kernel: Callable[[bool], Weighted],
        nonnegative: bool,
    ) -> None:
        super().__init__(node, rule.stabilizer_or(eps))
        self.rule, self.layer, self.kernel = rule, layer, kernel
        self.situation = Situation(nonnegative, layer.name in ("relu", "relu6"))
        self.multipliers: dict[str, Multiplier] = {}

    @property
    def output(self) -> fx.Node:
        return self.layer.output

    def adopt(self, constants: dict[fx.Node, Tensor]) -> None:
        """Split the weight, and let the layer take it over."""
        bias = argument(self.node, "bias")
        weight, bias = constants[self.node.args[1]], constants[bias] if bias is not None else None
        parts = self.rule.parts(weight, bias, self.situation)
        self.multipliers = {name: Multiplier(self.kernel(part.back), part) for name, part in parts.items()}
        if isinstance(self.layer, Packed):
            self.layer.adopt(constants)

    def forward(self, run: Run) -> tuple[object, object]:
        source = run.env[self.node.args[0]]
        value, (z, *_) = self.layer.forward(run)
        return value, (z, source)

    def backward(self, run: Run, carry: Carry, saved) -> None:
        z, source = saved
        relevance = self._relevance(run, carry, z)
        if self.node.args[0] not in run.live:
            return
        layer = Layer(source, z, relevance, self.eps, self.situation, self.multipliers)
        found = self.rule.propagate(layer)
        if self.rule.spreads and found is not None:
            found = Relevance(found, source)
        run.give(self.node.args[0], Held(found, 1) if isinstance(found, Tensor) else found)

    def _relevance(self, run: Run, carry: Carry, z: Tensor) -> Tensor:
        """The relevance of the output, in memory of its own; a unit layer's sums are read on the way."""
        # Behind a ReLU its output is kept in place of z: the factor is in its sign.
        name = "identity" if self.layer.name == "relu" else self.layer.name
        reader, unit_dim = self.reader, self.layer.unit_dim
        direct = reader is None or not reader.batch_dim
        if not isinstance(carry, Relevance) and direct:
            with run.sums(reader, len(z)) as sums:
                return carry.scaled(z, 0.0, activation=name, unit_dim=unit_dim, sums=sums).mul_(z)
        relevance = carry.at(z) if isinstance(carry, Relevance) else carry.scaled(z, 0.0, activation=name).mul_(z)
        if reader is not None:
            rows = relevance.movedim(reader.batch_dim, 0)
            rows = rows.movedim(-1 if reader.batch_dim else unit_dim, -1).reshape(len(rows), -1, reader.count)
            with run.sums(reader, len(rows)) as sums:
                sums += torch.stack((rows.sum(1, dtype=sums.dtype), rows.abs().sum(1, dtype=sums.dtype)))
        return relevance
