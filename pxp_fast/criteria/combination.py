"""Several criteria in one: a weighted sum of their normalised scores, or the mean of the ranks that they give."""

from __future__ import annotations

import math
import reprlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import PxpError, ScoresError
from ..scores import Scores, ScoresHeader
from .base import choice

COMBINATION = "combination"
HOW = ("sum", "rank")
DEFAULT = {"lrp": 1.0, "magnitude": 1.0}


def combine(scores: Sequence[Scores], weights: Sequence[float] | None = None, how: str = "sum") -> Scores:
    """Combine scores of the same units by several criteria.

    Every kind of unit is normalised apart, and so is each of the numbers that a plan may rank by (signed, absolute by
    sample, absolute by position).

    Parameters
    ----------
    scores
        Of one model, from the same images where they are from any, as far as that is known: from as many, with the
        same labels where these are kept, and with the same description in their headers' `data`.
    weights
        One for each; None: all 1.
    how
        ``"sum"``: the sum of ``weight * score / mean |score|``, the mean taken over the units of the kind.
        ``"rank"``: the weighted mean of the units' ranks among their kind, from 0, the least, to 1; ties share theirs.

    Returns
    -------
    Scores
        Totals of every class, where all scores that are from images have them, for ``"sum"``, each part normalised
        over all samples; ranks in one class say nothing about those in several: for these combine the scores of the
        classes. The row of squares is that of samples that are all alike, so it tells of no variance.

    Raises
    ------
    ScoresError
        The scores do not belong together.
    PxpError
        An option is not one of those above.
    """
    choice("how", how, HOW)
    weights = [1.0] * len(scores) if weights is None else [float(weight) for weight in weights]
    if not scores or len(weights) != len(scores) or not all(map(math.isfinite, weights)) or not any(weights):
        raise PxpError(f"{len(scores)} scores are to be combined by the weights {weights}; pass a number for each")
    first = next((one for one in scores if one.samples), scores[0])
    for other in scores:
        same_images = not other.samples or _of_the_same_images(first, other)
        if other.header.model != first.header.model or other.units != first.units or not same_images:
            raise ScoresError(
                f"scores by {other.header.criterion} ({other.header.model}, {other.samples} samples) and by "
                f"{first.header.criterion} ({first.header.model}, {first.samples} samples) do not belong together; "
                "score the same model and units on the same images"
            )
    samples = max(first.samples, 1)
    combined = torch.zeros_like(first.totals)
    by_class = None
    if how == "sum" and first.class_totals is not None:
        by_class = torch.zeros_like(first.class_totals)
    for one, weight in zip(scores, weights, strict=True):
        means = one.totals / max(one.samples, 1)
        if how == "rank":
            combined += weight / sum(map(abs, weights)) * _ranks(means, one) * samples
            continue
        factors = weight / _sizes(means, one)
        combined += means * factors * samples
        if by_class is not None:
            alike = first.class_samples.view(-1, 1, 1) * means
            by_class += factors * (one.class_totals if one.samples else alike)
    header = _header(scores, weights, how, first)
    if by_class is None:
        combined[ops.SQUARED] = combined[ops.SIGNED].square() / samples
        return Scores(header, combined)
    by_class[:, ops.SQUARED] = by_class[:, ops.SIGNED].square() / first.class_samples.clamp(min=1).unsqueeze(1)
    combined[ops.SQUARED] = by_class[:, ops.SQUARED].sum(0)
    return Scores(header, combined, by_class, first.class_samples)


def parts(criteria: object, options: object) -> dict[str, tuple[float, dict[str, Any]]]:
    """Of each criterion combined, its weight and its own options.

    Parameters
    ----------
    criteria
        A mapping from names to weights, or names alone.
    options
        A mapping from names to mappings of options.
    """
    if isinstance(criteria, Sequence) and _names(criteria):
        criteria = dict.fromkeys(criteria, 1.0)
    if not isinstance(criteria, Mapping) or not criteria or COMBINATION in criteria or not _names(criteria):
        raise PxpError(
            f"criteria to combine are {criteria!r}; pass names and weights, such as {DEFAULT}, and no combination"
        )
    for name, weight in criteria.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not abs(weight) <= sys.float_info.max:
            raise PxpError(f"the weight of {name} is {reprlib.repr(weight)}; pass a number")
    if not isinstance(options, Mapping) or not all(isinstance(own, Mapping) for own in options.values()):
        raise PxpError(f"options of the criteria combined are {options!r}; pass such as {{'taylor': {{'of': 'loss'}}}}")
    if unknown := sorted(map(str, set(options) - set(criteria))):
        raise PxpError(f"options are given for {', '.join(unknown)}, not among {', '.join(criteria)}")
    return {name: (weight, dict(options.get(name, {}))) for name, weight in criteria.items()}


def _names(criteria: object) -> bool:
    return not isinstance(criteria, str) and all(isinstance(name, str) for name in criteria)


def _of_the_same_images(first: Scores, other: Scores) -> bool:
    """Whether two scores are of the same images as far as they tell, and tell classes apart both or neither."""
    if first.samples != other.samples or (first.class_samples is None) != (other.class_samples is None):
        return False
    both = ((first.class_samples, other.class_samples), (first.sample_labels, other.sample_labels))
    alike = all(torch.equal(one, two) for one, two in both if one is not None and two is not None)
    return alike and first.header.data == other.header.data


def _sizes(means: Tensor, scores: Scores) -> Tensor:
    """For each number of a unit, the mean of its absolute value among the units of the kind, ``[4, U]``."""
    sizes = torch.ones_like(means)
    for among in _kinds(scores):
        size = means[:, among].abs().mean(1, keepdim=True)
        sizes[:, among] = torch.where(size == 0, 1, size).expand(-1, int(among.sum()))
    return sizes


def _ranks(means: Tensor, scores: Scores) -> Tensor:
    """For each number of a unit, its rank among the units of the kind, in [0, 1], ``[4, U]``."""
    ranks = torch.zeros_like(means)
    for among in _kinds(scores):
        values = means[:, among].contiguous()
        ordered = values.sort(dim=1).values
        less = torch.searchsorted(ordered, values)
        not_more = torch.searchsorted(ordered, values, right=True)
        ranks[:, among] = (less + not_more - 1).double() / 2 / max(values.shape[1] - 1, 1)
    return ranks


def _kinds(scores: Scores) -> list[Tensor]:
    """Of each kind of unit, which units are of it, bool ``[U]``."""
    kind_of = [group.kind for group in scores.units for _ in range(group.count)]
    return [torch.tensor([kind == one for one in kind_of]) for kind in dict.fromkeys(kind_of)]


def _header(scores: Sequence[Scores], weights: Sequence[float], how: str, first: Scores) -> ScoresHeader:
    combined = [
        {"criterion": one.header.criterion, "options": one.header.criterion_options, "weight": weight}
        for one, weight in zip(scores, weights, strict=True)
    ]
    relevance = next((one.header for one in scores if one.header.composite), first.header)
    options = {"how": how, "criteria": combined}
    return first.header.model_copy(
        update={
            "criterion": COMBINATION,
            "criterion_options": options,
            "composite": relevance.composite,
            "initial": relevance.initial,
        }
    )
