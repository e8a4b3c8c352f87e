"""Carries on their way back: tensors that their last reader may write over, and products that are not made yet."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from .. import ops


class Carry(abc.ABC):
    """The carry of a node. Each node that it is given to either reads it (:meth:`tensor`) or uses it up.

    Where `leads`, it is the one that takes others in when they meet.
    """

    leads = False

    @abc.abstractmethod
    def tensor(self) -> Tensor:
        """The carry, to be read, and to be aliased by others."""

    def held(self) -> Carry:
        """The same carry, to be read more than once."""
        return Held(self.tensor())

    @abc.abstractmethod
    def take(self) -> tuple[Tensor, bool]:
        """The carry for one who is done with it on return, and whether nobody else needs it: then it may be changed."""

    @abc.abstractmethod
    def joined(self, other: Carry) -> Carry:
        """The sum of two carries that meet at a node; both are used up."""

    def scaled(
        self,
        value: Tensor,
        eps: float,
        *,
        activation: str = "identity",
        unit_dim: int = 1,
        group: int = 1,
        sums: Tensor | None = None,
        stabilized_sums: bool = False,
        over: bool = False,
    ) -> Tensor:
        """``c act(z) / z f(z)`` in memory that is free, the unit sums added to `sums`: see `ops.epsilon_`.

        `over` says that nobody needs `value` any more: then its memory is free too.
        """
        carry, free = self.take()
        layer = {"eps": eps, "activation": activation, "unit_dim": unit_dim, "group": group}
        if free:
            return ops.epsilon_(carry, value, sums, stabilized_sums=stabilized_sums, **layer)
        if over:
            return ops.epsilon_over_(carry, value, sums, stabilized_sums=stabilized_sums, **layer)
        if stabilized_sums:
            carry = torch.empty_like(value).copy_(carry)
            ops.epsilon_(carry, value, sums, stabilized_sums=True, **layer)
            return carry
        scaled, found = ops.epsilon(carry, value, **layer)
        if sums is not None:
            sums += found
        return scaled


class Held(Carry):
    """A carry in memory.

    Parameters
    ----------
    value
        The carry.
    takers
        To how many nodes it is given; None where others know the memory too, so that it must never change.
    """

    def __init__(self, value: Tensor, takers: int | None = None) -> None:
        self.value = value
        self.takers = takers

    def tensor(self) -> Tensor:
        self.takers = None  # what the reader makes of it may be a view
        return self.value

    def take(self) -> tuple[Tensor, bool]:
        if self.takers is None:
            return self.value, False
        self.takers -= 1
        return self.value, self.takers == 0

    def joined(self, other: Carry) -> Carry:
        if not isinstance(other, Held):
            return other.joined(self)
        (mine, mine_free), (theirs, theirs_free) = self.take(), other.take()
        if mine_free or theirs_free:
            return Held(mine.add_(theirs) if mine_free else theirs.add_(mine), 1)
        return Held(mine + theirs, 1)


class Pending(Carry):
    """A carry that is made when it is used, together with what is done to it first."""

    def __init__(self) -> None:
        self.rest: Carry | None = None

    @abc.abstractmethod
    def make(self) -> Tensor:
        """The carry without those that joined it, in memory of its own."""

    def make_onto(self, rest: Tensor) -> Tensor:
        """The carry added to `rest`, whose memory is free to be used."""
        return self.make().add_(rest)

    def take(self) -> tuple[Tensor, bool]:
        if self.rest is None:
            return self.make(), True
        rest, free = self.rest.take()
        return self.make_onto(rest) if free else self.make().add_(rest), True

    def tensor(self) -> Tensor:
        return self.take()[0]

    def joined(self, other: Carry) -> Carry:
        if other.leads:
            return other.joined(self)
        self.rest = other if self.rest is None else self.rest.joined(other)
        return self


def fresh(tensor: Tensor, *sources: Tensor) -> Carry:
    """The carry that was just computed from `sources`: free to be changed if it lies densely in memory of its own."""
    storage = tensor.untyped_storage().data_ptr()
    own = all(source.untyped_storage().data_ptr() != storage for source in sources)
    return Held(tensor, 1 if own and torch.ops.aten.is_non_overlapping_and_dense(tensor) else None)
