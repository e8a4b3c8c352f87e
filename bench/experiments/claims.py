"""The PXP paper's claims, each as a comparison of results, and what the results say about it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import results
from .methods import BY_NAME, SUBJECTS, Subject, methods_of

HELD, FAILED, OPEN, MISSING = "held", "did not hold", "undecided", "not measured"
Records = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Finding:
    """What one subject's results say about a claim."""

    subject: str
    text: str
    verdict: str


@dataclass(frozen=True)
class Claim:
    """A statement, and what judges it for one subject."""

    text: str
    subjects: tuple[Subject, ...]
    judge: Callable[[Records, Subject], Finding | None]

    def findings(self, records: Records) -> list[Finding]:
        found = [self.judge(records, subject) for subject in self.subjects]
        return [one for one in found if one is not None]

    def verdict(self, records: Records) -> str:
        """Held or not where all findings agree; else how many of them it held for."""
        verdicts = [finding.verdict for finding in self.findings(records)]
        if not verdicts:
            return MISSING
        if len(set(verdicts)) == 1:
            return verdicts[0]
        return ", ".join(f"{name} for {verdicts.count(name)}" for name in (HELD, FAILED, OPEN) if name in verdicts)


def paired(records: Records, subject: Subject, ours: str, theirs: str) -> results.Estimate | None:
    """Mean difference of A_PR between two methods over the tasks of three classes."""
    record = records.get(f"three_{subject.name}")
    if record is None or ours not in record["cells"] or theirs not in record["cells"]:
        return None
    values = (results.a_pr(record["cells"][name], record["rates"]) for name in (ours, theirs))
    return results.difference(*values)


def verdict(estimate: results.Estimate, threshold: float = 0.0) -> str:
    """Of the claim that the estimated number is above a threshold; undecided within two standard errors of it."""
    return {1: HELD, -1: FAILED, 0: OPEN}[estimate.side(threshold)]


def better(ours: str, others: Iterable[str]) -> Callable[[Records, Subject], Finding | None]:
    """The claim that a method's A_PR is above that of every other one, whichever of these is the hardest to beat.

    It holds where it holds beside every one of them, and fails where it fails beside one.
    """
    worst_first = (FAILED, OPEN, HELD)

    def judge(records: Records, subject: Subject) -> Finding | None:
        rivals = [method.name for method in methods_of(subject) if method.name in others]
        gaps = {name: paired(records, subject, ours, name) for name in rivals}
        known = {name: gap for name, gap in gaps.items() if gap is not None}
        if not known:
            return None
        hardest = min(known, key=lambda name: (worst_first.index(verdict(known[name])), known[name].mean))
        found, text = verdict(known[hardest]), f"{signed(known[hardest])} over {BY_NAME[hardest].title}"
        if missing := [BY_NAME[name].title for name in rivals if name not in known]:
            found, text = FAILED if found == FAILED else OPEN, f"{text}; {', '.join(missing)} not measured"
        return Finding(subject.title, text, found)

    return judge


def no_better(ours: str, other: str) -> Callable[[Records, Subject], Finding | None]:
    """The claim that a method's A_PR is not above another's."""

    def judge(records: Records, subject: Subject) -> Finding | None:
        gap = paired(records, subject, ours, other)
        if gap is None:
            return None
        text = f"{signed(gap)} over {BY_NAME[other].title}"
        return Finding(subject.title, text, verdict(results.Estimate(-gap.mean, gap.error)))

    return judge


def keeps(method: str, rate: float) -> Callable[[Records, Subject], Finding | None]:
    """The claim that with all classes a method removes this fraction and keeps 95 % of the accuracy.

    The standard error is that of two independent shares of the images, which is more than that of the same images.
    """

    def judge(records: Records, subject: Subject) -> Finding | None:
        record = records.get(f"all_{subject.name}")
        if record is None or method not in record["cells"]:
            return None
        cell = record["cells"][method]
        curve = results.curves(cell, record["rates"])[0]
        left, whole = (curve.accuracies[curve.rates.index(at)] for at in (rate, 0.0))
        error = math.hypot(results.binomial(left, cell["total"]), 0.95 * results.binomial(whole, cell["total"]))
        gap = results.Estimate(left - 0.95 * whole, error)
        text = f"accuracy {left:.3f} at {rate:.0%}, {signed(gap)} over 95 % of the unpruned; Top-PR {curve.top_pr:.0%}"
        return Finding(subject.title, text, verdict(gap))

    return judge


def suffices(method: str, count: int, loss: float) -> Callable[[Records, Subject], Finding | None]:
    """The claim that `count` references per class give the A_PR of the most that were tried, but for `loss`."""

    def judge(records: Records, subject: Subject) -> Finding | None:
        record = records.get(f"references_{subject.name}")
        if record is None or method not in record["cells"] or count not in record["counts"]:
            return None
        cell = record["cells"][method]
        few, most = (
            results.a_pr({"correct": cell["correct"][str(n)], "total": cell["total"]}, record["rates"])
            for n in (count, max(record["counts"]))
        )
        gap = results.difference(few, most)
        text = f"{signed(gap)} beside {max(record['counts'])} per class"
        return Finding(subject.title, text, verdict(gap, -loss))

    return judge


def signed(gap: results.Estimate) -> str:
    """An estimate with its sign, as a difference is written."""
    return f"{'+' if gap.mean >= 0 else '-'}{str(gap).lstrip('-')}"


_CNNS = tuple(subject for subject in SUBJECTS if subject.kind == "filter")
_VITS = tuple(subject for subject in SUBJECTS if subject.kind != "filter")
_NEURONS = tuple(subject for subject in SUBJECTS if subject.kind == "neuron")
_HEADS = tuple(subject for subject in SUBJECTS if subject.kind == "head")

CLAIMS = (
    Claim("LRP with the epsilon rule prunes better than chance.", SUBJECTS, better("epsilon", ["random"])),
    Claim(
        "An optimised composite prunes better than the epsilon rule.", _CNNS + _NEURONS, better("tuned", ["epsilon"])
    ),
    Claim(
        "For heads the optimised composite is no better than the epsilon rule.", _HEADS, no_better("tuned", "epsilon")
    ),
    Claim(
        "The optimised composite prunes better than the composites of the literature.",
        SUBJECTS,
        better("tuned", ["epsilon_plus", "epsilon_gamma", "alpha2_beta1", "attnlrp", "cp_lrp"]),
    ),
    Claim(
        "For neurons of a ViT the epsilon rule prunes better than the z-plus heuristic (epsilon-plus).",
        _NEURONS,
        better("epsilon", ["epsilon_plus"]),
    ),
    Claim(
        "For heads the z-plus heuristic (epsilon-plus) is no better than chance.",
        _HEADS,
        no_better("epsilon_plus", "random"),
    ),
    Claim(
        "The optimised composite prunes better than gradient, Taylor and integrated gradients.",
        SUBJECTS,
        better("tuned", ["gradient", "taylor", "integrated_gradients"]),
    ),
    Claim(
        "The epsilon rule prunes better than integrated gradients.",
        SUBJECTS,
        better("epsilon", ["integrated_gradients"]),
    ),
    Claim(
        "Ranking by absolute relevance is better than by signed relevance.",
        SUBJECTS,
        better("epsilon", ["epsilon_signed"]),
    ),
    Claim(
        "With all classes, 20 % of a ViT's units can go at no less than 95 % of its accuracy.",
        _VITS,
        keeps("epsilon", 0.2),
    ),
    Claim("Ten reference images per class suffice for CNNs (A_PR within 0.01).", _CNNS, suffices("epsilon", 10, 0.01)),
    Claim("One reference image per class suffices for ViTs (A_PR within 0.01).", _VITS, suffices("epsilon", 1, 0.01)),
)

BASELINES = ("magnitude", "activation", "random")
