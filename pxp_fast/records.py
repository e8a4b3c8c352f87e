"""The parts of ``results.json`` that say what became of a network: its accuracy, its costs, its explanations."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, computed_field, model_validator

from .paired import difference_interval, mcnemar, wilson


class Record(BaseModel):
    """What is computed from the fields is written into the file for its readers, and computed again on loading."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_computed(cls, content: Any) -> Any:
        if isinstance(content, dict):
            return {name: value for name, value in content.items() if name not in cls.model_computed_fields}
        return content


class Hits(Record):
    """`correct` of `total` images classified right."""

    correct: int
    total: int

    @computed_field
    @property
    def accuracy(self) -> float:
        return self.correct / self.total if self.total else 0.0

    @computed_field
    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the accuracy (Wilson score interval)."""
        return wilson(self.correct, self.total)


class PairedRecord(Record):
    """The same images before and after: right both times, `lost`, `gained`, or right neither time."""

    both: int
    lost: int
    gained: int
    neither: int

    @computed_field
    @property
    def difference(self) -> float:
        """The accuracy after less that before."""
        return (self.gained - self.lost) / max(1, self.both + self.lost + self.gained + self.neither)

    @computed_field
    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the difference, see :func:`pxp_fast.paired.difference_interval`."""
        return difference_interval(self.both, self.lost, self.gained, self.neither)

    @computed_field
    @property
    def p_value(self) -> float:
        """Of McNemar's exact test, see :func:`pxp_fast.paired.mcnemar`."""
        return mcnemar(self.lost, self.gained)


class LayerRecord(Record):
    """A layer's units, how many the plan removes, and how many of these are cut out; None: the layer has its masks."""

    name: str
    kind: str
    count: int
    removed: int
    cut: int | None = None

    @computed_field
    @property
    def zeros(self) -> int:
        """Units removed that stay as zeros."""
        return self.removed - (self.cut or 0)


class SlimmedRecord(Record):
    """The smaller network beside the masked one.

    `difference` is the largest between their logits on `compared` images, relative to the largest logit; `masked` what
    the masked network got right of the images that judge. `problem` says why there is no smaller network.
    """

    problem: str | None = None
    cut: int = 0
    zeros: int = 0
    difference: float | None = None
    compared: int = 0
    masked: Hits | None = None


class Spread(Record):
    """The median of repeated measurements, and the quartiles."""

    median: float
    low: float
    high: float


class WorkRecord(Record):
    """Seconds as (before, after) in the operators whose work FLOPs count, and in all `other` ones."""

    counted: tuple[float, float]
    other: tuple[float, float]


class LatencyRecord(Record):
    """Seconds that a batch of `batch` images takes, before and after, in `rounds` that took turns.

    `speed_up` is what before takes divided by what after takes, of each round; after was quicker in `faster` of them.
    `work` says where the time goes.
    """

    batch: int
    rounds: int
    before: Spread
    after: Spread
    speed_up: Spread
    faster: int
    work: WorkRecord | None = None


class CostsRecord(Record):
    """What the network costs, each as (before, after): numbers learned, work per image, its file's size, its time."""

    parameters: tuple[int, int]
    flops: tuple[int, int]
    bytes: tuple[int, int]
    latency: tuple[LatencyRecord, ...]
    device: str
    threads: int
    precision: str

    @computed_field
    @property
    def promised(self) -> float:
        """The speed-up if time were FLOPs."""
        return self.flops[0] / self.flops[1] if self.flops[1] else math.inf


class AgreementRecord(Record):
    """How alike the heat maps of the same images are before and after: one value per image, and their mean.

    `interval` is the 95 % confidence interval of the mean. "cosine": between the maps; "overlap": of the tenth of the
    pixels that speak most for the class; "rank": Spearman's correlation. All pixel by pixel.
    """

    measure: Literal["cosine", "overlap", "rank"]
    values: tuple[float, ...]
    mean: float
    interval: tuple[float, float]
