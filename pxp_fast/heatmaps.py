"""Where a network looks, before and after the cut."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .agreement import agreement
from .criteria import attribute
from .data import Images
from .errors import OutputError
from .files import atomic_write
from .masks import masked
from .models import LoadedModel
from .plan import Plan
from .records import AgreementRecord
from .results import HeatMapRecord

COMPARED = 32


@dataclass(frozen=True)
class HeatMaps:
    """Images and their input relevance.

    Parameters
    ----------
    images : uint8 [n, C, H, W].
    before, after : float16 [n, H, W], relevance summed over the channels, each map divided by its largest magnitude.
    records : what belongs to each image.
    agreement : how alike the maps before and after are, of these images and more; not in the file.
    """

    images: Tensor
    before: Tensor
    after: Tensor
    records: tuple[HeatMapRecord, ...]
    agreement: tuple[AgreementRecord, ...] = ()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tensors, atomically; the records belong to results.json."""
        from safetensors.torch import save

        content = save({"images": self.images, "before": self.before, "after": self.after})
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], records: tuple[HeatMapRecord, ...]) -> HeatMaps:
        """Read the tensors. Raises OutputError when the file is missing, damaged or of another run."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            content = load(Path(path).read_bytes())
            tensors = [content[name] for name in ("images", "before", "after")]
        except (OSError, SafetensorError, KeyError) as error:
            raise OutputError(f"cannot read the heat maps {path}: {error}; run again") from error
        if any(len(tensor) != len(records) for tensor in tensors):
            raise OutputError(
                f"{path} holds {len(tensors[0])} heat maps, results.json describes {len(records)}; run again"
            )
        return cls(*tensors, records)


def explain(
    loaded: LoadedModel,
    pruned: Plan | nn.Module,
    images: Images,
    count: int,
    composite: str,
    compared: int = COMPARED,
    batch_size: int = COMPARED,
) -> HeatMaps:
    """Explain images, of as many classes as there are, by the network whole and pruned.

    Parameters
    ----------
    pruned
        The smaller network, or the plan whose masks prune `loaded`'s.
    count
        Images whose maps are kept, to look at.
    compared
        Images whose maps are compared, more than are kept; unless none are.
    """
    pixels, labels = _pick(images, max(count, compared) if count else 0)
    _, height, width = loaded.input_size
    if not len(labels):
        nothing = torch.empty(0, height, width, dtype=torch.float16)
        return HeatMaps(torch.empty(0, *loaded.input_size, dtype=torch.uint8), nothing, nothing, ())
    parameter = next(loaded.model.parameters())
    inputs = images.preprocess.normalize(pixels).to(parameter).split(batch_size)
    targets = labels.to(parameter.device).split(batch_size)
    whole = _relevance(loaded.model, inputs, targets, composite)
    if isinstance(pruned, Plan):
        with masked(loaded.model, pruned):
            cut = _relevance(loaded.model, inputs, targets, composite)
    else:
        cut = _relevance(pruned, inputs, targets, composite)
    maps, answers = zip(whole, cut, strict=True)
    found = agreement(*maps)
    similarity = next(record.values for record in found if record.measure == "cosine")
    records = tuple(
        HeatMapRecord(
            name=_class_name(images, int(label)),
            before=_named(images, answers[0][row]),
            after=_named(images, answers[1][row]),
            similarity=similarity[row],
        )
        for row, label in enumerate(labels[:count])
    )
    return HeatMaps(pixels[:count], *(_scaled(one[:count]) for one in maps), records, found)


def _relevance(
    model: nn.Module, inputs: Sequence[Tensor], targets: Sequence[Tensor], composite: str
) -> tuple[Tensor, list[tuple[int, float]]]:
    """Relevance float32 [n, H, W], summed over channels, and each image's (predicted class, probability)."""
    maps, answers = [], []
    for images, labels in zip(inputs, targets, strict=True):
        maps.append(attribute(model, images, labels, composite=composite).detach().float().sum(1).cpu())
        with torch.inference_mode():
            probability, predicted = model(images).float().softmax(1).max(1)
        answers += zip(predicted.tolist(), probability.tolist(), strict=True)
    return torch.cat(maps), answers


def _pick(images: Images, count: int) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [n, C, H, W] and labels of up to `count` readable images, classes evenly spaced, then repeated."""
    by_label: dict[int, list[int]] = {}
    for index, label in enumerate(images.labels):
        by_label.setdefault(label, []).append(index)
    labels = list(by_label)
    step = max(1, len(labels) / max(count, 1))
    spread = [labels[int(position * step)] for position in range(min(count, len(labels)))]
    deepest = max(map(len, by_label.values()), default=0)
    order = [by_label[label][row] for row in range(deepest) for label in spread if row < len(by_label[label])]
    chosen: list[tuple[Tensor, int]] = []
    for index in order:
        if len(chosen) == count:
            break
        pixels, label, failure = images[index]
        if failure is not None:
            images.skip(*failure)
        else:
            chosen.append((pixels, label))
    if not chosen:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    pixels, chosen_labels = zip(*chosen, strict=True)
    return torch.stack(pixels), torch.tensor(chosen_labels)


def _scaled(maps: Tensor) -> Tensor:
    return (maps / maps.abs().amax((1, 2), keepdim=True).clamp_min(1e-30)).half()


def _named(images: Images, answer: tuple[int, float]) -> tuple[str, float]:
    label, probability = answer
    return _class_name(images, label), round(probability, 4)


def _class_name(images: Images, label: int) -> str:
    """The folder's name, or the number of a class that has no folder."""
    return images.class_names.get(label, str(label))
