"""Which position of the classifier's head a folder's name stands for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import DataError

_WORDNET = re.compile(r"n\d{8}$")


def label_folders(root: Path, folders: Sequence[str], num_classes: int) -> dict[str, int]:
    """The label of each class folder, by the first of these that applies.

    1. ``labels.json`` in `root`: ``{"folder": label, ...}``.
    2. All names are integers: they are the labels.
    3. As many folders as the head has classes: sorted order.
    4. All names are WordNet ids (``n01440764``) and the head has 1,000 classes: ImageNet's order, which timm knows.

    Raises
    ------
    DataError
        None applies, two folders share a label, or a label lies outside the head.
    """
    path = root / "labels.json"
    if path.exists():
        labels = _from_file(path, folders)
    elif all(re.fullmatch(r"\d+", folder) for folder in folders):
        labels = {folder: int(folder) for folder in folders}
    elif num_classes == len(folders):
        labels = {folder: label for label, folder in enumerate(sorted(folders))}
    elif num_classes == 1000 and all(_WORDNET.match(folder) for folder in folders):
        labels = _from_wordnet(root, folders)
    else:
        raise DataError(
            f"cannot tell the labels of {root}: {len(folders)} folders ({_some(folders)}), and the model has "
            f"{num_classes} classes. Name the folders by label (0 to {num_classes - 1}), write {path} as "
            '{"folder": label, ...}, or give one folder for every class of the model'
        )
    outside = [f"{folder} -> {label}" for folder, label in labels.items() if not 0 <= label < num_classes]
    if outside:
        raise DataError(
            f"labels of {root} lie outside the model's {num_classes} classes (0 to {num_classes - 1}): "
            f'{_some(outside)}. Labels count from 0; rename the folders, or write {path} as {{"folder": label, ...}}'
        )
    taken: dict[int, str] = {}
    for folder, label in labels.items():
        if label in taken:
            raise DataError(
                f"folders {taken[label]} and {folder} of {root} both mean label {label}; merge or rename them"
            )
        taken[label] = folder
    return labels


def match_classes(root: Path | str, labels: dict[str, int], classes: Sequence[str | int] | None) -> dict[str, int]:
    """`labels` restricted to `classes`, each a folder's name or a label. Raises DataError on an unknown one."""
    if not classes:
        return labels
    by_label = {label: folder for folder, label in labels.items()}
    chosen: dict[str, int] = {}
    for wanted in (str(entry).strip() for entry in classes):
        folder = wanted if wanted in labels else by_label.get(int(wanted) if wanted.isdigit() else -1)
        if folder is None:
            known = [f"{label} ({name})" if str(label) != name else name for name, label in labels.items()]
            raise DataError(
                f"class {wanted!r} is not in {root}; --classes takes labels or folder names: {_some(known)}"
            )
        chosen[folder] = labels[folder]
    return chosen


def _from_file(path: Path, folders: Sequence[str]) -> dict[str, int]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f'cannot read {path}: {error}; it must hold {{"folder": label, ...}}') from error
    if not isinstance(content, dict) or not all(type(label) is int for label in content.values()):
        raise DataError(f'{path} must hold one object {{"folder": label, ...}} whose labels are whole numbers')
    if absent := [folder for folder in folders if folder not in content]:
        raise DataError(f"{path} gives no label to {len(absent)} of {len(folders)} folders: {_some(absent)}; add them")
    return {folder: content[folder] for folder in folders}


def _from_wordnet(root: Path, folders: Sequence[str]) -> dict[str, int]:
    try:
        from timm.data import ImageNetInfo
    except ImportError as error:
        raise DataError(
            f"the folders of {root} are WordNet ids, whose ImageNet labels timm knows; install it with: "
            f"pip install 'pxp_fast[models]', or write {root / 'labels.json'}"
        ) from error
    order = {synset: label for label, synset in enumerate(ImageNetInfo().label_names())}
    if unknown := [folder for folder in folders if folder not in order]:
        raise DataError(
            f"{len(unknown)} folders of {root} are no classes of ImageNet-1k: {_some(unknown)}; remove them, or write "
            f"{root / 'labels.json'}"
        )
    return {folder: order[folder] for folder in folders}


def _some(names: Iterable[str], limit: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (f", ... ({len(names)})" if len(names) > limit else "")
