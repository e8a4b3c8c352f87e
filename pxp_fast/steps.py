"""Planning in steps: units are scored again once others are gone, as what they did may have become theirs to do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

from torch import nn

from .errors import PlanError
from .masks import masked
from .plan import Plan
from .scores import Scores

Score = Callable[[nn.Module], Scores]
MakePlan = Callable[[Scores, float, Plan | None], Plan]


@dataclasses.dataclass(frozen=True)
class Stepped:
    """A plan made in steps.

    Attributes
    ----------
    plan
        All that is removed in the end.
    scores
        Of each step, made on the network as the steps before left it; what they say of units already gone is without
        meaning.
    """

    plan: Plan
    scores: tuple[Scores, ...]


def plan_in_steps(model: nn.Module, score: Score, steps: int, plan: MakePlan) -> Stepped:
    """Score, remove a part of the units as masks, score again what is left of the network, and so on.

    Removing many units at once trusts scores of a network that no longer exists once the first of them are gone:
    parallel paths that stand in for each other may all be thought dispensable, and go together.

    Parameters
    ----------
    model
        Masked for a step's scoring, and afterwards bit for bit as before.
    score
        Scores a model; called once a step.
    steps
        How many, at least 1, which is scoring once.
    plan
        ``plan(scores, part, after)``: removes the part of the budget, in (0, 1], and before anything else what the plan
        `after` removes, None at first. Such as ``lambda scores, part, after: pxp.plan(scores, part * rate,
        after=after)``.

    Raises
    ------
    PlanError
        There is no step.

    References
    ----------
    Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019: pruning in steps with scores made
    again; Tanaka et al., SynFlow, NeurIPS 2020: steps against the collapse of layers.
    """
    if not isinstance(steps, int) or steps < 1:
        raise PlanError(f"steps is {steps!r}; give a whole number from 1")
    made: Plan | None = None
    every: list[Scores] = []
    for step in range(1, steps + 1):
        with masked(model, made) if made is not None else contextlib.nullcontext():
            every.append(score(model))
        made = plan(every[-1], step / steps, made)
    return Stepped(made, tuple(every))
