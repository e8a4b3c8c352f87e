"""Pruning for many tasks: what it does on average, and how much that depends on the classes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .errors import DataError, PxpError
from .evaluate import RATES, Curve, sweep
from .files import atomic_write
from .progress import Track
from .scoring import score
from .tasks import Task

Batches = Iterable[tuple[Tensor, Tensor]]


class Estimate(NamedTuple):
    """A mean over tasks, and its standard error; None where there is one task alone."""

    mean: float
    error: float | None

    def __str__(self) -> str:
        return f"{self.mean:.4f}" if self.error is None else f"{self.mean:.4f} ± {self.error:.4f}"


@dataclasses.dataclass(frozen=True)
class TaskStudy:
    """Accuracy against the fraction of units removed, for several tasks of the same network.

    Tasks share the network and its images, so they are not independent: standard errors say how much the choice of
    classes matters, not what another network or other images would give.

    Attributes
    ----------
    tasks, curves
        In the order given; `curves` are of the images of each task's classes alone.
    """

    tasks: tuple[Task, ...]
    curves: tuple[Curve, ...]

    @property
    def unpruned(self) -> Estimate:
        """Accuracy at the lowest rate."""
        return _estimate([curve.accuracies[curve.rates.index(min(curve.rates))] for curve in self.curves])

    @property
    def a_pr(self) -> Estimate:
        """PXP's A_PR, see :attr:`pxp_fast.Curve.a_pr`."""
        return _estimate([curve.a_pr for curve in self.curves])

    @property
    def top_pr(self) -> Estimate:
        """PXP's Top-PR, see :attr:`pxp_fast.Curve.top_pr`."""
        return _estimate([curve.top_pr for curve in self.curves])

    def describe(self) -> dict[str, Any]:
        """Everything in it, JSON-able."""
        return {
            "tasks": [
                {**task.describe(), "accuracies": list(curve.accuracies), "a_pr": curve.a_pr, "top_pr": curve.top_pr}
                for task, curve in zip(self.tasks, self.curves, strict=True)
            ],
            "rates": list(self.curves[0].rates),
            "unpruned": self.unpruned._asdict(),
            "a_pr": self.a_pr._asdict(),
            "top_pr": self.top_pr._asdict(),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, atomically."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.describe(), indent=1) + "\n", encoding="utf-8")


def over_tasks(
    model: nn.Module,
    tasks: Iterable[Task],
    reference: Batches,
    judging: Batches,
    *,
    rates: tuple[float, ...] = RATES,
    scoring: Mapping[str, Any] | None = None,
    planning: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    progress: Track | None = None,
) -> TaskStudy:
    """Prune a classifier for each of several tasks, and judge it on the task's images.

    Units are scored in the network restricted to the task, by the images of its classes.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; afterwards exactly as before.
    tasks
        Such as ``[random_task(1000, 3, seed) for seed in range(20)]``.
    reference, judging
        Images of all classes with the whole model's labels, that score and that judge; iterated over for each task.
    rates
        Fractions of units removed.
    scoring, planning
        Options of :func:`pxp_fast.score` and :func:`pxp_fast.plan`. Random orders take the task's position as seed.
    dtype
        Autocast to it when judging; None: as the model is.
    progress
        ``track(iterable, description, total)``; None: silent.

    Raises
    ------
    PxpError
        There is no task, or whatever stands in the way of restricting the model, scoring or judging.
    """
    chosen = tuple(tasks)
    if not chosen:
        raise PxpError("a study over tasks is asked for, of no tasks; give one at least")
    for name, batches in (("score", reference), ("judge", judging)):
        if iter(batches) is batches:
            raise DataError(f"the images that {name} come from an iterator that can be used but once; pass a list")
    first = next(iter(judging), None)
    if first is None:
        raise DataError("there are no images to judge by; check the folder and the classes chosen")
    options = dict(planning or {})
    curves = []
    for seed, task in enumerate(progress(chosen, "tasks", len(chosen)) if progress is not None else chosen):
        restricted = task.restrict(model, first[0][:2])
        scores = score(restricted, task.loader(reference), **(scoring or {}))
        order = {"seed": seed} if options.get("order") == "random" else {}
        curves.append(sweep(restricted, scores, task.loader(judging), rates=rates, dtype=dtype, **options, **order))
    return TaskStudy(chosen, tuple(curves))


def _estimate(values: list[float]) -> Estimate:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), error)
