"""What a run found, as results.json holds it, and what a reader must know before believing it."""

from __future__ import annotations

from collections.abc import Iterator

from . import data
from .config import RunConfig
from .evaluate import Curve, Evaluation
from .models import LoadedModel
from .report.words import percent
from .results import ClassRecord, CurveRecord, DataRecord, ModelRecord
from .scores import Scores
from .smaller import hits
from .stopping import in_words


def curve_record(curve: Curve, order: str, seed: int | None) -> CurveRecord:
    """A curve as results.json holds it."""
    return CurveRecord(
        order=order,
        seed=seed,
        rates=tuple(curve.rates),
        accuracies=tuple(curve.accuracies),
        removed=tuple(curve.removed),
        a_pr=curve.a_pr,
        top_pr=curve.top_pr,
    )


def model_record(loaded: LoadedModel) -> ModelRecord:
    return ModelRecord(
        name=loaded.name,
        weights=loaded.weights,
        weights_sha256=loaded.weights_sha256,
        input_size=loaded.input_size,
        num_classes=loaded.num_classes,
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
    )


def data_record(images: data.Images, read: int) -> DataRecord:
    return DataRecord(root=images.root, images=len(images), read=read, classes=len(set(images.labels)))


def class_records(before: Evaluation, after: Evaluation, images: data.Images) -> tuple[ClassRecord, ...]:
    return tuple(
        ClassRecord(
            label=label,
            name=images.class_names.get(label, str(label)),
            before=correct,
            after=after.per_class.get(label, (0, total))[0],
            total=total,
        )
        for label, (correct, total) in sorted(before.per_class.items())
    )


def notes_of(
    loaded: LoadedModel,
    shared: int,
    fallbacks: list[str],
    before: Evaluation,
    scores: Scores,
    chosen: int,
    config: RunConfig,
) -> Iterator[str]:
    """What a reader must know before believing the numbers."""
    if loaded.weights == "random":
        yield "The network has random weights: these numbers say nothing about a trained one. Give --weights."
    if shared:
        yield (
            f"{shared} of the {before.total} images that judge are also images that score: the accuracy after pruning "
            "is that of images the plan has seen."
        )
    if config.max_drop is not None:
        yield "How much goes was decided by the images that judge: their accuracy after pruning flatters a little."
    if before.total < 200:
        low, high = hits(before).interval
        yield (
            f"Only {before.total} images judge: the unpruned accuracy is known to lie between {percent(low)} and "
            f"{percent(high)} (95\u202f% confidence), and differences within that range mean little."
        )
    if scores.header.until_stable is not None:
        words = in_words(scores.header.until_stable, chosen)
        yield f"{words[0].upper()}{words[1:]}."
    yield from fallbacks
