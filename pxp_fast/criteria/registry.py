"""Criteria by name."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import PxpError
from .activation import Activation
from .base import Criterion, DataFreeCriterion
from .combination import COMBINATION, DEFAULT, parts
from .gradient import Gradient
from .integrated_gradients import IntegratedGradients
from .lrp import Relevance
from .magnitude import Magnitude
from .random import Random
from .taylor import Taylor

CRITERIA: dict[str, type[Criterion]] = {
    one.name: one for one in (Relevance, Random, Magnitude, Activation, Gradient, Taylor, IntegratedGradients)
}
"""The criteria that look at a model themselves; :data:`COMBINATION` looks at their scores."""

NAMES = (*CRITERIA, COMBINATION)

_COMMON = ("kinds", "dtype", "device", "exact", "fused", "composite")
"""Arguments of criteria that are options of scoring as such."""


def criterion(name: str, model: nn.Module, example: Tensor, **options: object) -> Criterion:
    """A criterion by name.

    Parameters
    ----------
    name
        ``"lrp"``, ``"random"``, ``"magnitude"``, ``"activation"``, ``"gradient"``, ``"taylor"`` or
        ``"integrated-gradients"``.
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; left as it is.
    example
        A batch that the model accepts; only its shape matters.
    options
        Of the criterion, see its class. Those of the computation (`dtype`, `device`, `exact`, and `composite` for
        relevance alone) are taken by all, and mean nothing to those that do not compute by them.

    Raises
    ------
    PxpError
        The name or an option is not known, or an option's value is none.
    CaptureError, ModelError
        The model cannot be captured; see :func:`pxp_fast.lrp.capture`.
    """
    check_options(name, (given for given in options if given not in _COMMON))
    if name == COMBINATION:
        raise PxpError(
            "a combination is one of scores: use pxp_fast.score(criterion='combination') or pxp_fast.criteria.combine"
        )
    taken = inspect.signature(CRITERIA[name]).parameters
    return CRITERIA[name](model, example, **{key: value for key, value in options.items() if key in taken})


def check_options(name: str, given: Iterable[str]) -> None:
    """Raise PxpError unless there is such a criterion and it has options of these names."""
    if name not in NAMES:
        raise PxpError(f"criterion {name!r} is not known; choose one of {', '.join(NAMES)}")
    known = option_names(name)
    if unknown := sorted(set(given) - set(known)):
        offered = f"choose from {', '.join(known)}" if known else "it has none"
        raise PxpError(f"criterion {name} has no option {', '.join(unknown)}; {offered}")


def check_classes(name: str, options: Mapping[str, Any]) -> None:
    """Raise PxpError unless a criterion's scores can be kept of every class."""
    if name == COMBINATION and options.get("how") == "rank":
        raise PxpError(
            "ranks in one class say nothing about those in several: score without classes (--per-class, "
            '--keep-classes, --forget-classes), or combine by sums ({"how": "sum"})'
        )
    used = parts(options.get("criteria", DEFAULT), options.get("options", {})) if name == COMBINATION else (name,)
    if not any(map(needs_images, used)):
        raise PxpError(f"scores by {' and '.join(used)} are from no images, so nothing in them belongs to a class")


def option_names(name: str) -> tuple[str, ...]:
    """The options of a criterion."""
    if name == COMBINATION:
        return ("criteria", "how", "options")
    parameters = inspect.signature(CRITERIA[name]).parameters
    return tuple(p for p in parameters if p not in ("model", "example", *_COMMON))


def needs_images(name: str) -> bool:
    """Whether a criterion has to see images."""
    return not issubclass(CRITERIA.get(name, Criterion), DataFreeCriterion)
