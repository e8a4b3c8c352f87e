"""What a search maximises, from accuracies at pruning rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ..errors import PxpError
from ..evaluate import RATES, Curve

NAMES = (
    "a-pr, top-pr, rate:R (accuracy with the fraction R of the units removed) or flops:F (accuracy at F of the FLOPs)"
)
_STRIDE = 5


@dataclasses.dataclass(frozen=True)
class Objective:
    """A number to maximise.

    Attributes
    ----------
    name
        ``"a-pr"``: mean accuracy over the rates 0, 0.05 ... 0.95. ``"top-pr"``: the highest of these rates that keeps
        95 % of the unpruned accuracy. ``"rate"``, ``"flops"``: accuracy with `at` of the units removed, or with `at` of
        the FLOPs left once slimmed.
    at
        In (0, 1); None for the first two.
    """

    name: str
    at: float | None = None

    @classmethod
    def parse(cls, text: str) -> Objective:
        """The objective that a text such as ``"a-pr"`` or ``"flops:0.5"`` names.

        Raises
        ------
        PxpError
            It names none.
        """
        name, separator, value = text.partition(":")
        if name in ("a-pr", "top-pr") and not separator:
            return cls(name)
        if name in ("rate", "flops"):
            try:
                at = float(value)
            except ValueError:
                at = -1.0
            if 0 < at < 1:
                return cls(name, at)
            raise PxpError(f"objective {text!r} needs a fraction between 0 and 1, such as {name}:0.5")
        raise PxpError(f"objective {text!r} is not known; choose {NAMES}")

    def __str__(self) -> str:
        return self.name if self.at is None else f"{self.name}:{self.at:g}"

    @property
    def title(self) -> str:
        """Its name in a report."""
        if self.at is None:
            return {"a-pr": "A_PR", "top-pr": "Top-PR"}[self.name]
        return f"accuracy at {100 * self.at:g} % of the {'units removed' if self.name == 'rate' else 'FLOPs'}"

    def steps(self) -> tuple[tuple[float, ...], ...]:
        """The rates to judge at, in steps after each of which a hopeless trial may end; each step spans the range.

        Rate 0, by which Top-PR measures all others, is in the first step, and costs nothing: it is the same for all
        trials. The objective ``flops`` has no steps: its rate depends on the scores.
        """
        if self.name == "flops":
            return ()
        if self.name == "rate":
            return ((self.at,),)
        first, *others = (RATES[start::_STRIDE] for start in (2, 0, 4, 1, 3))
        return ((0.0, *first), *(tuple(rate for rate in rates if rate > 0) for rates in others))

    def value(self, accuracies: Mapping[float, float]) -> float:
        """The objective, from the accuracies judged so far, by rate."""
        rates = tuple(sorted(accuracies))
        curve = Curve(rates, tuple(accuracies[rate] for rate in rates), (0,) * len(rates))
        if self.name == "a-pr":
            return curve.a_pr
        return curve.top_pr if self.name == "top-pr" else accuracies[max(rates)]
