"""Scores of some classes: from what is kept of every class, or of every image."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .errors import ScoresError
from .scores_samples import add_up, for_samples

if TYPE_CHECKING:
    from .scores import Scores


def for_classes(scores: Scores, keep: Iterable[int]) -> Scores:
    """See :meth:`pxp_fast.Scores.for_classes`."""
    if not scores.samples:
        return _described(scores, scores, for_classes=sorted(map(operator.index, set(keep))))
    apart = Apart.of(scores)
    chosen = apart.chosen(keep)
    if scores.sample_labels is None:
        totals, count = apart.over(chosen)
        found = type(scores)(scores.header.model_copy(update={"samples": count}), totals)
    else:
        rows = {apart.labels.index(label) for label in chosen}
        positions = [i for i, row in enumerate(scores.sample_labels.tolist()) if row in rows]
        found = dataclasses.replace(for_samples(scores, positions), class_totals=None, class_samples=None)
        data = {name: value for name, value in found.header.data.items() if name != "for_samples"}
        found = dataclasses.replace(found, header=found.header.model_copy(update={"data": data}))
    return _described(found, found, for_classes=chosen)


def contrast(scores: Scores, keep: Iterable[int] | None, forget: Iterable[int] | None) -> Scores:
    """See :meth:`pxp_fast.Scores.contrast`."""
    if forget is None:
        if keep is None:
            raise ScoresError("neither classes to keep nor classes to forget are given; give either, or both")
        return for_classes(scores, keep)
    if not scores.samples:
        raise ScoresError(
            f"scores by {scores.header.criterion} are from no images, so nothing in them belongs to a class; choose "
            "another criterion to forget classes by"
        )
    apart = Apart.of(scores)
    forgotten = apart.chosen(forget)
    if keep is None and not (keep := [label for label in apart.scored if label not in forgotten]):
        raise ScoresError(
            f"classes {forgotten} are all that have images, so none is left to be kept; forget fewer, or score images "
            "of other classes too"
        )
    kept = apart.chosen(keep)
    if both := sorted(set(kept) & set(forgotten)):
        raise ScoresError(f"classes {both} are both to be kept and to be forgotten; choose one")
    (gains, kept_count), (losses, forgotten_count) = apart.over(kept), apart.over(forgotten)
    count = kept_count + forgotten_count
    totals = torch.zeros_like(scores.totals)
    for part, weight in ((gains, count / kept_count), (losses, -count / forgotten_count)):
        totals += part * torch.tensor([[weight], [weight], [weight], [weight**2]], dtype=totals.dtype)
    found = type(scores)(scores.header.model_copy(update={"samples": count}), totals)
    return _described(found, scores, contrast={"keep": kept, "forget": forgotten})


def _described(scores: Scores, of: Scores, **data: object) -> Scores:
    """The scores with an entry more in their header's data than `of` has."""
    header = scores.header.model_copy(update={"data": {**(of.header.data or {}), **data}})
    return dataclasses.replace(scores, header=header)


@dataclasses.dataclass(frozen=True)
class Apart:
    """The totals of every class.

    Attributes
    ----------
    totals
        ``[classes, 4, U]`` float64.
    samples
        ``[classes]`` int64.
    labels
        The label of each class: its place, but where the network was cut down to a task's classes theirs.
    """

    totals: Tensor
    samples: Tensor
    labels: tuple[int, ...]

    @classmethod
    def of(cls, scores: Scores) -> Apart:
        """From the totals kept of every class, or the table of every image; ScoresError where there is neither."""
        header = scores.header
        totals, samples = scores.class_totals, scores.class_samples
        if (totals is None or samples is None) and scores.sample_table is not None:
            samples = torch.bincount(scores.sample_labels)
            totals = torch.zeros(len(samples), *scores.totals.shape, dtype=scores.totals.dtype)
            add_up(totals, scores.sample_table, torch.arange(len(scores.sample_labels)), scores.sample_labels)
        if totals is None or samples is None:
            if header.criterion == "combination" and header.criterion_options.get("how") == "rank":
                raise ScoresError(
                    "ranks in one class say nothing about those in several, so combined ranks do not tell classes "
                    "apart; combine the scores of the classes (for_classes of each), or by sums (how='sum')"
                )
            raise ScoresError(
                "these scores do not tell classes apart; score again with per_class=True (pxp-fast score --per-class)"
            )
        task = (header.data or {}).get("task") or {}
        labels = tuple(task["classes"] if task.get("mode") == "slice" else range(len(samples)))
        if len(labels) < len(samples):
            raise ScoresError(
                f"these scores are of a task of classes {list(labels)}, but tell {len(samples)} apart; score again"
            )
        return cls(totals, samples, labels)

    @property
    def scored(self) -> list[int]:
        """The labels of the classes that have images."""
        return sorted(self.labels[row] for row in self.samples.nonzero().flatten().tolist())

    def chosen(self, given: Iterable[int]) -> list[int]:
        """The labels given, in order; ScoresError unless all have images."""
        try:
            chosen = sorted({operator.index(label) for label in given})
        except TypeError as error:
            raise ScoresError(f"classes are {given!r}; pass whole numbers, such as [0, 3]") from error
        if not chosen or not set(chosen) <= set(self.scored):
            known = self.scored
            raise ScoresError(
                f"scores are asked for of {f'classes {chosen}' if chosen else 'no classes'}; choose from the "
                f"{len(known)} classes that have images: "
                f"{', '.join(map(str, known[:20]))}{' ...' if len(known) > 20 else ''}"
            )
        return chosen

    def over(self, labels: list[int]) -> tuple[Tensor, int]:
        """The totals ``[4, U]`` over the samples of some classes, and how many these are."""
        rows = [self.labels.index(label) for label in labels]
        return self.totals[rows].sum(0), int(self.samples[rows].sum())
