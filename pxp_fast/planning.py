"""Plans as the command line asks for them: by rate or for a budget, at once or in steps."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .budget import Achieved, Budget, fit
from .budget_search import batch_of
from .config import RunConfig
from .latency import side_by_side
from .plan import Plan
from .plan import plan as make_plan
from .ranking import COUPLED, REMOVABLE, rounding
from .scores import Scores
from .slim import Slimmer


class Planner:
    """Makes plans by the options of a run.

    Parameters
    ----------
    network
        That was scored; None where no option depends on it, see :func:`looks_at_model`.
    size
        Of an image, ``(C, H, W)``.
    images
        Held out, for a budget of accuracy.
    dtype
        What judging casts to; None: as the network is.
    clock
        Measure the latency of plans for another budget too.

    Attributes
    ----------
    achieved
        By the last plan made in full; None where it did not look at the network.
    """

    def __init__(
        self,
        config: RunConfig,
        network: nn.Module | None = None,
        size: tuple[int, int, int] | None = None,
        images: Iterable[tuple[Tensor, Tensor]] | None = None,
        dtype: torch.dtype | None = None,
        clock: bool = True,
    ) -> None:
        self.clock = clock
        self.config, self.network, self.size, self.images, self.dtype = config, network, size, images, dtype
        self.achieved: Achieved | None = None

    @functools.cached_property
    def slimmer(self) -> Slimmer:
        """Of the network."""
        like = next(self.network.parameters())
        example = torch.randn(2, *self.size, generator=torch.Generator().manual_seed(0))
        return Slimmer(self.network, example.to(like.device, like.dtype))

    def options(self) -> dict[str, object]:
        """What plans at any rate take from the options."""
        options = {name: getattr(self.config, name) for name in ("scope", "magnitude", "absolute", "coupling")}
        options["units"] = self.config.units or None
        if cuts(self.config):
            options["slimmer"] = self.slimmer
        return options

    def plan(self, scores: Scores, part: float = 1, after: Plan | None = None) -> Plan:
        """What goes of a budget's part, in (0, 1], and first what the plan `after` removes."""
        config = self.config
        options = {**self.options(), "order": config.order, "seed": config.seed, "after": after}
        if part == 1:
            options["round_to"] = (
                rounding(getattr(torch, config.dtype)) if config.round_to == "auto" else config.round_to
            )
        budget = budget_of(config)
        if not looks_at_model(config):
            return make_plan(scores, part * config.rate, **options)
        options.pop("slimmer", None)
        if part < 1:
            budget = budget.part(part, self._whole(budget))
        found = fit(
            self.slimmer, scores, None, budget, images=self.images if budget.of == "drop" else None, dtype=self.dtype,
            batch=config.batch, clock=self.clock and part == 1, **options,
        )  # fmt: skip
        self.achieved = found.achieved
        return found.plan

    def _whole(self, budget: Budget) -> float:
        """What the whole network has of the thing that there is a budget of."""
        if budget.of == "latency":
            return side_by_side([self.network], batch_of(self.slimmer, self.config.batch))[0]
        costs = self.slimmer.costs()
        return {"params": costs.parameters, "flops": costs.flops}.get(budget.of, 0)


def budget_of(config: RunConfig) -> Budget:
    """The budget that is asked for; the rate where there is no other.

    Raises
    ------
    PlanError
        There are several.
    """
    given = {"params": config.budget_params, "flops": config.budget_flops, "accuracy_drop": config.max_drop}
    if (latency := config.budget_latency) is not None:
        relative = latency.endswith("%")
        number = float(latency.removesuffix("%").removesuffix("ms"))
        given["latency" if relative else "latency_ms"] = number / 100 if relative else number
    given = {name: value for name, value in given.items() if value is not None}
    return Budget.given(**(given or {"rate": config.rate}))


def looks_at_model(config: RunConfig) -> bool:
    """Whether plans by these options depend on more than scores."""
    return cuts(config) or budget_of(config).of != "rate"


def scored_kinds(config: RunConfig) -> tuple[str, ...] | None:
    """The kinds of units to score; None: all."""
    return tuple(kind for kind in config.units if kind not in (REMOVABLE, COUPLED)) or None


def cuts(config: RunConfig) -> bool:
    """Whether only units may go that can be cut out."""
    return REMOVABLE in config.units or COUPLED in config.units
