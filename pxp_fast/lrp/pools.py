"""Max pooling: the winner takes all. What it hands down is made together with the pass of the layer below."""

from __future__ import annotations

import math

from torch import Tensor, fx

from .. import ops
from ..ops.max_pool import LARGEST_WINDOW
from .carry import Carry, Pending
from .graph import argument
from .rules import Run, Taped


def pools(node: fx.Node) -> bool:
    """Whether :class:`MaxPool` can run a max pooling in two dimensions."""
    if node.meta["val"].dim() != 4 or math.prod(_pair(argument(node, "kernel_size"))) > LARGEST_WINDOW:
        return False
    padding, dilation = (_pair(argument(node, name)) for name in ("padding", "dilation"))
    sizes = node.args[0].meta["val"].shape[2:]
    return all(p == 0 or d <= size for size, p, d in zip(sizes, padding, dilation, strict=True))


class MaxPool(Taped):
    """Max pooling in two dimensions, by its ordinary vector-Jacobian product.

    No indices are kept: the pooling's input, which the layer below has kept anyway, tells again who won. Contiguous
    images on a CPU are left to autograd, which is quicker there.
    """

    def __init__(self, node: fx.Node, eps: float, receivers: list[fx.Node]) -> None:
        super().__init__(node, eps, receivers)
        self.window = {
            "kernel": _pair(argument(node, "kernel_size")),
            "stride": _pair(argument(node, "stride") or argument(node, "kernel_size")),
            "padding": _pair(argument(node, "padding")),
            "dilation": _pair(argument(node, "dilation")),
            "ceil_mode": bool(argument(node, "ceil_mode")),
        }

    def forward(self, run: Run) -> tuple[object, object]:
        source = run.env[self.node.args[0]]
        if source.device.type == "cpu" and source.is_contiguous():
            return super().forward(run)
        return ops.max_pool(source, **self.window), source

    def backward(self, run: Run, carry: Carry, saved) -> None:
        if not isinstance(saved, Tensor):
            super().backward(run, carry, saved)
            return
        run.give(self.node.args[0], WinnersCarry(carry.tensor(), saved, self.window))


class WinnersCarry(Pending):
    """The carry of those who won their windows; the layer below stabilises it on the way.

    Parameters
    ----------
    carry
        The carry of the pooling's output.
    value
        What was pooled.
    window
        Of the pooling.
    """

    def __init__(self, carry: Tensor, value: Tensor, window: dict) -> None:
        super().__init__()
        self.carry, self.value, self.window = carry, value, window

    def make(self) -> Tensor:
        return ops.max_pool_epsilon(self.carry, self.value, **self.window)

    def take(self) -> tuple[Tensor, bool]:
        return ops.max_pool_epsilon(self.carry, self.value, self._others(), **self.window), True

    def scaled(self, value: Tensor, eps: float, *, sums: Tensor | None = None, over: bool = False, **layer) -> Tensor:
        if not (self._pooled(value) and _plain(sums is not None, **layer)):
            return super().scaled(value, eps, sums=sums, over=over, **layer)
        options = {**self.window, "eps": eps, "in_place": over}
        return ops.max_pool_epsilon(self.carry, value, self._others(), sums, **options)

    def _others(self) -> Tensor | None:
        return None if self.rest is None else self.rest.take()[0]

    def _pooled(self, value: Tensor) -> bool:
        """Whether this is what was pooled."""
        mine = self.value
        return value is mine or (value.data_ptr(), value.shape, value.stride()) == (
            mine.data_ptr(),
            mine.shape,
            mine.stride(),
        )


def _plain(
    summed: bool, *, activation: str = "identity", unit_dim: int = 1, group: int = 1, stabilized_sums: bool = False
) -> bool:
    """Whether the layer below wants no more than a stabilizer and the sums of channels."""
    return activation == "identity" and not stabilized_sums and (not summed or (unit_dim == 1 and group == 1))


def _pair(value) -> list[int]:
    """ATen's ``int[2]`` arguments, which may come as one number."""
    value = [value] if isinstance(value, int) else list(value)
    return value * 2 if len(value) == 1 else value
