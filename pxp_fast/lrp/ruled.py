"""Convolutions and linear layers by any rule of the registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, fx

from .. import ops
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
        self._of_ones: Tensor | None = None

    def of_ones(self, source: Tensor) -> Tensor:
        """The product with ones, ``[1, ...]`` for all samples of whatever batch; only to be read."""
        if self._of_ones is None:
            self._of_ones = self.product(torch.ones_like(source[:1]))
        return self._of_ones

    def product(self, source: Tensor) -> Tensor:
        return self.kernel.product(source, self.unpacked, self.bias)

    def transposed(self, shared: Tensor, shape: torch.Size) -> Carry:
        return self.kernel.transposed(shared, self.unpacked, shape)


class Layer:
    """What a rule is given of a layer and a batch.

    Attributes
    ----------
    source
        The layer's input ``[N, inputs, *]`` (convolutions) or ``[N, *, inputs]`` (linear layers). Only to be read.
    output
        ``z``, what the layer made of it, bias included. Only to be read. Where `rectified`, 0 may take the place of
        negative entries, at which there is no relevance.
    stabilizer
        The rule's own, or else the composite's.
    nonnegative, rectified, exact
        See :class:`Situation`.
    """

    def __init__(
        self,
        source: Tensor,
        output: Tensor,
        carry: Tensor | None,
        relevance: Tensor | None,
        stabilizer: float,
        situation: Situation,
        multipliers: dict[str, Multiplier],
    ) -> None:
        self.source, self.output, self.stabilizer = source, output, stabilizer
        self.nonnegative, self.rectified, self.exact = dataclasses.astuple(situation)
        self._carry, self._relevance, self._multipliers = carry, relevance, multipliers

    @property
    def relevance(self) -> Tensor:
        """Relevance of the output, of its shape, in memory that the rule may write over."""
        if self._relevance is None:
            self._relevance = self._carry.mul_(self.output)
        return self._relevance

    def product(self, part: str, source: Tensor) -> Tensor:
        """The layer with the weight and bias of a part, in memory of its own."""
        return self._multipliers[part].product(source)

    def of_ones(self, part: str) -> Tensor:
        """:meth:`product` with ones in place of the input, ``[1, ...]``, the same for every batch; only to be read."""
        return self._multipliers[part].of_ones(self.source)

    def transposed(self, part: str, shared: Tensor) -> Tensor:
        """The product of `shared`, of the output's shape, with the transposed weight of a part."""
        return self.carry(part, shared).tensor()

    def carry(self, part: str, shared: Tensor) -> Carry:
        """:meth:`transposed`, made where it is used: carries that are joined add up within the products."""
        return self._multipliers[part].transposed(shared, self.source.shape)

    def share(self, product: Tensor, form: str, factor: float = 1, **factors: float) -> tuple[Tensor, Tensor]:
        """Relevance divided by what contributed, see `ops.share_`; `product` and the relevance are used up.

        `factor` is that of the stabilizer.
        """
        given = self._relevance is not None
        divided = self._relevance if given else self._carry
        return ops.share_(
            divided, self.output, product, form=form, eps=factor * self.stabilizer, given=given, **factors
        )


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
    nonnegative, exact
        See :class:`Situation`.
    """

    def __init__(
        self,
        node: fx.Node,
        eps: float,
        rule: Rule,
        layer: Weighted,
        kernel: Callable[[bool], Weighted],
        nonnegative: bool,
        exact: bool,
    ) -> None:
        super().__init__(node, rule.stabilizer_or(eps))
        self.rule, self.layer, self.kernel = rule, layer, kernel
        self.situation = Situation(nonnegative, layer.name in ("relu", "relu6"), exact)
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
        passed = self._passed(run, carry, z)
        if self.node.args[0] not in run.live:
            return
        layer = Layer(source, z, *passed, self.eps, self.situation, self.multipliers)
        found = self.rule.propagate(layer)
        if self.rule.spreads and found is not None:
            found = Relevance(found, source)
        run.give(self.node.args[0], Held(found, 1) if isinstance(found, Tensor) else found)

    def _passed(self, run: Run, carry: Carry, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The carry or, where that is at hand, the relevance of the layer's output; a unit layer's sums are read."""
        # Behind a ReLU its output is kept in place of z: the factor is in its sign.
        name = "identity" if self.layer.name == "relu" else self.layer.name
        reader, unit_dim = self.reader, self.layer.unit_dim
        if not isinstance(carry, Relevance) and (reader is None or not reader.batch_dim):
            with run.sums(reader, len(z)) as sums:
                return carry.scaled(z, 0.0, activation=name, unit_dim=unit_dim, sums=sums), None
        relevance = carry.at(z) if isinstance(carry, Relevance) else carry.scaled(z, 0.0, activation=name).mul_(z)
        if reader is not None:
            rows = relevance.movedim(reader.batch_dim, 0)
            rows = rows.movedim(-1 if reader.batch_dim else unit_dim, -1).reshape(len(rows), -1, reader.count)
            with run.sums(reader, len(rows)) as sums:
                sums += torch.stack((rows.sum(1, dtype=sums.dtype), rows.abs().sum(1, dtype=sums.dtype)))
        return None, relevance
