"""What a search is of: by its network and images a folder is told from another search's."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from ..data import shared_images
from ..errors import DataError
from ..loader import Loader
from ..lrp.graph import Captured, packet

Batches = Iterable[tuple[Tensor, Tensor]]
_DO = {"scoring": "score", "tuning": "judge", "held-out": "are held out"}


def refuse_overlap(parts: Mapping[str, Batches], digests: Mapping[str, str]) -> None:
    """Raise DataError where an image is in two of the parts, whose :func:`digest_of_images` are given too.

    Loaders tell which images they load, and lists are compared image by image. Of anything else only the digests are.
    """
    for (name, first), (other, second) in itertools.combinations(parts.items(), 2):
        count: int | str
        if isinstance(first, Loader) and isinstance(second, Loader):
            count = shared_images(first.dataset, second.dataset)
        elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
            known = set(_images(first))
            count = sum(image in known for image in _images(second))
        else:
            count = "some" if first is second or digests[name] == digests[other] else 0
        if count:
            raise DataError(
                f"{count} of the images that {_DO[other]} are also among those that {_DO[name]}: a search would favour "
                "what suits these; give other images"
            )


def _images(batches: Sequence[tuple[Tensor, Tensor]]) -> Iterator[bytes]:
    """A hash of each image."""
    for images, _ in batches:
        for image in images:
            yield hashlib.sha256(_bytes(image)).digest()


def digest(content: object) -> str:
    """Of whatever JSON can express."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def digest_of_weights(model: nn.Module) -> str:
    """Of a model's parameters and buffers."""
    found = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(_bytes(tensor))
    return found.hexdigest()[:16]


def digest_of_graph(captured: Captured) -> str:
    """Of what a network computes, whatever its weights are: its operators, in order, and what each of them reads."""
    found = hashlib.sha256()
    number = {node: position for position, node in enumerate(captured.graph.nodes)}
    for node in captured.graph.nodes:
        given = fx.node.map_arg((node.args, node.kwargs), lambda read: f"%{number[read]}")
        name = captured.parameters.get(node) or captured.buffers.get(node) or ""
        found.update(f"{node.op} {packet(node)} {name} {given}\n".encode())
    return found.hexdigest()[:16]


def digest_of_images(batches: Batches | None) -> str:
    """Of the names and labels of a loader's images; of every batch of a list; of anything else of the first batch and
    the length.
    """
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
        found.update(str(len(batches) if hasattr(batches, "__len__") else "").encode())
        read = batches if isinstance(batches, list | tuple) else itertools.islice(batches, 1)
        for tensor in itertools.chain.from_iterable(read):
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(_bytes(tensor))
    return found.hexdigest()[:16]


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
