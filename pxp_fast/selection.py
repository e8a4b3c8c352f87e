"""Which images score and which judge, for each of the commands."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .config import RunConfig, TuneConfig
from .data import DemoImages, Images, class_folders, demo_images, image_folder, shared_images, split
from .errors import DataError
from .labels import match_classes
from .models import LoadedModel
from .scores import Scores
from .stability import balanced_order
from .tasks import Task, random_task


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


def task_of(config: RunConfig, loaded: LoadedModel) -> tuple[RunConfig, Task | None]:
    """The task that `config` asks for, and `config` with its classes alone; None: the network stays whole."""
    if config.task_classes is None and config.task_mode is None:
        return config, None
    if config.data == "demo":
        from . import demo

        every, root = {name: label for label, name in enumerate(demo.CLASSES)}, "the demo"
    else:
        every, root = class_folders(Path(config.data), loaded), config.data
    names = match_classes(root, every, config.classes)
    mode = config.task_mode or "slice"
    if config.task_classes is None:
        task = Task(tuple(sorted(names.values())), mode)
    else:
        task = random_task(names.values(), config.task_classes, config.task_seed, mode)
    own = [(name, label) for name, label in names.items() if label in task.classes]
    # By label, as the folders of the images that judge may have other names; but a name means its folder first.
    classes = tuple(str(label) if every.get(str(label), label) == label else name for name, label in own)
    return config.model_copy(update={"classes": classes}), task


def for_task(task: Task | None, loaded: LoadedModel, *images: Images) -> tuple[LoadedModel, *tuple[Images, ...]]:
    """The network restricted to a task, and images with its labels; None: as they are."""
    if task is None:
        return loaded, *images
    model = task.restrict(loaded.model, torch.zeros(1, *loaded.input_size))
    classes = len(task.classes) if task.mode == "slice" else loaded.num_classes
    return replace(loaded, model=model, num_classes=classes), *map(task.images, images)


def check_classes(config: RunConfig, images: Images, task: Task | None) -> None:
    """Raise DataError unless the classes to be kept and to be forgotten have images that score, and some are left."""
    labels = set(images.labels)
    known = {task.classes[label] for label in labels} if task is not None and task.mode == "slice" else labels
    if missing := sorted({*config.keep_classes, *config.forget_classes} - known):
        shown = f"{', '.join(map(str, sorted(known)[:20]))}{' ...' if len(known) > 20 else ''}"
        raise DataError(f"no images of the classes {missing} score: keep and forget some of {shown}")
    if not config.keep_classes and known <= set(config.forget_classes):
        raise DataError(f"classes {sorted(known)} are all that have images, so none is left to be kept: forget fewer")


def interleaved(images: Images, seed: int) -> Images:
    """The same images in an order of which every beginning has all classes alike."""
    order = balanced_order(images.labels, seed)
    return replace(images, samples=[images.samples[position] for position in order], skipped=[], stand_ins=[])


def read_by(scores: Scores, images: Images) -> Images:
    """Those of the images that scored: the first ones, where scoring stopped early."""
    return replace(images, samples=images.used[: scores.samples], stand_ins=[])


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


def record_images(scores: Scores, images: Images, config: RunConfig, task: Task | None = None) -> Scores:
    """`scores` with a description of the images that were read for them, to be called after the pass.

    Paths are in the order in which images scored if every image's scores were kept, else sorted.
    """
    root = images.root if isinstance(images, DemoImages) else os.path.realpath(images.root)
    used = read_by(scores, images).samples
    paths = [os.path.relpath(s.path, images.root) if images.on_disk else str(s.path) for s in used]
    data = {
        "root": root,
        "images": len(images),
        "classes": sorted(images.class_names),
        "samples_per_class": config.samples_per_class,
        "seed": config.seed,
        "paths": paths if scores.sample_table is not None else sorted(paths),
    }
    if task is not None:
        data["task"] = task.describe()
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
