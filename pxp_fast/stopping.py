"""Stopping early: scoring ends when more images no longer change which units go."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable, Iterator
from typing import TypeVar

from torch import Tensor

from .errors import PxpError
from .plan import removed_units
from .scores import Scores, ScoresHeader
from .stability import overlap
from .units import UnitGroup

Batch = TypeVar("Batch")


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
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            raise PxpError(f"rates are {list(self.rates)}; give one or more in (0, 1), such as 0.3")
        if not 0 < self.overlap <= 1:
            raise PxpError(f"overlap is {self.overlap}; it is a fraction of the units removed, in (0, 1]")
        if self.checks < 1 or self.every < 1:
            raise PxpError(f"checks is {self.checks} and every {self.every}; both must be 1 or more")


def in_words(record: dict, images: int) -> str:
    """What a header's record says, of so many images that were there to score."""
    rates = " and ".join(f"{rate:.0%}" for rate in record["rates"])
    rule = (
        f"at {rates} at least {record['overlap']:.0%} of the units removed are those that half of the images remove, "
        f"{record['checks']} checks running"
    )
    if record["stable"]:
        return f"scoring stopped after {record['images']} of {images} images: {rule}"
    return f"all {record['images']} images scored, and the plan was not yet stable (stable: {rule})"


class Watch:
    """Looks at running totals and says when they are stable.

    Attributes
    ----------
    history
        For each check so far that had one of half as many images to compare with: the images, and the smallest overlap
        over the rates.
    """

    def __init__(self, wanted: UntilStable, units: tuple[UnitGroup, ...]) -> None:
        self.wanted = wanted
        self.units = units
        self.history: list[tuple[int, float]] = []
        self._batches = 0
        self._samples: list[int] = []
        self._removed: list[list[Tensor]] = []

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
        header = ScoresHeader(
            model="", composite={}, samples=samples, dtype="", device="", versions={}, units=self.units
        )
        scores, wanted = Scores(header, totals.cpu()), self.wanted
        options = {"units": wanted.units, "scope": wanted.scope}
        options |= {"magnitude": wanted.magnitude, "absolute": wanted.absolute}
        removed = [removed_units(scores, rate, **options) for rate in wanted.rates]
        half = bisect.bisect_right(self._samples, samples / 2) - 1
        if half >= 0:
            agreed = min(overlap(now, then) for now, then in zip(removed, self._removed[half], strict=True))
            self.history.append((samples, agreed))
        self._samples.append(samples)
        self._removed.append(removed)

    def describe(self, samples: int) -> dict:
        """What was asked for and what came of it, JSON-able."""
        asked = dataclasses.asdict(self.wanted)
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in asked.items()},
            "stable": self.stable,
            "images": samples,
            "history": [list(check) for check in self.history],
        }
