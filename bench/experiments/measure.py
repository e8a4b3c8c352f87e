"""Scoring and judging, as every experiment does it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pxp_fast as pxp
from pxp_fast.errors import PxpError
from pxp_fast.evaluate import evaluate_plans

from . import data, train
from .methods import Method, Subject

BATCH = 250
Batches = list[tuple[Tensor, Tensor]]


@dataclasses.dataclass(frozen=True)
class Bench:
    """Where things lie and how much is measured.

    Attributes
    ----------
    weights, results
        Folders of trained networks and of result files.
    references
        Reference images per class, of the training set.
    judged, judged_small, judged_often
        Test images per class that judge: with all classes, with three of them, and in the study of reference images.
    seeds, random_seeds
        Tasks of three classes; random orders where all classes are kept.
    draws, counts
        Draws of reference images where their number is studied, and these numbers per class.
    trials, tuning
        Of the search for a composite, and training images per class that judge them.
    dtype, device
        In and on which pruned networks are judged; scores are float32, on the same device.
    """

    weights: Path
    results: Path
    references: int = 10
    judged: int = 100
    judged_small: int = 25
    judged_often: int = 25
    seeds: int = 20
    random_seeds: int = 5
    draws: int = 3
    counts: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    trials: int = 30
    tuning: int = 30
    dtype: str = "bfloat16"
    device: str = "cpu"

    @functools.cache  # noqa: B019 - lives as long as the command
    def network(self, name: str) -> nn.Module:
        return train.load(name, self.weights).to(self.device)

    def weights_digest(self, name: str) -> str | None:
        """Which weights a network has; None where it has not been trained."""
        path = self.weights / f"{name}.safetensors"
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else None

    @functools.cache  # noqa: B019
    def judge(self, network: str, classes: tuple[int, ...], per_class: int) -> Judge:
        task = pxp.Task(classes)
        images = data.images("test", per_class)
        model = self.network(network)
        if len(classes) < len(data.CLASSES):
            model = task.slice(model, images[0][:2].to(self.device))
        return Judge(model, list(task.loader(data.batches(images, BATCH))), getattr(torch, self.dtype))

    @functools.cache  # noqa: B019
    def scores(self, subject: Subject, method: Method, images: int, **keep: bool) -> Any:
        """Scores over `images` training images of every class; `keep` is what :func:`pxp_fast.score` keeps apart."""
        options: dict[str, Any] = {"units": [subject.kind], "model_name": subject.network, **keep}
        if method.criterion != "lrp":
            options["criterion"] = method.criterion
        else:
            options |= {"composite": self.composite(subject, method), "initial": method.initial}
        reference = data.batches(data.images("train", images), BATCH)
        return pxp.score(self.network(subject.network), reference, **options)

    def composite(self, subject: Subject, method: Method) -> Any:
        """A preset's name, or what the search found for the subject."""
        if not method.tuned:
            return method.composite
        return pxp.Composite.from_mapping(self.tuned(subject, method)["composite"])

    def tuned(self, subject: Subject, method: Method) -> dict[str, Any]:
        """What the search found for the subject, from the method's initial relevance."""
        path = self.tuned_path(subject, method.initial)
        if not path.is_file():
            raise PxpError(f"there is no {path.name}; run `python -m bench.experiments.run --only tune` before")
        return json.loads(path.read_text())

    def tuned_digest(self, subject: Subject, method: Method) -> str | None:
        """Which composite and ranking a search found; None for other methods, and where there was no search."""
        if not method.tuned or not self.tuned_path(subject, method.initial).is_file():
            return None
        found = self.tuned(subject, method)
        content = json.dumps([found["composite"], found["magnitude"]], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def tuned_path(self, subject: Subject, initial: str = "one") -> Path:
        return self.results / f"tuned_{subject.name}{'' if initial == 'one' else f'_{initial}'}.json"

    def plans(self, scores: pxp.Scores, subject: Subject, method: Method, seed: int = 0) -> list[pxp.Plan]:
        """The method's plans at PXP's twenty rates."""
        magnitude = self.tuned(subject, method)["magnitude"] if method.tuned else method.magnitude
        options = {"order": method.order, "seed": seed, "magnitude": magnitude}
        return [pxp.plan(scores, rate, **options) for rate in pxp.RATES]


class Judge:
    """Counts the images that a network gets right without some of its units."""

    def __init__(self, model: nn.Module, batches: Batches, dtype: torch.dtype) -> None:
        self.model = copy.deepcopy(model).to(dtype=dtype, memory_format=torch.channels_last)
        self.batches = [(x.to(dtype).contiguous(memory_format=torch.channels_last), y) for x, y in batches]
        self.total = sum(len(labels) for _, labels in batches)

    def correct(self, plans: Sequence[pxp.Plan]) -> list[int]:
        """Images right under each plan."""
        return [found.correct for found in evaluate_plans(self.model, plans, self.batches)]
