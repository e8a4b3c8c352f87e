"""Reference and evaluation images: folders of any size, or the embedded demo.

A folder holds one sub-folder per class (torchvision's ImageFolder layout). Which images are used depends on the seed
and the folder's names alone: not on the order in which the file system lists them, nor on which other classes are used.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from .decode import Preprocess, read_pixels
from .errors import DataError
from .labels import label_folders, match_classes
from .models import LoadedModel

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))


@dataclass(frozen=True)
class Sample:
    """A label and the image for it; `spares` stand in, in order, when the first cannot be read."""

    label: int
    path: Path
    spares: tuple[Path, ...] = ()


@dataclass
class Images(Dataset):
    """Labelled images, decoded when asked for: item i is (uint8 [C, H, W] or None, label, [(path, reason) ...]).

    `skipped` collects what could not be read, once per file, as a :class:`~pxp_fast.loader.Loader` goes through.
    """

    root: str
    samples: list[Sample]
    class_names: dict[int, str]
    preprocess: Preprocess
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor | None, int, list[tuple[str, str]]]:
        sample, failures = self.samples[index], []
        for path in (sample.path, *sample.spares):
            try:
                return self._pixels(path), sample.label, failures
            except Exception as error:  # decoders raise anything on damaged files; one file must not end the run
                failures.append((str(path), _reason(error, path)))
        return None, sample.label, failures

    def _pixels(self, path: Path) -> Tensor:
        return read_pixels(path, self.preprocess)

    @property
    def labels(self) -> list[int]:
        return [sample.label for sample in self.samples]

    def record(self, failures: Iterable[tuple[str, str]]) -> None:
        """Add failures to `skipped`, each file once."""
        known = {path for path, _ in self.skipped}
        self.skipped += [failure for failure in failures if failure[0] not in known]


@dataclass
class DemoImages(Images):
    """The embedded images: `Sample.path` is the position in `pixels`, uint8 [n, 1, 28, 28]."""

    pixels: Tensor | None = None

    def _pixels(self, path: Path) -> Tensor:
        return self.pixels[int(str(path))]


def image_folder(
    root: str | os.PathLike[str],
    *,
    model: LoadedModel,
    classes: Sequence[str | int] | None = None,
    samples_per_class: int | None = None,
    seed: int = 0,
    allow_fewer: bool = False,
) -> Images:
    """The images under `root`, one sub-folder per class, with the labels of `model`'s head.

    Parameters
    ----------
    classes : labels or folder names to use; None: all.
    samples_per_class : images chosen from each class, deterministically; None: all.
    allow_fewer : take what there is where a class has fewer images than asked, instead of raising.

    Raises
    ------
    DataError
        The folder is missing, unreadable or empty, labels cannot be told or exceed the head, an unknown class, or a
        class with too few images.
    """
    root = Path(root)
    folders = label_folders(root, _subfolders(root), model.num_classes)
    folders = match_classes(root, folders, classes)
    samples: list[Sample] = []
    for folder, label in sorted(folders.items(), key=lambda pair: pair[1]):
        paths = _images_below(root / folder)
        samples += choose(
            [Sample(label, path) for path in paths], f"{folder} of {root}", samples_per_class, seed, allow_fewer
        )
    return Images(str(root), samples, {label: folder for folder, label in folders.items()}, model.preprocess)


def demo_images(
    part: str,
    *,
    model: LoadedModel,
    classes: Sequence[str | int] | None = None,
    samples_per_class: int | None = None,
    seed: int = 0,
    allow_fewer: bool = False,
) -> DemoImages:
    """The embedded images; `part` is "reference" or "test". Options as in :func:`image_folder`."""
    from . import demo

    pixels, labels = demo.images(part)
    if model.num_classes != len(demo.CLASSES) or model.input_size != tuple(pixels.shape[1:]):
        raise DataError(
            f"the demo's images are {tuple(pixels.shape[1:])} in {len(demo.CLASSES)} classes; {model.name} takes "
            f"{model.input_size} in {model.num_classes}: use demo:vgg, demo:resnet or demo:vit, or a folder of images"
        )
    names = match_classes("the demo", {name: label for label, name in enumerate(demo.CLASSES)}, classes)
    samples: list[Sample] = []
    for name, label in sorted(names.items(), key=lambda pair: pair[1]):
        positions = (labels == label).nonzero().flatten().tolist()
        found = [Sample(label, Path(str(position))) for position in positions]
        samples += choose(found, f"{name} of the demo", samples_per_class, seed, allow_fewer)
    return DemoImages(
        f"demo ({part})", samples, {label: n for n, label in names.items()}, model.preprocess, pixels=pixels
    )


def choose(samples: list[Sample], where: str, count: int | None, seed: int, allow_fewer: bool = False) -> list[Sample]:
    """`count` of one class's samples, in an order that `seed` and `where` alone decide; the others become spares."""
    wanted = 1 if count is None else count
    if len(samples) < wanted and not (allow_fewer and samples):
        raise DataError(
            f"class {where} has {_images(len(samples))}, {wanted} asked for: add images, "
            "ask for fewer (--samples-per-class), leave the class out (--classes)"
            + ("" if not samples else ", or allow it (--allow-fewer)")
        )
    if count is None:
        return samples
    # The folder's name alone, not the path to it: the same dataset elsewhere gives the same choice.
    shuffled = random.Random(f"{seed}:{where.split(' of ')[0]}").sample(samples, len(samples))
    chosen, rest = shuffled[:count], shuffled[count:]
    return [
        replace(sample, spares=tuple(spare.path for spare in rest[position :: len(chosen)]))
        for position, sample in enumerate(chosen)
    ]


def split(
    images: Images,
    *,
    reference_per_class: int,
    evaluation_per_class: int | None = None,
    seed: int = 0,
    allow_fewer: bool = False,
) -> tuple[Images, Images]:
    """Two disjoint halves of `images`: those that score, and those that judge.

    Of each class, `reference_per_class` images score; `evaluation_per_class` of the others judge (None: all of them).

    Raises
    ------
    DataError
        A class has too few images for both, unless `allow_fewer`, which then leaves at least one image to score with.
    """
    by_label: dict[int, list[Sample]] = {}
    for sample in images.samples:
        by_label.setdefault(sample.label, []).append(sample)
    reference: list[Sample] = []
    evaluation: list[Sample] = []
    for label, samples in by_label.items():
        name = images.class_names[label]
        needed = reference_per_class + (evaluation_per_class or 1)
        if len(samples) < needed and not allow_fewer:
            raise DataError(
                f"class {name} of {images.root} has {_images(len(samples))}; "
                f"{reference_per_class} to score with and {evaluation_per_class or 'at least 1'} others to judge by are "
                "asked for: ask for fewer (--samples-per-class), give the judging images separately (--val DIR), or "
                "take what there is (--allow-fewer)"
            )
        order = random.Random(f"{seed}:{name}").sample(samples, len(samples))
        first = min(reference_per_class, max(1, len(samples) - 1))
        reference += order[:first]
        rest = order[first:]
        if evaluation_per_class is None:
            evaluation += rest
        else:
            evaluation += choose(rest, name, min(evaluation_per_class, len(rest)), seed, True) if rest else []
    return replace(images, samples=reference, skipped=[]), replace(images, samples=evaluation, skipped=[])


def shared_images(first: Images, second: Images) -> int:
    """How many images of `second` are also in `first`: the same file, by whatever path."""
    if isinstance(first, DemoImages) or isinstance(second, DemoImages):
        same = type(first) is type(second) and first.root == second.root
        paths = {sample.path for sample in first.samples}
        return sum(sample.path in paths for sample in second.samples) if same else 0
    paths = {os.path.realpath(sample.path) for sample in first.samples}
    return sum(os.path.realpath(sample.path) in paths for sample in second.samples)


def _subfolders(root: Path) -> list[str]:
    try:
        with os.scandir(root) as entries:
            listed = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(
            f"cannot read the image folder {root}: {error.strerror}; give a readable folder with one sub-folder for "
            "each class"
        ) from error
    folders = sorted(name for name, directory in listed if directory)
    if folders:
        return folders
    loose = sum(Path(name).suffix.lower() in SUFFIXES for name, _ in listed)
    found = f"{loose} images directly in it, but no sub-folders" if loose else "nothing"
    raise DataError(f"no classes in {root}: it holds {found}; put each class's images into a sub-folder of its own")


def _images_below(folder: Path) -> list[Path]:
    """All image files below `folder`, sorted; symbolic links are followed."""

    def refuse(error: OSError) -> None:
        raise DataError(
            f"cannot read the image folder {error.filename}: {error.strerror}; make it readable, or leave its class "
            "out with --classes"
        ) from error

    return sorted(
        Path(where) / name
        for where, _, names in os.walk(folder, onerror=refuse, followlinks=True)
        for name in names
        if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES
    )


def _images(count: int) -> str:
    return f"{count} image{'s' if count != 1 else ''}"


def _reason(error: Exception, path: Path) -> str:
    try:
        if os.path.getsize(path) == 0:
            return "the file is empty"
    except OSError as missing:
        return missing.strerror or str(missing)
    return f"{type(error).__name__}: {error}".replace(f" {str(path)!r}", "")
