"""Where a network looks, before and after the cut."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .criteria import attribute
from .data import Images
from .errors import OutputError
from .files import atomic_write
from .masks import masked
from .models import LoadedModel
from .plan import Plan
from .results import HeatMapRecord


@dataclass(frozen=True)
class HeatMaps:
    """Images and their input relevance.

    Parameters
    ----------
    images : uint8 [n, C, H, W].
    before, after : float16 [n, H, W], relevance summed over the channels, each map divided by its largest magnitude.
    records : what belongs to each image.
    """

    images: Tensor
    before: Tensor
    after: Tensor
    records: tuple[HeatMapRecord, ...]

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


def explain(loaded: LoadedModel, plan: Plan, images: Images, count: int, composite: str) -> HeatMaps:
    """Explain `count` of `images`, of as many classes as there are, by the network whole and pruned."""
    pixels, labels = _pick(images, count)
    _, height, width = loaded.input_size
    if not len(labels):
        nothing = torch.empty(0, height, width, dtype=torch.float16)
        return HeatMaps(torch.empty(0, *loaded.input_size, dtype=torch.uint8), nothing, nothing, ())
    parameter = next(loaded.model.parameters())
    inputs = images.preprocess.normalize(pixels).to(parameter)
    targets = labels.to(parameter.device)
    maps, answers = [], []
    for pruned in (False, True):
        if pruned:
            with masked(loaded.model, plan):
                relevance, answer = _relevance(loaded, inputs, targets, composite)
        else:
            relevance, answer = _relevance(loaded, inputs, targets, composite)
        maps.append(relevance)
        answers.append(answer)
    similarity = torch.nn.functional.cosine_similarity(maps[0].flatten(1), maps[1].flatten(1), dim=1)
    records = tuple(
        HeatMapRecord(
            name=_class_name(images, int(label)),
            before=_named(images, answers[0][row]),
            after=_named(images, answers[1][row]),
            similarity=round(float(similarity[row]), 4),
        )
        for row, label in enumerate(labels)
    )
    return HeatMaps(pixels, _scaled(maps[0]), _scaled(maps[1]), records)


def _relevance(
    loaded: LoadedModel, inputs: Tensor, targets: Tensor, composite: str
) -> tuple[Tensor, list[tuple[int, float]]]:
    """Relevance float32 [n, H, W], summed over channels, and each image's (predicted class, probability)."""
    relevance = attribute(loaded.model, inputs, targets, composite=composite)
    with torch.inference_mode():
        probability, predicted = loaded.model(inputs).float().softmax(1).max(1)
    answers = list(zip(predicted.tolist(), probability.tolist(), strict=True))
    return relevance.detach().float().sum(1).cpu(), answers


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
