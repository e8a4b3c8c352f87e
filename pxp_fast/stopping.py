"""Stopping early: scoring ends when more images no longer change which units go."""

from __future__ import annotations

import bisect
import dataclasses
import numbers
import warnings
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from .errors import PxpError
from .plan import removed_units
from .scores import Scores, ScoresHeader
from .scores_samples import SampleTables
from .stability import overlap
from .units import UnitGroup

Batch = TypeVar("Batch")
_OUTWEIGHS = 5


@dataclasses.dataclass(frozen=True)
class UntilStable:
    """When to stop scoring: as soon as the images so far and half of them agree on the plan, several times running.

    The images must come in an order of which every beginning stands for the whole, such as
    :func:`pxp_fast.balanced_order`.

    Attributes
    ----------
    rates
        Fractions of units removed; the plans at all of them must agree.
    overlap
        How large a fraction of the units removed must be the same, in (0, 1].
    checks
        How many times running.
    every
        Batches between two checks. A check brings the totals to the host, so it waits for a GPU.
    units, scope, magnitude, absolute
        As for :func:`pxp_fast.plan`.
    """

    rates: tuple[float, ...] = (0.3,)
    overlap: float = 0.95
    checks: int = 3
    every: int = 1
    units: tuple[str, ...] | None = None
    scope: str = "kind"
    magnitude: bool = True
    absolute: str = "pxp"

    def __post_init__(self) -> None:
        if not isinstance(self.rates, tuple | list):
            raise PxpError(f"rates are {self.rates!r}; give a tuple of fractions, such as (0.3,)")
        if not self.rates or not all(isinstance(rate, numbers.Real) and 0 < rate < 1 for rate in self.rates):
            raise PxpError(f"rates are {list(self.rates)}; give one or more in (0, 1), such as 0.3")
        if not isinstance(self.overlap, numbers.Real) or not 0 < self.overlap <= 1:
            raise PxpError(f"overlap is {self.overlap!r}; it is a fraction of the units removed, in (0, 1]")
        for name in ("checks", "every"):
            if (value := getattr(self, name)) is True or not isinstance(value, numbers.Integral) or value < 1:
                raise PxpError(f"{name} is {value!r}; it must be a whole number, 1 or more")


class StabilityWarning(UserWarning):
    """Scoring was to stop when the plan no longer changes, but single images decide the plan."""


def in_words(record: dict, images: int) -> str:
    """What a header's record says, of so many images that were there to score."""
    found = _outcome(record, images)
    return found if (doubt := _doubt(record)) is None else f"{found}; {doubt}"


def _doubt(record: dict) -> str | None:
    """What speaks against believing in a stable plan."""
    share, images = record.get("largest_share", 0.0), record["images"]
    if share * images <= _OUTWEIGHS:
        return None
    return (
        f"one image carries {share:.1%} of the relevance, {share * images:.0f} times its part among {images}: where "
        "single images decide, the next one may change the plan (bounded initial relevance evens them out)"
    )


def _outcome(record: dict, images: int) -> str:
    rates = " and ".join(f"{rate:.0%}" for rate in record["rates"])
    rule = (
        f"at {rates} at least {record['overlap']:.0%} of the units removed are those that half of the images remove, "
        f"{record['checks']} checks running"
    )
    if record["stable"]:
        return f"scoring stopped after {record['images']} of {images} images: {rule}"
    if not record["history"]:
        return (
            f"all {record['images']} images scored, in too few batches to compare plans of part of them: take smaller "
            "batches to stop early"
        )
    return f"all {record['images']} images scored, and the plan was not yet stable (stable: {rule})"


class Watch:
    """Looks at running totals and says when they are stable.

    Attributes
    ----------
    tables
        Takes the table of every batch, see :class:`Shares`.
    history
        For each check so far that had one of half as many images to compare with: the images, and the smallest overlap
        over the rates.
    """

    def __init__(self, wanted: UntilStable, units: tuple[UnitGroup, ...], tables: SampleTables | None = None) -> None:
        self.wanted = wanted
        self.units = units
        self.tables = Shares(tables)
        self.history: list[tuple[int, float]] = []
        self._batches = 0
        self._samples: list[int] = []
        self._removed: list[list[Tensor]] = []
        total = sum(group.count for group in units)
        for rate, removed in zip(wanted.rates, self._plans(torch.zeros(4, total, dtype=torch.float64), 1), strict=True):
            if not bool(removed.any()):
                raise PxpError(f"at rate {rate:g} none of the {total} units is removed; give a higher rate")

    @property
    def stable(self) -> bool:
        last = self.history[-self.wanted.checks :]
        return len(last) == self.wanted.checks and all(agreed >= self.wanted.overlap for _, agreed in last)

    def while_unstable(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, until what was seen of earlier ones is stable."""
        for batch in batches:
            yield batch
            if self.stable:
                return

    def look(self, totals: Tensor, samples: int) -> None:
        """See the totals ``[4, U]`` of the images so far, after each batch."""
        self._batches += 1
        if self._batches % self.wanted.every:
            return
        removed = self._plans(totals, samples)
        half = bisect.bisect_right(self._samples, samples / 2) - 1
        if half >= 0:
            agreed = min(overlap(now, then) for now, then in zip(removed, self._removed[half], strict=True))
            self.history.append((samples, agreed))
        self._samples.append(samples)
        self._removed.append(removed)

    def _plans(self, totals: Tensor, samples: int) -> list[Tensor]:
        """The units removed at each rate."""
        header = ScoresHeader(
            model="", composite={}, samples=samples, dtype="", device="", versions={}, units=self.units
        )
        scores, wanted = Scores(header, totals.cpu()), self.wanted
        options = {"units": wanted.units, "scope": wanted.scope}
        options |= {"magnitude": wanted.magnitude, "absolute": wanted.absolute}
        return [removed_units(scores, rate, **options) for rate in wanted.rates]

    def describe(self, samples: int) -> dict:
        """What was asked for and what came of it, JSON-able. Warns where single images decide the plan."""
        asked = dataclasses.asdict(self.wanted)
        found = {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()},
            "stable": self.stable,
            "images": samples,
            "largest_share": self.tables.largest(),
            "history": [list(check) for check in self.history],
        }
        if (doubt := _doubt(found)) is not None:
            warnings.warn(doubt, StabilityWarning, stacklevel=3)
        return found


class Shares:
    """How much of all relevance each image carries, from the tables of the batches, which go on to where they are kept.

    Parameters
    ----------
    kept
        Where that is; None: nowhere.
    """

    def __init__(self, kept: SampleTables | None) -> None:
        self.kept = kept
        self.dtype = torch.float32 if kept is None else kept.dtype
        self._carried: list[Tensor] = []

    def add(self, table: Tensor) -> None:
        """Take the table ``[2, n, U]`` of a batch; does not wait for a GPU."""
        self._carried.append(table[1].sum(-1, dtype=torch.float64))
        if self.kept is not None:
            self.kept.add(table)

    def largest(self) -> float:
        """The share of the image that carries the most."""
        carried = torch.cat(self._carried) if self._carried else torch.zeros(1, dtype=torch.float64)
        return float(carried.max() / carried.sum()) if bool(carried.sum() > 0) else 0.0
