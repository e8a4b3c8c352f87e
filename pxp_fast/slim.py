"""Slimming: what a plan removes cut out of a model, which stays an ordinary module of its own class."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import SlimError
from .lrp import capture
from .masks import apply_mask, masked_tensors
from .plan import Plan, PlannedGroup
from .slimming.compare import difference, problem, tolerance
from .slimming.costs import Costs, costs
from .slimming.coupling import Coupling
from .slimming.masked import with_parameters
from .slimming.removal import Removal
from .slimming.surgery import cut

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

    def removal(self, plan: Plan | None = None, *, heads: bool = True) -> Removal:
        """What can be cut out of the model under a plan's masks; None: of the model as it is."""
        captured = self.captured
        if plan is not None:
            captured = with_parameters(captured, masked_tensors(self.model, plan))
        spared = []
        if not heads:
            found = [a.heads for a in self.coupling.labels.attentions]
            spared = [int(one) for one in self.coupling.class_of(torch.cat(found))] if found else []
        return Removal(captured, self.coupling, spared)

    def costs(self, plan: Plan | None = None) -> Costs:
        """Parameters and FLOPs of :meth:`slim`'s model; of the model itself where there is no plan."""
        removal = self.removal(plan)
        if plan is None:
            removal.removed[:] = False
        return costs(removal)

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
        for heads in (True, False):  # code that insists on its number of heads keeps them, as zeros
            removal = whole.removal(masks, heads=heads)
            small = copy.deepcopy(masked)
            cut(small, removal)
            try:
                error = difference(masked, small, self.example)
            except (RuntimeError, ValueError, AssertionError, TypeError):
                error = float("inf")
            if error <= limit:
                after = dataclasses.replace(costs(removal), parameters=sum(p.numel() for p in small.parameters()))
                small.pxp_slim = SlimRecord(whole._layers(plan, removal), self.costs(), after, error)
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
        weight = next((n for n, name in self.captured.parameters.items() if name == piece.parameter), None)
        entries = (labels.rows, labels.columns)[piece.dim].get(weight)
        if entries is None:
            return 0
        gone = removal.gone(entries)
        return sum(bool(gone[~piece.keep(unit_alone(group.count, unit))].all()) for unit in group.removed)


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


def unit_alone(count: int, unit: int) -> Tensor:
    """Bool ``[count]``: all units but one."""
    others = torch.ones(count, dtype=torch.bool)
    others[unit] = False
    return others
