"""Reference and evaluation images: folders of any size, or the embedded demo.

A folder holds one sub-folder per class (torchvision's ImageFolder layout). Which images are used depends on the seed
and the folder's names alone: not on the order in which the file system lists them, nor on which other classes are used.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor
from torch.utils.data import Dataset

from .decode import Preprocess, read_pixels
from .errors import DataError
from .labels import label_folders, match_classes
from .models import LoadedModel

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"))


@dataclass(frozen=True)
class Sample:
    """An image and its label."""

    label: int
    path: Path


Item = tuple[Tensor | None, int, tuple[str, str] | None]


@dataclass
class Images(Dataset):
    """Labelled images, decoded when asked for: item i is (uint8 [C, H, W] or None, label, reason for the None).

    `spares` are images that were not chosen, by label; a :class:`~pxp_fast.loader.Loader` takes one in place of each
    that cannot be read and adds it to `stand_ins`. `skipped` collects what could not be read and why, once per file.
    """

    root: str
    samples: list[Sample]
    class_names: dict[int, str]
    preprocess: Preprocess
    spares: dict[int, list[Sample]] = field(default_factory=dict)
    on_disk: ClassVar[bool] = True
    skipped: list[tuple[str, str]] = field(default_factory=list)
    stand_ins: list[Sample] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        return self.read(self.samples[index])

    def read(self, sample: Sample) -> Item:
        """Decode one image. Whatever goes wrong with the file becomes the reason; nothing is raised."""
        try:
            return self._pixels(sample.path), sample.label, None
        except Exception as error:  # decoders raise anything on damaged files; one file must not end the run
            return None, sample.label, (str(sample.path), _reason(error, sample.path))

    def _pixels(self, path: Path) -> Tensor:
        return read_pixels(path, self.preprocess)

    @property
    def labels(self) -> list[int]:
        return [sample.label for sample in self.samples]

    @property
    def used(self) -> list[Sample]:
        """The samples less those skipped, and the stand-ins: after a whole pass, the images that were read."""
        lost = {path for path, _ in self.skipped}
        return [sample for sample in self.samples if str(sample.path) not in lost] + self.stand_ins

    def skip(self, path: str, reason: str) -> None:
        """Note in `skipped` that a file cannot be read."""
        if (path, reason) not in self.skipped:
            self.skipped.append((path, reason))


@dataclass
class DemoImages(Images):
    """The embedded images: `Sample.path` is the position in `pixels`, uint8 [n, 1, 28, 28]."""

    pixels: Tensor | None = None
    on_disk: ClassVar[bool] = False

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
    leave_out: Set[str] = frozenset(),
) -> Images:
    """The images under `root`, one sub-folder per class, with the labels of `model`'s head.

    Parameters
    ----------
    classes : labels or folder names to use; None: all.
    samples_per_class : images chosen from each class, deterministically; None: all.
    allow_fewer : take what there is where a class has fewer images than asked, instead of raising.
    leave_out : real paths of images not to use, in classes that have others.

    Raises
    ------
    DataError
        The folder is missing, unreadable or empty, labels cannot be told or exceed the head, an unknown class, or a
        class with too few images.
    """
    root = Path(root)
    folders = match_classes(root, class_folders(root, model), classes)
    samples: list[Sample] = []
    spares: dict[int, list[Sample]] = {}
    for folder, label in sorted(folders.items(), key=lambda pair: pair[1]):
        found = [Sample(label, path) for path in _images_below(root / folder)]
        chosen, spares[label] = choose(found, folder, str(root), samples_per_class, seed, allow_fewer, leave_out)
        samples += chosen
    return Images(str(root), samples, {label: folder for folder, label in folders.items()}, model.preprocess, spares)


def class_folders(root: Path, model: LoadedModel) -> dict[str, int]:
    """The sub-folders of `root` and their labels. Raises DataError as :func:`image_folder` does."""
    return label_folders(root, _subfolders(root), model.num_classes)


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
        samples += choose(found, name, "the demo", samples_per_class, seed, allow_fewer)[0]
    return DemoImages(
        f"demo ({part})", samples, {label: n for n, label in names.items()}, model.preprocess, pixels=pixels
    )


def choose(
    samples: list[Sample],
    name: str,
    root: str,
    count: int | None,
    seed: int,
    allow_fewer: bool = False,
    leave_out: Set[str] = frozenset(),
) -> tuple[list[Sample], list[Sample]]:
    """`count` of class `name`'s samples, and the others, in an order that `seed` and `name` alone decide.

    Without a count all are chosen, in the order given. What is in `leave_out` is neither, unless nothing else is there.
    """
    # By the name alone, not the path to it: the same dataset elsewhere gives the same choice.
    order = samples if count is None else random.Random(f"{seed}:{name}").sample(samples, len(samples))
    # After shuffling: what is left keeps its order, so the same images judge as in a run that scores these.
    left = [sample for sample in order if os.path.realpath(sample.path) not in leave_out] if leave_out else order
    left = left or order
    wanted = 1 if count is None else count
    if len(left) < wanted and not (allow_fewer and left):
        others = f" besides the {len(order) - len(left)} that scored" if len(left) < len(order) else ""
        raise DataError(
            f"class {name} of {root} has {_images(len(left))}{others}, {wanted} asked for: add images, ask for fewer "
            "(--samples-per-class), leave the class out (--classes)" + (", or allow it (--allow-fewer)" if left else "")
        )
    return (left, []) if count is None else (left[:count], left[count:])


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
    spares: tuple[dict[int, list[Sample]], dict[int, list[Sample]]] = ({}, {})
    for label, samples in by_label.items():
        name = images.class_names[label]
        needed = reference_per_class + (evaluation_per_class or 1)
        if len(samples) < needed and not allow_fewer:
            raise DataError(
                f"class {name} of {images.root} has {_images(len(samples))}; "
                f"{reference_per_class} to score with and {evaluation_per_class or 'at least 1'} others to judge by "
                "are asked for: ask for fewer (--samples-per-class), give the judging images apart (--val DIR), or "
                "take what there is (--allow-fewer)"
            )
        order = random.Random(f"{seed}:{name}").sample(samples, len(samples))
        first = min(reference_per_class, max(1, len(samples) - 1))
        reference += order[:first]
        rest = order[first:]
        if evaluation_per_class is None:
            evaluation += rest
        else:
            evaluation += rest[:evaluation_per_class]
            left = rest[evaluation_per_class:]
            spares[0][label], spares[1][label] = left[::2], left[1::2]
    return (
        replace(images, samples=reference, spares=spares[0], skipped=[], stand_ins=[]),
        replace(images, samples=evaluation, spares=spares[1], skipped=[], stand_ins=[]),
    )


def shared_images(first: Images, second: Images) -> int:
    """How many images used of `second` are also used of `first`: the same file, by whatever path."""
    if isinstance(first, DemoImages) or isinstance(second, DemoImages):
        same = type(first) is type(second) and first.root == second.root
        paths = {sample.path for sample in first.used}
        return sum(sample.path in paths for sample in second.used) if same else 0
    return used_among(second, {os.path.realpath(sample.path) for sample in first.used})


def used_among(images: Images, paths: Set[str]) -> int:
    """How many of the images used are among `paths`, which are real paths."""
    return sum(os.path.realpath(sample.path) in paths for sample in images.used) if images.on_disk else 0


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
