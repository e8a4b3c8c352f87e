"""Stability: how many reference images a plan needs, seen by pruning from other sets of such images."""

from __future__ import annotations

import dataclasses
import numbers
import operator
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import PxpError, ScoresError
from .files import atomic_write
from .plan import removed_units
from .progress import Track
from .ranking import Ranking
from .scores import Scores
from .scores_samples import add_up

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
LEAST_FOR_INTERVAL = 20
_CONFIDENCE = 0.95


class Agreement(NamedTuple):
    """What some measure of agreement with all the images is at one size.

    Attributes
    ----------
    mean
        Over the sets drawn.
    low, high
        A 95 % confidence interval for where one reference set of this size lies (the bootstrap's percentiles, 2.5 % and
        97.5 %, interpolated); None with less than 20 sets, which make none.
    """

    mean: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Stability:
    """How well reference sets of some size agree with all the images that there are.

    Attributes
    ----------
    rate
        Fraction of units removed.
    sizes
        Images per class.
    images
        Images in a set of each size; all of them are `full`.
    overlaps
        ``[sizes, seeds]`` float64: the fraction of the units removed that all the images remove as well. Chance
        is `rate`.
    taus
        ``[sizes, seeds]`` float64: Kendall's tau-b between the values of all units and those by all the images; for
        units ranked among their kind the mean over the kinds, weighted by their numbers of units.
    """

    rate: float
    sizes: tuple[int, ...]
    images: tuple[int, ...]
    full: int
    overlaps: Tensor
    taus: Tensor

    @property
    def overlap(self) -> tuple[Agreement, ...]:
        """Of each size."""
        return tuple(map(_agreement, self.overlaps))

    @property
    def tau(self) -> tuple[Agreement, ...]:
        """Of each size."""
        return tuple(map(_agreement, self.taus))

    def describe(self) -> dict:
        """Everything in it, JSON-able."""
        return {
            "rate": self.rate,
            "images_of_the_full_set": self.full,
            "sizes": [
                {"per_class": size, "images": images, "overlap": overlap._asdict(), "tau": tau._asdict()}
                for size, images, overlap, tau in zip(self.sizes, self.images, self.overlap, self.tau, strict=True)
            ],
            "overlaps": self.overlaps.tolist(),
            "taus": self.taus.tolist(),
        }

    def save_figure(self, path: str | os.PathLike[str]) -> None:
        """Draw overlap and tau against the images per class, as SVG. PxpError, naming the extra, without matplotlib."""
        from .report import figures, require_extra

        require_extra()
        with atomic_write(path) as temporary:
            temporary.write_text(figures.standalone(figures.stability(self)), encoding="utf-8")


def stability(
    scores: Scores,
    rate: float = 0.3,
    sizes: Iterable[int] | None = None,
    seeds: int | Iterable[int] = 20,
    *,
    units: Iterable[str] | None = None,
    scope: str = "kind",
    magnitude: bool = True,
    absolute: str = "pxp",
    progress: Track | None = None,
) -> Stability:
    """Prune from random reference sets, and compare with the plan that all the images that scored give.

    Sets have equally many images of every class, drawn with replacement (the bootstrap: Efron, 1979): the images that
    scored stand for all that there are, and a set as large as them is another such set. Those of one seed grow by
    adding images.

    Parameters
    ----------
    scores
        Made with ``per_sample=True``.
    rate
        Fraction of units to remove, in (0, 1).
    sizes
        Images per class; default: 1, 2, 5, 10, 20, 50 ... as far as every class has so many, and all of them.
    seeds
        The seeds of the sets, or how many; an interval takes 20.
    units, scope, magnitude, absolute
        As for :func:`pxp_fast.plan`.

    Raises
    ------
    ScoresError
        The scores have no table of every sample.
    PxpError
        A class has fewer images than a size asks for, nothing is removed at this rate, or scipy is not installed.
    """
    if scores.sample_table is None or scores.sample_labels is None:
        raise ScoresError(
            "these scores do not tell images apart; score again with per_sample=True (pxp-fast score --per-sample)"
        )
    if not isinstance(rate, numbers.Real):
        raise PxpError(f"rate is {rate!r}; it is the fraction of units to remove, such as 0.3")
    options = {"units": None if units is None else tuple(units), "scope": scope}
    options |= {"magnitude": magnitude, "absolute": absolute}
    chosen = removed_units(scores, rate, **options)
    if not bool(chosen.any()):
        raise PxpError(f"at rate {rate} none of the {len(chosen)} units is removed; give a higher rate")
    wanted = _sizes(sizes, scores.sample_labels)
    drawn = (
        tuple(range(seeds))
        if isinstance(seeds, int)
        else _whole(seeds, "seeds", "how many sets to draw, or their seeds")
    )
    if not drawn:
        raise PxpError("stability is asked for over no sets of images; give one seed at least")
    values = scores.values(magnitude=magnitude, absolute=absolute)
    ranked = Ranking(scores, **options).pools
    overlaps, taus = (torch.empty(len(wanted), len(drawn), dtype=torch.float64) for _ in range(2))
    for column, seed in enumerate(progress(drawn, "sets", len(drawn)) if progress is not None else drawn):
        for row, part in enumerate(_growing(scores, wanted, seed)):
            own = part.values(magnitude=magnitude, absolute=absolute)
            overlaps[row, column] = overlap(chosen, removed_units(part, rate, **options))
            each = torch.tensor([kendall_tau(values[among], own[among]) for among in ranked], dtype=torch.float64)
            weights = torch.tensor([len(among) for among in ranked], dtype=torch.float64)
            taus[row, column] = (each * weights).sum() / weights.sum()
    classes = len(scores.sample_labels.unique())
    return Stability(rate, wanted, tuple(size * classes for size in wanted), scores.samples, overlaps, taus)


def overlap(first: Tensor, second: Tensor) -> float:
    """The fraction of the units removed (bool ``[U]``) that are removed in both of two plans for equally many."""
    return int((first & second).sum()) / max(int(first.sum()), 1)


def kendall_tau(first: Tensor, second: Tensor) -> float:
    """Kendall's rank correlation tau-b (1945) of two ``[U]``, in O(U log U); 0 where one of them is constant."""
    try:
        from scipy.stats import kendalltau
    except ImportError as error:
        raise PxpError("Kendall's tau needs scipy; install it with: pip install 'pxp_fast[studies]'") from error
    found = float(kendalltau(first.numpy(), second.numpy(), method="asymptotic").statistic)
    return 0.0 if found != found else found


def balanced_order(labels: Sequence[int], seed: int = 0) -> list[int]:
    """Positions of all samples in an order of which every beginning has all classes alike, as far as they last.

    Round after round takes one sample of every class, in an order that is random in each; `seed` and the labels decide.
    """
    by_class: dict[int, list[int]] = {}
    for position, label in enumerate(labels):
        by_class.setdefault(int(label), []).append(position)
    for label, positions in by_class.items():
        random.Random(f"{seed}:{label}").shuffle(positions)
    rounds = random.Random(f"{seed}:rounds")
    order: list[int] = []
    for turn in range(max(map(len, by_class.values()), default=0)):
        here = [by_class[label][turn] for label in sorted(by_class) if turn < len(by_class[label])]
        order += rounds.sample(here, len(here))
    return order


def _growing(scores: Scores, sizes: Sequence[int], seed: int) -> Iterator[Scores]:
    """The scores of ever larger sets, `sizes` images of every class, drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    places = [(scores.sample_labels == label).nonzero().flatten() for label in scores.sample_labels.unique()]
    drawn = [own[torch.randint(len(own), (len(own),), generator=generator)] for own in places]
    totals, before = torch.zeros_like(scores.totals), 0
    for size in sizes:
        totals = add_up(totals.clone(), scores.sample_table, torch.cat([own[before:size] for own in drawn]))
        yield Scores(scores.header.model_copy(update={"samples": size * len(places)}), totals)
        before = size


def _sizes(given: Iterable[int] | None, labels: Tensor) -> tuple[int, ...]:
    fewest = int(labels.bincount()[labels.unique()].min())
    if given is None:
        wanted = [*(size for size in SIZES if size < fewest), fewest]
    else:
        wanted = sorted(set(_whole(given, "sizes", "whole numbers of images per class")))
    if not wanted or wanted[0] < 1 or wanted[-1] > fewest:
        raise PxpError(
            f"sets of {wanted} images per class are asked for; every class has {fewest} or more: choose from "
            f"1 ... {fewest}, or score more images"
        )
    return tuple(wanted)


def _whole(given: Iterable[int], name: str, wanted: str) -> tuple[int, ...]:
    """The whole numbers given; PxpError where they are something else."""
    try:
        return tuple(map(operator.index, given))
    except TypeError as error:
        raise PxpError(f"{name} are {given!r}; give {wanted}") from error


def _agreement(values: Tensor) -> Agreement:
    if len(values) < LEAST_FOR_INTERVAL:
        return Agreement(float(values.mean()), None, None)
    tails = torch.tensor([(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2], dtype=values.dtype)
    return Agreement(float(values.mean()), *values.quantile(tails).tolist())
