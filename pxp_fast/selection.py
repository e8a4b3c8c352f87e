"""Which images score and which judge, for each of the commands."""

from __future__ import annotations

import os
from typing import Any

from .config import RunConfig
from .data import DemoImages, Images, demo_images, image_folder, split
from .errors import DataError
from .models import LoadedModel


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


def scoring(config: RunConfig, loaded: LoadedModel) -> Images:
    """The images of ``config.data`` that score; the same ones that a run with these options chooses."""
    if config.data == "demo":
        return demo_images("reference", samples_per_class=config.samples_per_class or None, **_options(config, loaded))
    return _folder(config.data, config, loaded, config.samples_per_class or None)


def judging(config: RunConfig, loaded: LoadedModel, scored: dict[str, Any] | None = None) -> Images:
    """The images of ``config.data`` that judge.

    `scored` is what a scores file says about its images (:func:`describe`): those of the same folder that scored are
    left out, as long as that leaves any.
    """
    if config.data == "demo":
        return demo_images("test", samples_per_class=config.eval_samples_per_class, **_options(config, loaded))
    wanted = _folder(config.data, config, loaded, config.eval_samples_per_class)
    if not scored or scored.get("root") != os.path.realpath(config.data) or not scored.get("samples_per_class"):
        return wanted
    _, rest = split(
        _folder(config.data, config, loaded, None),
        reference_per_class=scored["samples_per_class"],
        evaluation_per_class=config.eval_samples_per_class,
        seed=scored["seed"],
        allow_fewer=True,
    )
    return rest if len(rest) else wanted


def describe(images: Images, config: RunConfig) -> dict[str, Any]:
    """What a scores file says about its images."""
    return {
        "root": images.root if isinstance(images, DemoImages) else os.path.realpath(images.root),
        "images": len(images),
        "classes": sorted(images.class_names),
        "samples_per_class": config.samples_per_class,
        "seed": config.seed,
    }


def _folder(root: str, config: RunConfig, loaded: LoadedModel, count: int | None) -> Images:
    return image_folder(root, samples_per_class=count, **_options(config, loaded))


def _options(config: RunConfig, loaded: LoadedModel) -> dict[str, Any]:
    return {"model": loaded, "classes": config.classes, "seed": config.seed, "allow_fewer": config.allow_fewer}
