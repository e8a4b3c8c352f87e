"""Plans: which units to remove, decided from scores."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pydantic
import torch
from torch import Tensor

from . import ops
from .errors import PlanError
from .files import atomic_write
from .scores import Scores
from .units import KINDS, ParameterSlice

ORDERS = ("least", "most", "random")
SCOPES = ("kind", "global")
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
        How it was made.
    norm
        For filters followed by a norm, which parameters a mask zeroes: ``"layer"`` weights and bias, the ``"norm"``'s
        weight and bias, or ``"both"``.
    """

    format: Literal["pxp_fast.plan"] = "pxp_fast.plan"
    version: Literal[1] = 1
    model: str
    rate: float = pydantic.Field(ge=0, lt=1)
    order: Literal["least", "most", "random"] = "least"
    scope: Literal["kind", "global"] = "kind"
    seed: int = 0
    norm: Literal["both", "layer", "norm"] = "both"
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
    units: Iterable[str] | None = None,
    scope: str = "kind",
    order: str = "least",
    seed: int = 0,
    magnitude: bool = True,
    absolute: str = "pxp",
    norm: str = "both",
) -> Plan:
    """Choose the units to remove: of the N units of each kind the ``int(N * rate)`` least relevant, over all layers.

    Parameters
    ----------
    rate
        Fraction of units to remove, in [0, 1).
    units
        Kinds that may be removed; None: all that were scored.
    scope
        ``"kind"``: rank filters among filters, neurons among neurons, heads among heads, and remove `rate` of each,
        because relevance of different kinds is not comparable; ``"global"``: one ranking of everything.
    order
        ``"least"`` relevant first, ``"most"`` relevant first (the sanity check), or ``"random"`` by `seed`.
    magnitude, absolute
        See :meth:`Scores.values`.
    norm
        See :class:`Plan`.

    Raises
    ------
    PlanError
        An option is not one of those above.

    Notes
    -----
    Ties go to the unit that comes first: by layer in execution order, then by index.
    """
    if norm not in NORMS:
        raise PlanError(f"norm is {norm!r}; choose one of {', '.join(NORMS)}")
    options = {"units": units, "scope": scope, "order": order, "seed": seed}
    kinds = _kinds(scores, units)
    removed = removed_units(scores, rate, **options, magnitude=magnitude, absolute=absolute)
    parts = torch.split(removed, [group.count for group in scores.units])
    groups = tuple(
        PlannedGroup(**_fields(group), removed=tuple(part.nonzero().flatten().tolist()))
        for group, part in zip(scores.units, parts, strict=True)
        if group.kind in kinds
    )
    return Plan(model=scores.header.model, rate=rate, order=order, scope=scope, seed=seed, norm=norm, groups=groups)


def removed_units(
    scores: Scores,
    rate: float,
    *,
    units: Iterable[str] | None = None,
    scope: str = "kind",
    order: str = "least",
    seed: int = 0,
    magnitude: bool = True,
    absolute: str = "pxp",
) -> Tensor:
    """Which units :func:`plan` would remove, bool ``[U]``; options as there."""
    for name, value, allowed in (("order", order, ORDERS), ("scope", scope, SCOPES)):
        if value not in allowed:
            raise PlanError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
    if not 0 <= rate < 1:
        raise PlanError(f"rate is {rate}; it is the fraction of units to remove and must be in [0, 1)")
    kinds = _kinds(scores, units)
    values = scores.values(magnitude=magnitude, absolute=absolute)
    if order == "random":
        values = torch.rand(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    kind_of = torch.cat([torch.full((g.count,), KINDS.index(g.kind)) for g in scores.units])
    removed = torch.zeros(len(values), dtype=torch.bool)
    for ranked in [kinds] if scope == "global" else [[kind] for kind in kinds]:
        among = torch.isin(kind_of, torch.tensor([KINDS.index(kind) for kind in ranked])).nonzero().flatten()
        removed[among] = ops.select(values[among], int(len(among) * rate), largest=order == "most")
    return removed


def _kinds(scores: Scores, units: Iterable[str] | None) -> list[str]:
    scored = [kind for kind in KINDS if any(group.kind == kind for group in scores.units)]
    wanted = scored if units is None else [kind for kind in KINDS if kind in set(units)]
    missing = set(units or ()) - set(scored)
    if missing:
        raise PlanError(f"units {sorted(missing)} were not scored; the scores hold {', '.join(scored)}")
    return wanted


def _fields(group) -> dict:
    return {field.name: getattr(group, field.name) for field in dataclasses.fields(group)}
