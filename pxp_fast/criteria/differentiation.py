"""A captured classifier run as it is: the values of its unit layers, and the true gradients there.

The units, and the tensors at which they are read, are those of relevance: batch norms are merged, tokens that the
classifier does not read are left out, nothing below the first unit is differentiated, and no weight is. The user's
model takes no part: gradients are caught on tensors of the captured graph.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from ..errors import PxpError
from ..lrp import Captured, Reader
from ..lrp.batches import check_batch
from ..lrp.fused import reproducible
from ..lrp.prepare import last_uses, ordinary, prepare
from .base import Columns

EXPLAINED = ("logit", "loss")
"""What is differentiated: the logit of the label, or the cross-entropy with the label, of each sample."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A unit layer: its columns of the table, and the dimensions of its output.

    Attributes
    ----------
    offset, count
        Its columns.
    batch_dim, unit_dim
        The dimensions that hold the samples (or several rows of each, samples outermost) and the units.
    heads
        Whether it is attention's output ``[N, heads, queries, d]``, whose positions are the queries.
    """

    offset: int
    count: int
    batch_dim: int
    unit_dim: int
    heads: bool

    @classmethod
    def of(cls, reader: Reader, kind: str) -> Reading:
        return cls(reader.offset, reader.count, reader.batch_dim, -1 if kind == "neuron" else 1, kind == "head")

    def by_position(self, products: Tensor) -> Tensor:
        """Products of values and gradients, those of a head summed over its features: one for each query."""
        return products.sum(-1, keepdim=True) if self.heads else products

    def add(self, table: Tensor, values: Tensor, scale: float = 1.0) -> None:
        """Add to the table ``[2, N, U]`` the sums of `values`, and of their absolute values, over positions."""
        unit_dim = self.unit_dim % values.dim()
        summed = [dim for dim in range(values.dim()) if dim not in (self.batch_dim, unit_dim)]
        wide = values.to(table.dtype) if not summed else values
        signed = values.sum(summed, dtype=table.dtype) if summed else wide
        absolute = torch.linalg.vector_norm(values, 1, summed, dtype=table.dtype) if summed else wide.abs()
        columns = table[:, :, self.offset : self.offset + self.count]
        for row, sums in zip(columns, (signed, absolute), strict=True):
            row += sums.unflatten(0, (len(row), -1)).sum(1) * scale

    def apart(self, values: Tensor, samples: int, steps: int) -> Tensor:
        """`values` of ``samples * steps`` images as ``[steps, samples, ...]``, `batch_dim` and on moved by one."""
        return values.unflatten(self.batch_dim, (samples, steps, -1)).movedim(self.batch_dim + 1, 0)

    def together(self, values: Tensor) -> Tensor:
        """One step of :meth:`apart`, or a sum over them, in the form of the layer's output."""
        return values.flatten(self.batch_dim, self.batch_dim + 1)


class Differentiation:
    """Runs a captured classifier on batches and hands on what happens at its unit layers.

    Parameters
    ----------
    captured
        From :func:`pxp_fast.lrp.capture`. Taken over and rewritten; the model stays as it is.
    columns
        Its units, found beforehand.
    measure
        Called as ``measure(images, targets, table)`` for each batch; fills the table ``[2, N, U]``, of zeros.
    every_token
        Compute the unit layers' outputs at tokens that the classifier does not read as well.
    dtype, device
        Of the computation; default: those of the model.
    exact
        In float32, contiguous convolutions, and no TF32 on a GPU.
    """

    def __init__(
        self,
        captured: Captured,
        columns: Columns,
        measure: Callable[[Tensor, Tensor, Tensor], None],
        *,
        every_token: bool = False,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        exact: bool = False,
    ) -> None:
        given = [t for t in captured.constants.values() if isinstance(t, Tensor) and t.is_floating_point()]
        self.dtype = dtype or given[0].dtype
        self.device = torch.device(device) if device is not None else given[0].device
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.exact = exact
        self.captured = captured
        self.measure = measure
        self.units = columns.count
        self.readings = {s.node: Reading.of(columns.readers[s.node], s.group.kind) for s in columns.sites}
        prepared = prepare(captured, self.dtype, self.device, exact=exact, every_token=every_token)
        self.constants, self.layout = prepared.constants, prepared.layout
        self.steps = list(captured.nodes())
        reads_and_makes = [(node.all_input_nodes, node) for node in self.steps]
        self.release = last_uses(reads_and_makes, {captured.logits, *captured.constants})

    def check(self, images: Tensor, targets: Tensor, initial: str = "one") -> None:
        """Raise DataError unless :meth:`compute` can take this batch."""
        check_batch(self.captured, images, targets)
        if initial != "one":
            raise PxpError(f"initial is {initial!r}, but only relevance (criterion 'lrp') starts from anything else")

    def compute(self, images: Tensor, targets: Tensor, initial: str = "one") -> Tensor:
        """Table ``[2, N, U]`` in float32 (float64 for float64); nothing here waits for the device."""
        state = torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False)
        with contextlib.ExitStack() as stack:
            for context in (*state, reproducible(self.device, self.exact)):
                stack.enter_context(context)
            images = ordinary(images).detach().to(self.device, self.dtype)
            table = torch.zeros(2, len(images), self.units, dtype=self.wide, device=self.device)
            if len(images):
                self.measure(images, ordinary(targets).to(self.device), table)
            return table

    def forward(self, images: Tensor, arrive: Callable[[fx.Node, Tensor], Tensor]) -> Tensor:
        """The logits. ``arrive(node, value)`` gets every unit layer's output, and gives what goes on in its stead."""
        images = images.contiguous(memory_format=self.layout)
        env: dict[fx.Node, object] = {**self.constants, self.captured.images: images}
        for node, dead in zip(self.steps, self.release, strict=True):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), env.__getitem__)
            env[node] = node.target(*args, **kwargs)
            if node in self.readings:
                env[node] = arrive(node, env[node])
            for one in dead:
                del env[one]
        return env[self.captured.logits]

    def gradients(
        self,
        images: Tensor,
        targets: Tensor,
        visit: Callable[[Reading, Tensor, Tensor], None],
        of: str = "logit",
    ) -> None:
        """Call ``visit(reading, value, gradient)`` for every unit layer, from the last to the first.

        The gradient is that of the label's logit, or of the cross-entropy with it, of each sample. One pass forward
        and one back for all layers together; a gradient is gone once it has been visited.
        """
        roots: list[Tensor] = []

        def arrive(node: fx.Node, value: Tensor) -> Tensor:
            if not value.requires_grad:  # no unit lies below: here the way back ends
                value = value.detach().requires_grad_()
                roots.append(value)
            value.register_hook(functools.partial(visit, self.readings[node], value.detach()))
            return value

        with torch.enable_grad():
            logits = self.forward(images, arrive)
            if of == "loss":
                explained = F.cross_entropy(logits.to(self.wide), targets, reduction="sum")
            else:
                explained = logits.gather(1, targets.unsqueeze(1)).sum()
        torch.autograd.grad(explained, roots, allow_unused=True)
