"""Where a model comes from, as it carries with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .decode import Preprocess
from .plan import Plan


@dataclass(frozen=True)
class Origin:
    """Where a model comes from: what is needed to build it again, which :func:`load` leaves in ``model.pxp_origin``.

    Parameters
    ----------
    name : of a constructor, as in :func:`load`.
    arguments : of the constructor.
    preprocess : how an image becomes the model's input.
    weights, weights_sha256 : as in :class:`LoadedModel`.
    plans : those that the model was slimmed by already, in order.
    class_names : of the logits.
    """

    name: str
    arguments: Mapping[str, Any]
    preprocess: Preprocess | None
    weights: str | None = None
    weights_sha256: str | None = None
    plans: tuple[Plan, ...] = ()
    class_names: tuple[str, ...] | None = None
