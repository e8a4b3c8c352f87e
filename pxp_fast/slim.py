"""Slimming: what a plan removes cut out of a model, which stays an ordinary module of its own class."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import SlimError
from .finding import find_units
from .lrp import capture
from .lrp.graph import Captured
from .masks import apply_mask, masked_tensors
from .plan import Plan, PlannedGroup
from .slimming import coupled, removable
from .slimming.compare import difference, problem, tolerance
from .slimming.costs import Costs, costs
from .slimming.coupling import Coupling
from .slimming.masked import with_parameters
from .slimming.removal import Removal
from .slimming.surgery import cut
from .units import UnitGroup

if TYPE_CHECKING:
    from .repair import Repair


class Slimmer:
    """A model whose channels are known: which go together, and what is left of it under any plan.

    Parameters
    ----------
    model
        A classifier; read, never changed.
    example
        Images ``[N, C, H, W]`` that it accepts. Their values matter in :meth:`slim` alone.
    """

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self.model = model
        self.example = example
        self.captured = capture(model, example)
        self.coupling = Coupling(self.captured)

    def masked(self, plan: Plan) -> Captured:
        """The captured model with the parameters that a plan's masks leave."""
        return with_parameters(self.captured, masked_tensors(self.model, plan))

    def removal(self, plan: Plan | None = None, *, rearranged: bool = True) -> Removal:
        """What can be cut out of the model under a plan's masks; None: of the model as it is.

        `rearranged`: also channels that the model lays out in several dimensions, as heads and their features, which
        asks of its code that it takes these sizes from its inputs or from attributes that are known.
        """
        captured = self.captured if plan is None else self.masked(plan)
        return Removal(captured, self.coupling, rearranged, self.model)

    def removable(self, groups: Iterable[UnitGroup] | None = None) -> dict[str, Tensor]:
        """For each group the units that can be cut out without any other, bool ``[count]``; None: all of the model.

        Where a convolution needs as many channels in every group of its own, "without any other" is to say that one of
        every group is cut out; see :meth:`parts`.
        """
        return removable.removable(self, self._groups(groups))

    def coupled(self, groups: Iterable[UnitGroup] | None = None) -> dict[str, Tensor]:
        """For each group the class of each unit, int64 ``[count]``: what has the same can be cut out together.

        -1: not even then.
        """
        return coupled.coupled(self, self._groups(groups))

    def parts(self, groups: Iterable[UnitGroup] | None = None) -> dict[str, Tensor]:
        """For each group that must lose as many units of each of several parts, the part of each, int64 ``[count]``."""
        return removable.parts(self, self._groups(groups))

    def _groups(self, groups: Iterable[UnitGroup] | None) -> list[UnitGroup]:
        return [site.group for site in find_units(self.captured)] if groups is None else list(groups)

    def costs(self, plan: Plan | None = None) -> Costs:
        """Parameters and FLOPs of :meth:`slim`'s model; of the model itself where there is no plan."""
        if plan is None:
            return self.whole
        heads = any(group.kind == "head" and group.removed for group in plan.groups)
        return costs(self.removal(plan, rearranged=not heads or self.cuts_heads))

    @functools.cached_property
    def whole(self) -> Costs:
        """The costs of the model as it is."""
        removal = self.removal()
        removal.removed[:], removal.idle = False, []
        return costs(removal)

    @functools.cached_property
    def cuts_heads(self) -> bool:
        """Whether the model's code goes on working with fewer heads; found by cutting one out of every attention."""
        return removable.cuts_heads(self, self._groups(None))

    def slim(self, plan: Plan, repair: Repair | None = None) -> nn.Module:
        """A smaller copy of the model, which computes what the model computes under the plan's masks.

        With a repair (:func:`pxp_fast.repair`, for the same plan) it computes what the repaired model computes.
        Whatever cannot be cut out alone (one channel of one branch of a sum, some outputs of an MLP's second layer)
        stays as zeros. The copy's attribute ``pxp_slim`` is a :class:`SlimRecord` of both.

        Raises
        ------
        PlanError
            The plan is for another model.
        SlimError
            The copy would compute something else; the first layer that differs is named.
        """
        masked = copy.deepcopy(self.model)
        apply_mask(masked, plan)
        whole, masks = self, plan
        if repair is not None:
            repair.apply(masked)
            whole, masks = Slimmer(masked, self.example), None
        limit = tolerance(self.example.dtype)
        wrong = ""
        for rearranged in (True, False):  # code that insists on its number of heads keeps them, as zeros
            removal = whole.removal(masks, rearranged=rearranged)
            small = copy.deepcopy(masked)
            cut(small, removal)
            try:
                error = difference(masked, small, self.example)
                if error > limit:  # a network may amplify rounding, which float64 tells from a mistake
                    exact = (copy.deepcopy(masked).double(), copy.deepcopy(small).double(), self.example.double())
                    limit = max(limit, error if difference(*exact) < tolerance(torch.float64) else 0)
            except (RuntimeError, ValueError, AssertionError, TypeError):
                error = float("inf")
            if error <= limit:
                after = dataclasses.replace(costs(removal), parameters=sum(p.numel() for p in small.parameters()))
                small.pxp_slim = SlimRecord(whole._layers(plan, removal), self.whole, after, error)
                return small
            wrong = wrong or problem(masked, small, removal, self.example)
        raise SlimError(
            f"the slimmed {type(self.model).__name__} does not compute what the masked one does ({wrong}); its code "
            "depends on sizes that are not its layers'. Plan for other kinds of units, or go on with masks"
        )

    def _layers(self, plan: Plan, removal: Removal) -> tuple[SlimmedLayer, ...]:
        return tuple(
            SlimmedLayer(group.name, group.kind, group.count, len(group.removed), self._cut_of(group, removal))
            for group in plan.groups
        )

    def _cut_of(self, group: PlannedGroup, removal: Removal) -> int:
        """How many of the units that a plan removes from a layer are cut out."""
        piece, labels = group.slices[0], self.coupling.labels
        if removal.skips(piece.parameter):
            return len(group.removed)
        weight = next((n for n, name in self.captured.parameters.items() if name == piece.parameter), None)
        entries = (labels.rows, labels.columns)[piece.dim].get(weight)
        if entries is None:
            return 0
        gone = removal.gone(entries)
        own = piece.index or torch.arange(len(gone)).view(group.count, piece.block).tolist()
        return sum(bool(gone[list(own[unit])].all()) for unit in group.removed)


@dataclasses.dataclass(frozen=True)
class SlimmedLayer:
    """What became of one layer's units.

    Attributes
    ----------
    name, kind, count
        As in the plan.
    removed
        Units that the plan removes.
    cut
        How many of these are cut out; the others stay as zeros.
    """

    name: str
    kind: str
    count: int
    removed: int
    cut: int


@dataclasses.dataclass(frozen=True)
class SlimRecord:
    """What slimming did.

    Attributes
    ----------
    layers
        Of the plan, in its order.
    before, after
        The costs of the model and of the slimmed one.
    difference
        The largest difference between the logits of the slimmed and the masked model on the example, relative to the
        largest logit.
    """

    layers: tuple[SlimmedLayer, ...]
    before: Costs
    after: Costs
    difference: float

    @property
    def cut(self) -> int:
        """Units cut out."""
        return sum(layer.cut for layer in self.layers)

    @property
    def zeros(self) -> int:
        """Units that stay as zeros."""
        return sum(layer.removed - layer.cut for layer in self.layers)


def slim(model: nn.Module, plan: Plan, example: Tensor, repair: Repair | None = None) -> nn.Module:
    """A smaller copy of the model, which computes what the model computes under the plan's masks.

    Parameters
    ----------
    model
        A classifier; read, never changed.
    plan
        Made for it.
    example
        Images ``[N, C, H, W]`` on which both are compared.
    repair
        What :func:`pxp_fast.repair` found for the same plan: the copy computes what the repaired model computes.

    Returns
    -------
    nn.Module
        Of the model's own class, as are its parts, with smaller parameters; see :meth:`Slimmer.slim`, which raises
        what this raises.
    """
    return Slimmer(model, example).slim(plan, repair)
