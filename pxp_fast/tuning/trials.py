"""What a trial costs: scoring by its composite, and judging the plans that follow; neither is ever done twice."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..budget_search import rate_leaving
from ..evaluate import evaluate_plans
from ..lrp import Composite
from ..plan import Plan, plan
from ..progress import Track
from ..scores import Scores
from ..scoring import score
from ..slim import Slimmer
from .cache import Cache, key_of
from .objective import Objective
from .space import Candidate

Batches = Iterable[tuple[Tensor, Tensor]]


class Judge:
    """Accuracy of the network when units go by a candidate's scores.

    Parameters
    ----------
    reference
        The images that score.
    splits
        The sets of images that judge, by name: ``"tuning"``, ``"held-out"``.
    cache
        Where scores and judgements are kept.
    example
        The first images that score, ``[N, C, H, W]``.
    scoring_options, plan_options
        For :func:`pxp_fast.score` and :func:`pxp_fast.plan`.
    dtype
        What judging casts to; None: as the model is.
    """

    def __init__(
        self,
        model: nn.Module,
        reference: Batches,
        splits: dict[str, Batches],
        cache: Cache,
        *,
        example: Tensor,
        scoring_options: dict[str, Any],
        plan_options: dict[str, Any],
        dtype: torch.dtype | None = None,
        progress: Track | None = None,
    ) -> None:
        self.model, self.reference, self.splits = model, reference, splits
        self.cache, self.example = cache, example
        self.scoring_options, self.plan_options = scoring_options, plan_options
        self.dtype, self.progress = dtype, progress

    def scores(self, composite: Composite) -> Scores:
        """By a composite."""
        make = functools.partial(score, self.model, self.reference, composite=composite, progress=self.progress)
        return self.cache.scores(composite, functools.partial(make, **self.scoring_options))

    def accuracies(self, candidate: Candidate, rates: Sequence[float], split: str = "tuning") -> dict[float, float]:
        """By rate, in [0, 1]."""
        total = self.images(split)
        return {rate: count / total for rate, count in self._correct(candidate, rates, split).items()}

    def images(self, split: str) -> int:
        """How many images of a split judge; looked up by judging the unpruned network."""
        name = f"images.{split}"
        if not (known := self.cache.correct(name)):
            found = evaluate_plans(self.model, [None], self.splits[split], dtype=self.dtype, progress=self.progress)[0]
            known = {0.0: found.correct, 1.0: found.total}
            self.cache.add_correct(name, known)
        return known[1.0]

    def _correct(self, candidate: Candidate, rates: Sequence[float], split: str) -> dict[float, int]:
        name = f"{key_of(candidate.composite)}.{'magnitude' if candidate.magnitude else 'signed'}.{split}"
        known = {0.0: self.cache.correct(f"images.{split}")[0.0], **self.cache.correct(name)}
        if missing := [rate for rate in rates if rate not in known]:
            scores = self.scores(candidate.composite)
            plans = [self.plan(scores, candidate.magnitude, rate) for rate in missing]
            judged = evaluate_plans(
                self.model, plans, self.splits[split], dtype=self.dtype, progress=self.progress, description=split
            )
            found = dict(zip(missing, (one.correct for one in judged), strict=True))
            self.cache.add_correct(name, found)
            known |= found
        return {rate: known[rate] for rate in rates}

    def plan(self, scores: Scores, magnitude: bool, rate: float) -> Plan:
        """Which units go at a rate."""
        return plan(scores, rate, magnitude=magnitude, **self.plan_options)

    def steps(self, objective: Objective, candidate: Candidate) -> tuple[tuple[float, ...], ...]:
        """The rates that the objective wants judged, step by step."""
        if objective.name != "flops":
            return objective.steps()
        plan_at = functools.partial(self.plan, self.scores(candidate.composite), candidate.magnitude)
        return ((rate_leaving(self.slimmer, plan_at, objective.at),),)

    @functools.cached_property
    def slimmer(self) -> Slimmer:
        """Of the network."""
        return Slimmer(self.model, self.example[:2].to(next(self.model.parameters())))
