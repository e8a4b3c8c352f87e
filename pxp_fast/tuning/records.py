"""``tune.json``: what a search tried and found."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import pydantic

from ..errors import OutputError
from ..evaluate import Curve
from ..files import atomic_write
from ..lrp import Composite

VERSION = 1
LEAST_FOR_IMPORTANCE = 20


class _Record(pydantic.BaseModel, extra="forbid", frozen=True):
    pass


class TrialRecord(_Record):
    """One trial: `state` is ``"complete"``, ``"pruned"`` (hopeless, so ended early) or ``"failed"``.

    `value` is the objective, of a pruned trial from the rates judged so far; `preset` the named composite that it is;
    `intermediate` the values after each step but the last; `problem` what made it fail.
    """

    number: int
    state: Literal["complete", "pruned", "failed"]
    value: float | None
    composite: dict[str, Any]
    magnitude: bool
    parameters: dict[str, Any]
    preset: str | None = None
    intermediate: tuple[float, ...] = ()
    seconds: float | None = None
    problem: str | None = None


class Judged(_Record):
    """A candidate's objective on one set of images, and the accuracy at each rate of units removed.

    `at` is the rate at which an objective looks that looks at one alone.
    """

    value: float
    at: float | None
    rates: tuple[float, ...]
    accuracies: tuple[float, ...]

    @property
    def curve(self) -> Curve:
        """The accuracies as a curve, without numbers of units."""
        return Curve(self.rates, self.accuracies, (0,) * len(self.rates))


class Contender(_Record):
    """A candidate that is judged on all images: those that chose it, and those held out, if there are any."""

    composite: dict[str, Any]
    magnitude: bool
    trial: int | None
    tuning: Judged
    held_out: Judged | None


class Tuning(_Record):
    """What a search found, and what it was asked.

    Attributes
    ----------
    best, epsilon
        The candidate of the highest objective on the tuning images, and the epsilon composite, judged the same way.
    tuning_images, held_out_images
        How many judge.
    missing_presets
        Named composites that the search space does not hold, so that they were not tried.
    running
        Trials that other processes were still at.
    importance
        Each parameter's share in what tells the best quarter of the trials from the others (PED-ANOVA), by the rates
        that all were judged at; empty where there are too few.
    importance_trials
        How many trials that is of.
    made_for
        What the folder belongs to: model, images, options.
    """

    format: Literal["pxp_fast tuning"] = "pxp_fast tuning"
    version: Literal[1] = VERSION
    created: str
    objective: str
    sampler: str
    space: dict[str, Any]
    made_for: dict[str, Any]
    tuning_images: int
    held_out_images: int | None
    best: Contender
    epsilon: Contender
    trials: tuple[TrialRecord, ...]
    missing_presets: tuple[str, ...]
    running: int
    importance: dict[str, float]
    importance_trials: int = 0
    environment: dict[str, str]

    @property
    def composite(self) -> Composite:
        """The best."""
        return Composite.from_mapping(self.best.composite)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tuning:
        """Read it back. Raises OutputError when the file is missing or damaged."""
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise OutputError(f"{path} is no intact result of pxp-fast tune ({reason}); tune again") from error
