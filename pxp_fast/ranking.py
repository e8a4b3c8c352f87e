"""Rankings: the order in which units go, and what is left in form for the hardware and for slimming."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import ops
from .errors import PlanError
from .scopes import SCOPES, pool_names
from .scores import Scores
from .units import KINDS, UnitGroup

if TYPE_CHECKING:
    from .plan import Plan
    from .slim import Slimmer

ORDERS = ("least", "most", "random")
REMOVABLE, COUPLED = "removable", "coupled"
COUPLINGS = ("sum", "mean", "max")
_VECTOR = 32  # bytes


class Ranking:
    """The units of a network in the order in which they are to go.

    Parameters
    ----------
    keep_layers
        Leave at least one unit in every layer, as where `slimmer` or `round_to` is given.
    after
        A plan whose units go first.
    units, scope, order, seed, magnitude, absolute, slimmer, round_to, coupling
        See :func:`pxp_fast.plan`.

    Attributes
    ----------
    kinds
        That may go.
    alone, coupled
        Whether only units may go that can be cut out; and whether what can only be cut out together is ranked as one.
    order
        ``[n]``: positions of the units that may go; the first go first. Of each pool of the scope the same fraction is
        gone at any time.
    places
        ``[U]``: the place of each unit in this order; that of units that may not go is beyond all others.
    layer_of
        ``[U]``: the position of each unit's group.

    Raises
    ------
    PlanError
        An option is not one of those that there are.
    """

    def __init__(
        self,
        scores: Scores,
        *,
        units: str | Iterable[str] | None = None,
        scope: str = "kind",
        order: str = "least",
        seed: int = 0,
        magnitude: bool = True,
        absolute: str = "pxp",
        slimmer: Slimmer | None = None,
        round_to: int | None = None,
        after: Plan | None = None,
        coupling: str = "mean",
        keep_layers: bool = False,
    ) -> None:
        choices = (("order", order, ORDERS), ("scope", scope, SCOPES), ("coupling", coupling, COUPLINGS))
        for name, value, allowed in choices:
            if value not in allowed:
                raise PlanError(f"{name} is {value!r}; choose one of {', '.join(allowed)}")
        if round_to is not None and (not isinstance(round_to, int) or round_to < 1):
            raise PlanError(f"round_to is {round_to!r}; give a whole number, such as 8, or None")
        self.groups = scores.units
        self.kinds, self.alone, self.coupled = kinds_of(scores, units)
        self.round_to = round_to or 1
        self.keep_layers = keep_layers or self.alone or round_to is not None
        allowed = torch.cat([torch.full((g.count,), g.kind in self.kinds) for g in self.groups])
        self.parts: dict[str, Tensor] = {}
        if self.alone:
            if slimmer is None:
                raise PlanError(
                    "which units can be cut out depends on the model: pass slimmer=Slimmer(model, example), or leave "
                    f"{REMOVABLE!r} and {COUPLED!r} out of the units"
                )
            found = slimmer.coupled(self.groups) if self.coupled else slimmer.removable(self.groups)
            classes = torch.cat([found[group.name] for group in self.groups])
            allowed &= classes >= 0 if self.coupled else classes
            self.parts = slimmer.parts(self.groups)
        values = scores.values(magnitude=magnitude, absolute=absolute)
        if self.coupled:
            self.classes = classes
            values = together(values, classes, coupling)
        if order == "random":
            values = torch.rand(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        self.largest = order == "most"
        self.gone = torch.zeros_like(allowed)
        if after is not None:
            self.gone = _removed_by(after, self.groups)
            values = values.masked_fill(self.gone, -torch.inf if not self.largest else torch.inf)
            allowed |= self.gone
        self.values = values
        self.pools = _pools(self.groups, scope, allowed, self.kinds)
        self.order, self.places = self._in_order()
        self.layer_of = torch.arange(len(self.groups)).repeat_interleave(torch.tensor([g.count for g in self.groups]))

    def at_rate(self, rate: float) -> Tensor:
        """The units that are gone once this fraction of every pool is, bool ``[U]``."""
        if not 0 <= rate < 1:
            raise PlanError(f"rate is {rate}; it is the fraction of units to remove and must be in [0, 1)")
        removed = self.gone.clone()
        for among in self.pools:
            removed[among] |= ops.select(self.values[among], int(len(among) * rate), largest=self.largest)
        return self.formed(removed)

    def first(self, count: int, spared: Tensor | None = None) -> Tensor:
        """The `count` units that go first, but for those `spared`, and what :meth:`formed` keeps; bool ``[U]``."""
        removed = self.gone.clone()
        removed[self.order[:count]] = True
        if spared is not None:
            removed &= ~spared | self.gone
        return self.formed(removed)

    def formed(self, removed: Tensor) -> Tensor:
        """What can go of the units removed so that every layer keeps a unit, and as many as hardware likes.

        Layers keep the last units of the ranking. Where a grouped convolution needs as many channels in every group,
        as many go in all as were to go, but evenly: the first of every group.
        """
        if not self.keep_layers:
            return removed
        formed = removed.clone()
        for group, gone, places in zip(self.groups, self.split(formed), self.split(self.places), strict=True):
            if bool(gone.any()):
                gone.copy_(self._formed(group, gone, places))
        return formed & ~self._divided(formed)

    def _divided(self, removed: Tensor) -> Tensor:
        """The units of classes some of which stay: the others would only become zeros."""
        if not self.coupled:
            return torch.zeros_like(removed)
        return torch.isin(self.classes, self.classes[~removed & (self.classes >= 0)])

    def split(self, values: Tensor) -> tuple[Tensor, ...]:
        """Views of the parts of ``[U]`` that belong to each group."""
        return torch.split(values, [group.count for group in self.groups])

    def _formed(self, group: UnitGroup, gone: Tensor, places: Tensor) -> Tensor:
        parts = self.parts.get(group.name)
        parts = torch.zeros_like(places) if parts is None else parts
        count = int(parts.max()) + 1
        width, own = group.count // count, [(parts == part).nonzero().flatten() for part in range(count)]
        # Places of units that may not go are beyond those of all others.
        most = min(int((places[part] < len(self.order)).sum()) for part in own)
        going = min(int(gone.sum()) // count, most, width - 1)
        step = self.round_to // math.gcd(self.round_to, _channels(group) * count)
        left = min(-(-(width - going) // step) * step, width)
        formed = torch.zeros_like(gone)
        for part in own:
            formed[part[places[part].argsort()[: width - left]]] = True
        return formed

    def _in_order(self) -> tuple[Tensor, Tensor]:
        """All units that may go by the fraction of their pool at which they go, and each unit's place among these."""
        ranked, fractions = [], []
        for among in self.pools:
            ops.select(self.values[among], 0)  # refuses NaN
            ranked.append(among[torch.sort(self.values[among], stable=True, descending=self.largest).indices])
            fractions.append(torch.arange(1, len(among) + 1, dtype=torch.float64) / max(len(among), 1))
        order = torch.cat(ranked)[torch.sort(torch.cat(fractions), stable=True).indices]
        places = torch.full((len(self.values),), len(self.values))
        places[order] = torch.arange(len(order))
        return order, places


def together(values: Tensor, classes: Tensor, how: str) -> Tensor:
    """Each unit's value replaced by the sum, mean or max over its class; classes ``[U]``, -1: none."""
    inside = classes >= 0
    _, own = classes[inside].unique(return_inverse=True)
    count = int(own.max()) + 1 if len(own) else 0
    start = -torch.inf if how == "max" else 0.0
    reduce = {"sum": "sum", "mean": "mean", "max": "amax"}[how]
    joined = values.new_full((count,), start).scatter_reduce_(0, own, values[inside], reduce, include_self=how == "sum")
    found = values.clone()
    found[inside] = joined[own]
    return found


def rounding(dtype: torch.dtype = torch.float32) -> int:
    """The number of channels whose multiples hardware likes: 8 in float32, 16 in half precision.

    So many numbers are 32 bytes: a vector register of a CPU with AVX2, and what an NVIDIA GPU reads from memory at a
    time, twice the 16 bytes that its tensor cores ask for.
    """
    return _VECTOR // dtype.itemsize


def kinds_of(scores: Scores, units: str | Iterable[str] | None) -> tuple[list[str], bool, bool]:
    """The kinds that units may be removed of, whether only what can be cut out, and whether what is coupled as one."""
    given = set((units,) if isinstance(units, str) else units or ())
    scored = [kind for kind in KINDS if any(group.kind == kind for group in scores.units)]
    if missing := given - {REMOVABLE, COUPLED, *scored}:
        raise PlanError(f"units {sorted(missing)} were not scored; the scores hold {', '.join(scored)}")
    wanted = [kind for kind in scored if kind in given]
    cut = not given.isdisjoint((REMOVABLE, COUPLED))
    return (wanted or scored if not given or cut else wanted), cut, COUPLED in given


def _channels(group: UnitGroup) -> int:
    """Of each unit: a head has many."""
    piece = group.slices[0]
    return piece.block if piece.index is None else len(piece.index[0])


def _pools(groups: tuple[UnitGroup, ...], scope: str, allowed: Tensor, kinds: list[str]) -> list[Tensor]:
    """Positions of the units that are ranked together, for each pool of a scope."""
    names = pool_names(groups, scope)
    order = dict.fromkeys(names)
    if scope == "kind":
        order = dict.fromkeys(kinds)
    numbers = {name: number for number, name in enumerate(order)}
    counted = zip(groups, names, strict=True)
    pool_of = torch.cat([torch.full((group.count,), numbers.get(name, -1)) for group, name in counted])
    found = [((pool_of == number) & allowed).nonzero().flatten() for number in numbers.values()]
    return [among for among in found if len(among)] or [torch.empty(0, dtype=torch.int64)]


def _removed_by(plan: Plan, groups: tuple[UnitGroup, ...]) -> Tensor:
    """The units that a plan removes, bool ``[U]``."""
    removed = {group.name: ~group.kept() for group in plan.groups}
    if unknown := [name for name in removed if name not in {group.name for group in groups}]:
        raise PlanError(f"the plan to go on from removes units of {unknown[0]}, which were not scored")
    return torch.cat([removed.get(g.name, torch.zeros(g.count, dtype=torch.bool)) for g in groups])
