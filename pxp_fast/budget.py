"""Plans for a budget: as little goes as lets size, work or time fit, or as much as accuracy allows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .budget_search import Cuts, at_most, drop_at_most, latency_at_most, timed
from .errors import PlanError
from .evaluate import evaluate_plans
from .latency import side_by_side
from .plan import Plan
from .ranking import Ranking
from .scores import Scores
from .slim import Slimmer
from .slimming.costs import Costs

if TYPE_CHECKING:
    import torch

Images = Iterable[tuple[Tensor, Tensor]]
Measure = Callable[[Sequence[nn.Module], Tensor], Sequence[float]]
FASTER = 0.97
"""A cut makes a network faster where it takes less than this part of the time."""
_PROMISED = 1.15


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a plan must fit.

    Attributes
    ----------
    of
        ``"rate"``: of units removed. ``"params"``, ``"flops"``, ``"latency"``: of what is left. ``"drop"``: of
        accuracy.
    value
        A number, or where `relative` the fraction of what the whole network has.
    """

    of: str
    value: float
    relative: bool = False

    @classmethod
    def given(
        cls,
        rate: float | None = None,
        params: float | None = None,
        flops: float | None = None,
        latency: float | None = None,
        latency_ms: float | None = None,
        accuracy_drop: float | None = None,
    ) -> Budget:
        """The one that is given, as :func:`plan_for` takes them; PlanError unless there is one, and it can be."""
        named = {"rate": rate, "params": params, "flops": flops, "latency": latency, "latency_ms": latency_ms}
        named["accuracy_drop"] = accuracy_drop
        found = {name: value for name, value in named.items() if value is not None}
        if len(found) != 1:
            raise PlanError(f"{' and '.join(found) or 'no budget'} given; give one of {', '.join(named)}")
        ((name, value),) = found.items()
        if name in ("rate", "accuracy_drop") and not 0 <= value < 1:
            raise PlanError(f"{name} is {value}; it is a fraction in [0, 1)")
        if name == "latency" and not 0 < value <= 1:
            raise PlanError(f"latency is {value}; it is a fraction of the network's: give latency_ms for milliseconds")
        if not 0 <= value < float("inf") or (value == 0 and name in ("params", "flops", "latency_ms")):
            raise PlanError(f"{name} is {value}; give a number above 0")
        of = {"latency_ms": "latency", "accuracy_drop": "drop"}.get(name, name)
        return cls(of, float(value), name == "latency" or (name in ("params", "flops") and value <= 1))

    def limit(self, whole: float) -> float:
        """The number that it stands for, where the whole network has `whole`."""
        return self.value * whole if self.relative else self.value

    def part(self, fraction: float, whole: float) -> Budget:
        """The budget of a part of the way, from nothing removed to this."""
        if self.of in ("rate", "drop"):
            return Budget(self.of, fraction * self.value)
        return Budget(self.of, whole - fraction * (whole - min(self.limit(whole), whole)))

    def __str__(self) -> str:
        unit = " ms" if self.of == "latency" and not self.relative else ""
        return f"{self.of} {self.value:g}{unit}"


@dataclasses.dataclass(frozen=True)
class Achieved:
    """What a plan does to a network, once it is slimmed by it; before and after.

    Attributes
    ----------
    removed, units
        Units that the plan removes, and that there are of the kinds in it.
    parameters, flops
        As :class:`pxp_fast.slimming.costs.Costs` counts them.
    latency
        Milliseconds for a batch on this device, or None where it was not measured.
    batch
        Images in it.
    accuracy
        On held-out images, under masks; None where there are none.
    """

    removed: int
    units: int
    parameters: tuple[int, int]
    flops: tuple[int, int]
    latency: tuple[float, float] | None = None
    batch: int = 1
    accuracy: tuple[float, float] | None = None

    def ratio(self, name: str) -> float:
        """After divided by before."""
        before, after = getattr(self, name)
        return after / before

    def lines(self) -> list[str]:
        """All of it in words, one thing a line; a warning where the cut will not be as fast here as it should be."""
        lines = [f"units: {self.removed} of {self.units} removed ({self.removed / max(self.units, 1):.1%})"]
        for name, title in (("parameters", "parameters"), ("flops", "FLOPs")):
            before, after = getattr(self, name)
            lines.append(f"{title}: {before:,} -> {after:,} ({self.ratio(name):.1%} left)")
        if self.latency is not None:
            before, after = self.latency
            found, promised = self.ratio("latency"), self.ratio("flops")
            lines.append(
                f"latency: {before:.2f} -> {after:.2f} ms at batch {self.batch} ({found:.1%} left; the FLOPs promise "
                f"{promised:.1%})"
            )
            if self.removed and found > FASTER:
                lines.append("this cut will not be faster here: its layers are too narrow, or wait for memory")
            elif found > _PROMISED * promised:
                lines.append(
                    f"this cut is {1 / found:.2f} times as fast here, not {1 / promised:.2f} times as its FLOPs promise"
                )
        if self.accuracy is not None:
            before, after = self.accuracy
            lines.append(f"accuracy: {before:.2%} -> {after:.2%} on held-out images ({after - before:+.2%})")
        return lines


@dataclasses.dataclass(frozen=True)
class Planned:
    """A plan for a budget, and what it achieves."""

    plan: Plan
    achieved: Achieved


def plan_for(
    model: nn.Module | Slimmer,
    scores: Scores,
    example: Tensor | None = None,
    *,
    rate: float | None = None,
    params: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
    accuracy_drop: float | None = None,
    images: Images | None = None,
    batch: int = 1,
    clock: bool = True,
    measure: Measure = side_by_side,
    dtype: torch.dtype | None = None,
    norm: str = "both",
    **ranking: object,
) -> Planned:
    """The plan that fits one budget, and what it achieves of all of them.

    Parameters
    ----------
    model, example
        The model that was scored, and images that it accepts; or its :class:`Slimmer`.
    rate
        Fraction of the units to remove, as for :func:`pxp_fast.plan`.
    params, flops
        How many are to be left at most: a fraction up to 1, or a number. Met within 1 %, where units are that fine.
    latency, latency_ms
        The time for a batch that is to be left at most, a fraction or in milliseconds, measured on slimmed models; met
        within 5 % as far as the clock can tell.
    accuracy_drop
        How much lower accuracy on `images` may be, under masks: 0.02 is two percentage points. The highest cut tried
        that drops no more.
    images
        Held out: yields ``(images, labels)`` again and again. Needed for `accuracy_drop`, else judged by if given.
    batch
        Images at a time when latency is measured.
    clock
        Measure latency for the record even if there is no budget of it.
    measure
        What measures it: called with models and a batch, returns a time for each.
    dtype
        What judging casts to; None: as the model is.
    norm, ranking
        As for :func:`pxp_fast.plan`: `units`, `scope`, `order`, `round_to` ... One unit of every layer stays in any
        case.

    Raises
    ------
    PlanError
        There is not one budget, or it cannot be reached; the nearest that can is named.
    SlimError
        The model cannot be slimmed by the plan.
    """
    budget = Budget.given(rate, params, flops, latency, latency_ms, accuracy_drop)
    return fit(model, scores, example, budget, images=images, batch=batch, clock=clock, measure=measure, dtype=dtype,
               norm=norm, **ranking)  # fmt: skip


def fit(
    model: nn.Module | Slimmer,
    scores: Scores,
    example: Tensor | None,
    budget: Budget,
    *,
    images: Images | None = None,
    batch: int = 1,
    clock: bool = True,
    measure: Measure = side_by_side,
    dtype: torch.dtype | None = None,
    norm: str = "both",
    **ranking: object,
) -> Planned:
    """As :func:`plan_for`, for a budget as an object."""
    slimmer = slimmer_of(model, example)
    if budget.of == "drop" and images is None:
        raise PlanError("accuracy_drop needs held-out images: pass images=loader")
    ranked = Ranking(scores, slimmer=slimmer, keep_layers=True, **ranking)
    made = {name: ranking[name] for name in ("order", "scope", "seed", "round_to") if name in ranking}
    cuts = Cuts(slimmer, scores, ranked, {**made, "norm": norm, "budget": str(budget)})
    whole = slimmer.costs()
    before = None
    if budget.of == "rate":
        removed = ranked.at_rate(budget.value)
    elif budget.of == "drop":
        removed, before = drop_at_most(cuts, budget.value, images, dtype)
    elif budget.of == "latency":
        removed, before = latency_at_most(cuts, budget, measure, batch)
    else:
        name = {"params": "parameters"}.get(budget.of, budget.of)
        limit = budget.limit(getattr(whole, name))
        removed = at_most(cuts, lambda costs: getattr(costs, name), limit, getattr(whole, name), name)
    plan = cuts.plan(removed)
    times, left = None, slimmer.costs(plan)
    if clock or budget.of == "latency":
        small = slimmer.slim(plan)
        left = small.pxp_slim.after
        times = timed(slimmer, small, measure, batch) if budget.of != "latency" else before
    accuracy = _accuracy(slimmer.model, plan, images, dtype, before if budget.of == "drop" else None)
    return Planned(plan, _achieved(plan, whole, left, times, batch, accuracy))


def slimmer_of(model: nn.Module | Slimmer, example: Tensor | None) -> Slimmer:
    """The model's slimmer, or the one given."""
    if isinstance(model, Slimmer):
        return model
    if example is None:
        raise PlanError("a budget is met by looking at the model: pass example, images that it accepts")
    return Slimmer(model, example)


def _accuracy(
    model: nn.Module, plan: Plan, images: Images | None, dtype: torch.dtype | None, known: tuple[float, float] | None
) -> tuple[float, float] | None:
    if images is None or known is not None:
        return known
    before, after = evaluate_plans(model, [None, plan], images, dtype=dtype)
    return before.accuracy, after.accuracy


def _achieved(
    plan: Plan,
    whole: Costs,
    left: Costs,
    times: tuple[float, float] | None,
    batch: int,
    accuracy: tuple[float, float] | None,
) -> Achieved:
    counts = plan.removed_count, plan.total_count
    sizes = (whole.parameters, left.parameters), (whole.flops, left.flops)
    return Achieved(*counts, *sizes, times, batch, accuracy)
