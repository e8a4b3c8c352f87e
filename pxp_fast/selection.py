"""Which images score and which judge, for each of the commands."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Set
from dataclasses import replace
from typing import Any

from .config import RunConfig, TuneConfig
from .data import DemoImages, Images, demo_images, image_folder, shared_images, split
from .errors import DataError
from .models import LoadedModel
from .scores import Scores


def scoring_and_judging(config: RunConfig, loaded: LoadedModel) -> tuple[Images, Images]:
    """The images that score and the images that judge: disjoint, unless ``config.val`` makes them overlap."""
    if config.val is not None:
        return scoring(config, loaded), _folder(config.val, config, loaded, config.eval_samples_per_class)
    if config.data == "demo":
        return scoring(config, loaded), judging(config, loaded)
    if not config.samples_per_class:
        raise DataError("--samples-per-class 0 lets every image score, so none is left to judge by: give --val DIR")
    return split(
        _folder(config.data, config, loaded, None),
        reference_per_class=config.samples_per_class,
        evaluation_per_class=config.eval_samples_per_class,
        seed=config.seed,
        allow_fewer=config.allow_fewer,
    )


def tuning(config: TuneConfig, loaded: LoadedModel) -> tuple[Images, Images, Images]:
    """Images that score, that judge the trials of a search, and that are held out until its end: all disjoint."""
    if config.val is not None:
        first, others = scoring(config, loaded), _folder(config.val, config, loaded, None)
    elif config.data == "demo":
        first, others = scoring(config, loaded), demo_images("test", **_options(config, loaded))
    else:
        first, others = scoring_and_judging(config.model_copy(update={"eval_samples_per_class": None}), loaded)
    if shared := shared_images(first, others):
        raise DataError(f"{shared} of the images of --val also score: a search would favour them; give others")
    counts = Counter(others.labels)
    count = config.eval_samples_per_class or max(1, min(50, min(counts.values()) // 2))
    needed = count + (config.held_out_samples_per_class or 1)
    if not config.allow_fewer and (short := [label for label in counts if counts[label] < needed]):
        name = others.class_names[short[0]]
        raise DataError(
            f"class {name} of {others.root} has {counts[short[0]]} images that do not score, {needed} are asked for "
            f"({count} to judge trials, the rest held out): ask for fewer (--samples-per-class, "
            "--eval-samples-per-class, --held-out-samples-per-class), leave the class out (--classes), or allow it "
            "(--allow-fewer)"
        )
    judging, held_out = split(
        others,
        reference_per_class=count,
        evaluation_per_class=config.held_out_samples_per_class,
        seed=config.seed,
        allow_fewer=config.allow_fewer,
    )
    return first, judging, held_out


def scoring(config: RunConfig, loaded: LoadedModel) -> Images:
    """The images of ``config.data`` that score; the same ones that a run with these options chooses."""
    if config.data == "demo":
        return demo_images("reference", samples_per_class=config.samples_per_class or None, **_options(config, loaded))
    return _folder(config.data, config, loaded, config.samples_per_class or None)


def judging(config: RunConfig, loaded: LoadedModel, scored: Set[str] = frozenset()) -> Images:
    """The images of ``config.data`` that judge.

    Those in `scored` (:func:`scored_paths`) are left out, except of classes that have no others.
    """
    if config.data == "demo":
        return demo_images("test", samples_per_class=config.eval_samples_per_class, **_options(config, loaded))
    return _folder(config.data, config, loaded, config.eval_samples_per_class, scored)


def record_images(scores: Scores, images: Images, config: RunConfig) -> Scores:
    """`scores` with a description of the images that were read for them, to be called after the pass."""
    root = images.root if isinstance(images, DemoImages) else os.path.realpath(images.root)
    data = {
        "root": root,
        "images": len(images),
        "classes": sorted(images.class_names),
        "samples_per_class": config.samples_per_class,
        "seed": config.seed,
        "paths": sorted(os.path.relpath(s.path, images.root) if images.on_disk else str(s.path) for s in images.used),
    }
    return replace(scores, header=scores.header.model_copy(update={"data": data}))


def scored_paths(scores: Scores) -> frozenset[str]:
    """The real paths of the images that scored, as far as the file says."""
    data = scores.header.data or {}
    return frozenset(os.path.realpath(os.path.join(data.get("root", ""), path)) for path in data.get("paths", ()))


def _folder(
    root: str, config: RunConfig, loaded: LoadedModel, count: int | None, leave_out: Set[str] = frozenset()
) -> Images:
    return image_folder(root, samples_per_class=count, leave_out=leave_out, **_options(config, loaded))


def _options(config: RunConfig, loaded: LoadedModel) -> dict[str, Any]:
    return {"model": loaded, "classes": config.classes, "seed": config.seed, "allow_fewer": config.allow_fewer}
