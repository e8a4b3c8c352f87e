"""Plans: which units to remove, decided from scores."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pydantic
import torch
from torch import Tensor

from .errors import PlanError
from .files import atomic_write
from .ranking import Ranking
from .scores import Scores
from .units import ParameterSlice

if TYPE_CHECKING:
    from .slim import Slimmer

NORMS = ("both", "layer", "norm")


class PlannedGroup(pydantic.BaseModel, extra="forbid", frozen=True):
    """One layer's units and which of them go."""

    name: str
    kind: Literal["filter", "neuron", "head"]
    count: int = pydantic.Field(ge=1)
    removed: tuple[int, ...]
    slices: tuple[ParameterSlice, ...]

    @pydantic.model_validator(mode="after")
    def _removed_exist(self) -> PlannedGroup:
        if any(not 0 <= unit < self.count for unit in self.removed) or len(set(self.removed)) != len(self.removed):
            raise ValueError(f"{self.name} removes units that it does not have, or one twice")
        for piece in self.slices:
            entries = sorted(e for own in piece.index or () for e in own)
            whole = piece.index is None or (len(piece.index) == self.count and entries == list(range(len(entries))))
            if piece.dim < 0 or piece.block < 1 or not whole:
                raise ValueError(f"{self.name} owns impossible entries of {piece.parameter}")
        return self

    def kept(self) -> Tensor:
        """Bool ``[count]``: which units stay."""
        kept = torch.ones(self.count, dtype=torch.bool)
        kept[list(self.removed)] = False
        return kept


class Plan(pydantic.BaseModel, extra="forbid", frozen=True):
    """Which units to remove from which model. A JSON file; independent of the scores it came from.

    Attributes
    ----------
    model
        Name of the model it is for.
    rate, order, scope, seed
        How it was made; `rate` is the fraction of its units that it removes where it was made for a budget.
    removable
        Whether it removes only units that can be cut out alone.
    round_to
        Channels whose multiples are left; None: any number.
    budget
        What it was made for, such as ``"flops 0.5"``; None: its rate.
    norm
        For filters followed by a norm, which parameters a mask zeroes: ``"layer"`` weights and bias, the ``"norm"``'s
        weight and bias, or ``"both"``.
    """

    format: Literal["pxp_fast.plan"] = "pxp_fast.plan"
    version: Literal[1] = 1
    model: str
    rate: float = pydantic.Field(ge=0, lt=1)
    order: Literal["least", "most", "random"] = "least"
    scope: Literal["kind", "global", "layer", "isomorphic"] = "kind"
    seed: int = 0
    norm: Literal["both", "layer", "norm"] = "both"
    removable: bool = False
    round_to: int | None = pydantic.Field(None, ge=1)
    budget: str | None = None
    groups: tuple[PlannedGroup, ...]

    @property
    def removed_count(self) -> int:
        return sum(len(group.removed) for group in self.groups)

    @property
    def total_count(self) -> int:
        return sum(group.count for group in self.groups)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON; replaced atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=1, exclude_defaults=False) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str], model_name: str | None = None) -> Plan:
        """Read a plan.

        Raises
        ------
        PlanError
            The file cannot be read, is damaged, or is for a model other than `model_name`.
        """
        if not Path(path).is_file():
            raise PlanError(f"there is no plan {path}; make one with pxp-fast plan")
        try:
            plan = cls.model_validate_json(Path(path).read_bytes())
        except (pydantic.ValidationError, OSError) as error:
            reason = "; ".join(str(error).splitlines()[:3])
            raise PlanError(f"{path} is no intact plan ({reason}); plan again") from error
        if model_name is not None and plan.model != model_name:
            raise PlanError(f"{path} is for model {plan.model!r}, not for {model_name!r}; plan from its own scores")
        return plan


def plan(
    scores: Scores,
    rate: float,
    *,
    units: str | Iterable[str] | None = None,
    scope: str = "kind",
    order: str = "least",
    seed: int = 0,
    magnitude: bool = True,
    absolute: str = "pxp",
    norm: str = "both",
    slimmer: Slimmer | None = None,
    round_to: int | None = None,
    after: Plan | None = None,
    coupling: str = "mean",
) -> Plan:
    """Choose the units to remove: of the N units of each kind the ``int(N * rate)`` least relevant, over all layers.

    Parameters
    ----------
    rate
        Fraction of units to remove, in [0, 1).
    units
        Kinds that may be removed; None: all that were scored. With ``"removable"``, of these (or of all) only units
        that can be cut out of the model alone, which needs `slimmer`; rates are then fractions of these. With
        ``"coupled"`` also what can be cut out together (the filters of all branches of a residual sum that write the
        same channel), ranked and removed as one.
    scope
        Which units are ranked among each other, and of which therefore the same `rate` is removed. ``"kind"``: filters,
        neurons, heads, because relevance of different kinds is not comparable; ``"global"``: all;
        ``"layer"``: those of a layer; ``"isomorphic"``: those of one kind at the same position of their blocks, see
        :func:`pxp_fast.scopes.positions`.
    order
        ``"least"`` relevant first, ``"most"`` relevant first (the sanity check), or ``"random"`` by `seed`.
    magnitude, absolute
        See :meth:`Scores.values`.
    norm
        See :class:`Plan`.
    slimmer
        Of the model that was scored. Nothing else depends on the model.
    round_to
        Keep so many units more, the most relevant of those removed, that what is left of each layer is a multiple of
        this number of channels (:func:`pxp_fast.ranking.rounding` knows what hardware likes), or the whole layer; never
        nothing.
    after
        A plan whose units are removed before any others, and count as part of `rate`.

    coupling
        How the scores of coupled units become one: ``"mean"``, ``"sum"`` or ``"max"``.

    Raises
    ------
    PlanError
        An option is not one of those above.

    Notes
    -----
    Ties go to the unit that comes first: by layer in execution order, then by index. With ``"removable"`` at least one
    unit of every layer stays, and the groups of a grouped convolution lose as many each.
    """
    _check_norm(norm)
    options = {"units": units, "scope": scope, "order": order, "seed": seed, "magnitude": magnitude}
    options |= {"absolute": absolute, "slimmer": slimmer, "round_to": round_to, "after": after, "coupling": coupling}
    ranking = Ranking(scores, **options)
    made = {"rate": rate, "order": order, "scope": scope, "seed": seed, "norm": norm, "round_to": round_to}
    return plan_of(scores, ranking, ranking.at_rate(rate), **made)


def plan_of(scores: Scores, ranking: Ranking, removed: Tensor, **made: object) -> Plan:
    """The plan that removes some units, bool ``[U]``; `made` are the plan's fields that say how it was made."""
    _check_norm(made.get("norm", "both"))
    groups = tuple(
        PlannedGroup(**_fields(group), removed=tuple(part.nonzero().flatten().tolist()))
        for group, part in zip(scores.units, ranking.split(removed), strict=True)
        if group.kind in ranking.kinds or bool(part.any())
    )
    return Plan(model=scores.header.model, removable=ranking.alone, groups=groups, **made)


def removed_units(scores: Scores, rate: float, **options: object) -> Tensor:
    """Which units :func:`plan` would remove, bool ``[U]``; options as there but for `norm`."""
    return Ranking(scores, **options).at_rate(rate)


def _check_norm(norm: object) -> None:
    if norm not in NORMS:
        raise PlanError(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")


def _fields(group) -> dict:
    return {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
