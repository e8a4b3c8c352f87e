"""Accuracy, with and without masks, and the curve of accuracy against pruning rate."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .errors import DataError, ModelError, PlanError
from .loader import unprepared
from .lrp.capture import evaluating
from .masks import masked
from .plan import Plan, plan
from .prefetch import prefetch
from .progress import Track
from .scores import Scores

RATES = tuple(step / 20 for step in range(20))


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Top-1 accuracy over a set of images.

    Attributes
    ----------
    correct, total
        Images.
    per_class
        For each label met, ``(correct, total)``.
    right
        Bool ``[total]``: which images are classified right, in the loader's order.
    """

    correct: int
    total: int
    per_class: dict[int, tuple[int, int]]
    right: Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros(0, dtype=torch.bool), compare=False, repr=False
    )

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.correct / self.total

    @property
    def class_accuracy(self) -> dict[int, float]:
        """Of each label met, in [0, 1]."""
        return {label: correct / total for label, (correct, total) in self.per_class.items()}

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' accuracies, in [0, 1]: every class counts alike, however many images it has."""
        return sum(self.class_accuracy.values()) / len(self.per_class)


@dataclasses.dataclass(frozen=True)
class Curve:
    """Accuracy against the fraction of units removed.

    Attributes
    ----------
    rates, accuracies
        In [0, 1), in [0, 1].
    removed
        Units removed at each rate.
    order
        Which units went first.
    """

    rates: tuple[float, ...]
    accuracies: tuple[float, ...]
    removed: tuple[int, ...]
    order: str = "least"

    @property
    def a_pr(self) -> float:
        """Mean accuracy over the rates (PXP's A_PR)."""
        return sum(self.accuracies) / len(self.accuracies)

    @property
    def top_pr(self) -> float:
        """The highest rate that keeps 95 % of the accuracy at the lowest rate (PXP's Top-PR); 0 where that is 0."""
        floor = 0.95 * self.accuracies[self.rates.index(min(self.rates))]
        if floor == 0:  # every rate would keep it
            return 0.0
        return max(rate for rate, accuracy in zip(self.rates, self.accuracies, strict=True) if accuracy >= floor)


def evaluate(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    progress: Track | None = None,
) -> Evaluation:
    """Top-1 accuracy of a model, on the device and in the precision it has, in eval mode; it is left as it was.

    Parameters
    ----------
    loader
        Yields ``(images [N, C, H, W], labels [N])``, on any device; floating images are cast to the parameters' dtype.
    dtype
        Autocast to it (bfloat16, float16); None: as the model is.

    Raises
    ------
    DataError
        There are no images.
    ModelError
        The model returns something else than logits ``[N, classes]``.
    """
    return evaluate_plans(model, [None], loader, dtype=dtype, progress=progress)[0]


def evaluate_plans(
    model: nn.Module,
    plans: Sequence[Plan | None],
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    dtype: torch.dtype | None = None,
    progress: Track | None = None,
    description: str = "evaluating",
) -> list[Evaluation]:
    """Accuracy under each of several plans (None: unpruned), decoding every image once."""
    parameters = list(model.parameters())
    device = parameters[0].device if parameters else torch.device("cpu")
    precision = next((p.dtype for p in parameters if p.is_floating_point()), None)
    tallies: list[dict[int, list[int]]] = [{} for _ in plans]
    every: list[list[Tensor]] = [[] for _ in plans]
    batches = list(loader) if progress is None and not hasattr(loader, "__len__") else loader
    total = len(batches) * len(plans) if hasattr(batches, "__len__") else None
    raw, preparing = unprepared(batches)
    fetched = prefetch(raw, device, prepare=preparing(device))
    pairs = ((index, one, batch) for batch in fetched for index, one in enumerate(plans))
    cast = torch.autocast(device.type, dtype) if dtype is not None else contextlib.nullcontext()
    with evaluating(model), torch.inference_mode(), cast:
        for index, one, (images, labels) in progress(pairs, description, total) if progress is not None else pairs:
            with masked(model, one) if one is not None else contextlib.nullcontext():
                wanted = precision if images.is_floating_point() else None
                # A copy: a model may normalise its input in place, and every plan is to see the same images.
                predicted = _predicted(model, images.to(device, wanted, copy=True))
            labels = labels.cpu()
            every[index].append(predicted == labels)
            for label, right in zip(labels.tolist(), (predicted == labels).tolist(), strict=True):
                tally = tallies[index].setdefault(label, [0, 0])
                tally[0] += right
                tally[1] += 1
    if not tallies[0]:
        raise DataError("there are no images to evaluate on; check the folder and the classes chosen")
    return [
        Evaluation(
            sum(right for right, _ in tally.values()),
            sum(seen for _, seen in tally.values()),
            {label: (right, seen) for label, (right, seen) in sorted(tally.items())},
            torch.cat(right_images),
        )
        for tally, right_images in zip(tallies, every, strict=True)
    ]


def _predicted(model: nn.Module, images: Tensor) -> Tensor:
    """The classes that the model finds most likely, ``[N]`` on the CPU."""
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        found = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise ModelError(
            f"{type(model).__name__} returned {found} for {len(images)} images; expected logits [images, classes]: "
            "wrap it in a module that returns these alone"
        )
    return logits.argmax(1).cpu()


def sweep(
    model: nn.Module,
    scores: Scores,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    rates: Sequence[float] = RATES,
    order: str = "least",
    seed: int = 0,
    dtype: torch.dtype | None = None,
    progress: Track | None = None,
    **plan_options,
) -> Curve:
    """Accuracy at every pruning rate, all from one scoring; by default PXP's twenty rates 0, 0.05 ... 0.95.

    Options as for :func:`pxp_fast.plan` and :func:`evaluate`.
    """
    if len(rates) == 0:
        raise PlanError("a sweep was asked for at no rates; give at least one, such as 0")
    plans = [plan(scores, rate, order=order, seed=seed, **plan_options) for rate in rates]
    measured = evaluate_plans(model, plans, loader, dtype=dtype, progress=progress, description=f"{order} first")
    return Curve(tuple(rates), tuple(m.accuracy for m in measured), tuple(one.removed_count for one in plans), order)
