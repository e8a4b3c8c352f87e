"""Layer-wise relevance as a criterion: the engine, pointed at a network's units."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from ..errors import NumericalError, PxpError
from ..finding import find_units
from ..lrp import Composite, Program, Reader, capture
from ..units import KINDS, UnitGroup


class Relevance:
    """Relevance of every unit of a classifier, batch by batch.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; left as it is.
    example
        A batch that the model accepts; only its shape matters.
    composite
        Rules, or their name.
    kinds
        Kinds of units to score, of ``"filter"``, ``"neuron"``, ``"head"``; None: all.
    dtype, device
        Of the computation; default: the model's.
    fused
        Whether products and passes are one kernel; see :class:`pxp_fast.lrp.Program`.
    exact
        Slower kernels for float32, with smaller rounding errors; see :class:`pxp_fast.lrp.Program`.

    Attributes
    ----------
    units
        The unit groups, in execution order; their units are the table's columns, in this order.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        *,
        composite: str | Composite = "epsilon",
        kinds: tuple[str, ...] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        exact: bool = False,
        fused: bool | None = None,
    ) -> None:
        unknown = set(kinds or ()) - set(KINDS)
        if unknown:
            raise PxpError(f"unit kinds {sorted(unknown)} are not known; choose from {', '.join(KINDS)}")
        captured = capture(model, example)
        sites = find_units(captured, kinds)
        if not sites:
            raise PxpError(f"{type(model).__name__} has no units of kind {', '.join(kinds or KINDS)} to score")
        offsets: dict[str, int] = {}
        groups: dict[str, UnitGroup] = {}
        readers, total = {}, 0
        for site in sites:  # a module that is used twice is one group, read twice
            name = site.group.name
            if name not in groups:
                groups[name], offsets[name] = site.group, total
                total += site.group.count
            else:
                slices = dict.fromkeys((*groups[name].slices, *site.group.slices))
                groups[name] = dataclasses.replace(groups[name], slices=tuple(slices))
            readers[site.node] = Reader(offsets[name], site.group.count, site.batch_dim, site.scale)
        self.units = tuple(groups.values())
        self.num_classes = captured.num_classes
        self.program = Program(captured, readers, composite, dtype=dtype, device=device, exact=exact, fused=fused)

    def run(self, images: Tensor, targets: Tensor, initial: str = "one", observe=None) -> Tensor:
        """Table ``[2, N, U]`` of signed and absolute relevance; see :meth:`pxp_fast.lrp.Program.run`."""
        return self.program.run(images, targets, initial, observe)

    def check_finite(self, values: Tensor) -> None:
        """Raise NumericalError naming the layer nearest the output where ``values [..., U]`` are not finite."""
        finite = torch.isfinite(values).flatten(0, -2).all(0)
        if bool(finite.all()):
            return
        per_group = torch.split(finite, [group.count for group in self.units])
        group, bad = next((g, f) for g, f in reversed(list(zip(self.units, per_group, strict=True))) if not f.all())
        raise NumericalError(
            f"relevance of {group.name} is not finite in {int((~bad).sum())} of {group.count} {group.kind}s; check "
            "that the images are finite and scaled as the model expects, or use float32 (--dtype float32)"
        )


def attribute(model: nn.Module, images: Tensor, targets: Tensor, *, composite: str | Composite = "epsilon") -> Tensor:
    """Relevance of every input pixel, for heat maps.

    Parameters
    ----------
    model
        Left as it is.
    images
        ``[N, C, H, W]``.
    targets
        ``[N]`` int64: the class explained.

    Returns
    -------
    Tensor
        ``[N, C, H, W]``, dtype of the model; its sum is the relevance 1 that entered at the logit, less what biases
        and attention's softmax took.
    """
    captured = capture(model, images)
    program = Program(captured, {}, composite, input_relevance=True)
    heat: list[Tensor] = []

    def keep(node, value: Tensor, carry: Tensor) -> None:
        if node is captured.images:
            heat.append(value * carry)

    program.run(images, targets, observe=keep)
    return heat[0]
