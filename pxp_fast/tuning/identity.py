"""What a search is of: by its network and images a folder is told from another search's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..data import shared_images
from ..errors import DataError
from ..loader import Loader


def refuse_overlap(parts: dict[str, Iterable[tuple[Tensor, Tensor]] | None]) -> None:
    """Raise DataError where an image is in two of the parts, as far as loaders tell which images they load."""
    known = [(name, part.dataset) for name, part in parts.items() if isinstance(part, Loader)]
    for position, (name, images) in enumerate(known):
        for other, others in known[position + 1 :]:
            if count := shared_images(images, others):
                raise DataError(
                    f"{count} of the images that {other} are also among those that {name}: a search would favour what "
                    "suits these; give other images"
                )


def digest(content: object) -> str:
    """Of whatever JSON can express."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_weights(model: nn.Module) -> str:
    """Of a model's parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]


def digest_of_images(batches: Iterable[tuple[Tensor, Tensor]] | None) -> str:
    """Of the names and labels of a loader's images; of the first batch and the length of anything else."""
    found = hashlib.sha256()
    if isinstance(batches, Loader):
        images = batches.dataset
        found.update(str(images.preprocess).encode())
        for sample in images.samples:
            name = os.path.relpath(sample.path, images.root) if images.on_disk else f"{images.root} {sample.path}"
            found.update(f"{sample.label} {name}\n".encode())
    elif batches is not None:
        if iter(batches) is batches:
            raise DataError("the images come from an iterator that can be used but once; pass a loader or a list")
        first = next(iter(batches), ())
        found.update(str(len(batches) if hasattr(batches, "__len__") else "").encode())
        for tensor in first:
            found.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
