"""How far down a ranking one must go for a budget."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import PlanError
from .evaluate import evaluate_plans
from .plan import Plan, plan_of
from .ranking import Ranking
from .scores import Scores
from .slim import Slimmer
from .slimming.costs import Costs

if TYPE_CHECKING:
    from .budget import Budget, Images, Measure

TOLERANCE, LATENCY_TOLERANCE = 0.01, 0.05
_TRIES = 200
_DETOUR = 1.25
"""How many times as many units may go, to get nearer to a limit."""
_PROBES = 12
_GRID = 16
"""Cuts that are judged in one pass over the images."""


class Cuts:
    """The plans along a ranking, and what each leaves of the network."""

    def __init__(self, slimmer: Slimmer, scores: Scores, ranking: Ranking, made: dict[str, object]) -> None:
        self.slimmer, self.scores, self.ranking, self.made = slimmer, scores, ranking, made
        self.known: dict[bytes, Costs] = {}

    @property
    def most(self) -> int:
        """Units that may go."""
        return len(self.ranking.order)

    def plan(self, removed: Tensor) -> Plan:
        """That removes these units, bool ``[U]``."""
        plan = plan_of(self.scores, self.ranking, removed, rate=0, **self.made)
        return plan.model_copy(update={"rate": plan.removed_count / max(plan.total_count, 1)})

    def costs(self, removed: Tensor) -> Costs:
        """Of the network without these units; worked out once."""
        key = removed.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.slimmer.costs(self.plan(removed))
        return self.known[key]


def at_most(cuts: Cuts, number: Callable[[Costs], int], limit: float, whole: int, name: str) -> Tensor:
    """The units to remove, bool ``[U]``, so that at most `limit` of a cost is left, and within 1 % of it if possible.

    The first units of the ranking that suffice. Where the last of them takes too much at once, its layer keeps what it
    has, and the others go on, until one of them ends near enough.
    """
    first = cuts.ranking.first
    if (least := number(cuts.costs(first(cuts.most)))) > limit:
        if least > limit * (1 + TOLERANCE):
            raise PlanError(
                f"{limit:,.0f} {name} ({limit / whole:.1%} of {whole:,}) cannot be reached: the nearest is "
                f"{least:,} ({least / whole:.1%}), where every layer has one unit left of those that may go; ask for "
                "no less, or let more kinds of units go"
            )
        return first(cuts.most)
    spared = torch.zeros(len(cuts.ranking.values), dtype=torch.bool)

    def removed(count: int) -> Tensor:
        return cuts.ranking.first(count, spared)

    def left(count: int) -> int:
        return number(cuts.costs(removed(count)))

    count, best = 0, first(cuts.most)  # removes most, and leaves least
    while len(cuts.known) < _TRIES:
        high = _crossing(left, limit, count, cuts.most)
        if high is None:
            break
        count = high
        if int(removed(count).sum()) > _DETOUR * int(best.sum()) and bool(spared.any()):
            break
        best = max(best, removed(count), key=lambda one: number(cuts.costs(one)))
        if limit - number(cuts.costs(best)) <= TOLERANCE * limit or not count:
            break
        count -= 1
        layer = cuts.ranking.layer_of[cuts.ranking.order[count]]
        spared |= (cuts.ranking.layer_of == layer) & (cuts.ranking.places >= count)
    return best


def _crossing(left: Callable[[int], int], limit: float, low: int, most: int) -> int | None:
    """The least number of units from `low` on that leaves at most `limit`; None where not even all do."""
    step, high = max(1, (most - low) // 64), low
    while left(high) > limit:
        if high == most:
            return None
        low, high, step = high + 1, min(high + step, most), 2 * step
    while low < high:
        middle = (low + high) // 2
        if left(middle) <= limit:
            high = middle
        else:
            low = middle + 1
    return high


def rate_leaving(slimmer: Slimmer, plan_at: Callable[[float], Plan], fraction: float) -> float:
    """The lowest rate, in hundredths, at which the slimmed network has at most this fraction of the FLOPs.

    Raises
    ------
    PlanError
        Not even the highest rate has.
    """
    limit = fraction * slimmer.costs().flops

    def fits(hundredths: int) -> bool:
        return slimmer.costs(plan_at(hundredths / 100)).flops <= limit

    low, high = 0, 99
    if not fits(high):
        raise PlanError(
            f"removing {high}% of the units leaves more than {fraction:.0%} of the FLOPs; ask for a larger fraction"
        )
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle + 1, high)
    return low / 100


def drop_at_most(
    cuts: Cuts, drop: float, images: Images, dtype: torch.dtype | None
) -> tuple[Tensor, tuple[float, float]]:
    """The units to remove so that accuracy drops by at most `drop`, and accuracy before and after.

    Sixteen cuts are judged at a time: first all the way down the ranking, then between the highest that may be and the
    next, and so on.
    """
    ranking, low, high = cuts.ranking, 0, cuts.most + 1
    (whole,) = evaluate_plans(cuts.slimmer.model, [None], images, dtype=dtype)
    floor = whole.correct - drop * whole.total - 1e-9
    correct = {0: whole.correct}
    while high - low > max(1, cuts.most // 1000):
        counts = sorted({low + (high - low) * step // _GRID for step in range(1, _GRID + 1)} - {low, high})
        plans = [cuts.plan(ranking.first(count)) for count in counts]
        judged = evaluate_plans(cuts.slimmer.model, plans, images, dtype=dtype)
        correct |= dict(zip(counts, (one.correct for one in judged), strict=True))
        best = max([low, *(count for count in counts if correct[count] >= floor)])
        low, high = best, min([high, *(count for count in counts if count > best)])
    return ranking.first(low), (whole.accuracy, correct[low] / whole.total)


def latency_at_most(cuts: Cuts, budget: Budget, measure: Measure, batch: int) -> tuple[Tensor, tuple[float, float]]:
    """The units to remove so that a batch takes at most the time, and the times before and after.

    Every probe slims the network and runs it in turn with the whole one; their ratio counts, as the machine may be
    slower at one time than at another.
    """
    slimmer, ranking = cuts.slimmer, cuts.ranking
    (whole,) = measure([slimmer.model], batch_of(slimmer, batch))
    limit = budget.limit(whole)

    def probe(count: int) -> float:
        before, after = timed(slimmer, slimmer.slim(cuts.plan(ranking.first(count))), measure, batch)
        return after / before * whole

    if whole <= limit:
        return ranking.first(0), (whole, whole)
    times, confirmed = {0: whole, cuts.most: probe(cuts.most)}, {0}
    if times[cuts.most] > limit * (1 + LATENCY_TOLERANCE):
        raise PlanError(
            f"{limit:.3g} ms at batch {batch} cannot be reached here: the nearest is {times[cuts.most]:.3g} ms of "
            f"{whole:.3g}, where every layer has one unit left of those that may go; ask for no less, or let more "
            "kinds of units go"
        )
    for _ in range(_PROBES):
        best = _nearest(times, limit)
        if abs(times[best] - limit) <= LATENCY_TOLERANCE * limit:
            if best in confirmed:
                break
            times[best] = probe(best)  # of several probes the best one is often just a lucky one
            confirmed.add(best)
            continue
        high = min((count for count in times if times[count] <= limit), default=cuts.most)
        low = max(count for count in times if count < high or count == 0)
        if high - low < 2:
            break
        share = (times[low] - limit) / max(times[low] - times[high], 1e-9)
        middle = low + max(1, min(round((high - low) * min(max(share, 0.1), 0.9)), high - low - 1))
        times[middle] = probe(middle)
    best = _nearest(times, limit)
    return ranking.first(best), (whole, times[best])


def _nearest(times: dict[int, float], limit: float) -> int:
    """The cut whose time is nearest to the limit, and not beyond what is tolerated if there is such a one."""
    beyond = limit * (1 + LATENCY_TOLERANCE)
    return min(times, key=lambda count: (times[count] > beyond, abs(times[count] - limit)))


def timed(slimmer: Slimmer, small: nn.Module, measure: Measure, batch: int) -> tuple[float, float]:
    """The times of the whole network and of a slimmed one for a batch."""
    before, after = measure([slimmer.model, small], batch_of(slimmer, batch))
    return before, after


def batch_of(slimmer: Slimmer, batch: int) -> Tensor:
    """So many images."""
    return slimmer.example[torch.arange(batch) % len(slimmer.example)]
