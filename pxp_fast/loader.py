"""Batches of images, decoded in this process or in others, and kept when they fit into memory.

A sweep judges the same images a hundred times. Decoding them once and keeping the pixels as bytes makes every pass
after the first cost what the network costs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .data import Images
from .errors import DataError

CACHE_BYTES = 4 * 2**30
_WORKERS_FROM = 512


class Loader:
    """Iterate over (images float32 [N, C, H, W], labels int64 [N]) in the dataset's order, batch by batch.

    Images that cannot be read are left out and noted in ``dataset.skipped``.

    Parameters
    ----------
    batch_size : images per batch; a batch is smaller where images were unreadable, and at the end.
    workers : processes that decode; 0: this one; None: as many as pay off for this number of images.
    cache_bytes : keep the decoded pixels (one byte each) for later passes if all of them fit into this.
    """

    def __init__(
        self, dataset: Images, batch_size: int = 32, workers: int | None = None, cache_bytes: int = CACHE_BYTES
    ) -> None:
        if batch_size < 1:
            raise DataError(f"batch size is {batch_size}; it must be at least 1")
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if len(dataset) >= _WORKERS_FROM else 0
        self.dataset = dataset
        self.batch_size = batch_size
        self.workers = workers
        pixels = torch.Size(dataset.preprocess.input_size).numel()
        self._keep = len(dataset) * pixels <= cache_bytes
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        normalize = self.dataset.preprocess.normalize
        if self._kept is not None:
            for pixels, labels in self._kept:
                yield normalize(pixels), labels
            return
        kept: list[tuple[Tensor, Tensor]] = []
        read = 0
        for pixels, labels in self._decoded():
            read += len(labels)
            if self._keep:
                kept.append((pixels, labels))
            yield normalize(pixels), labels
        if not read:
            raise DataError(self._nothing())
        if self._keep:
            self._kept = kept

    def _decoded(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = DataLoader(
            self.dataset, batch_size=self.batch_size, shuffle=False, num_workers=self.workers, collate_fn=_collate
        )
        for pixels, labels, failures in batches:
            self.dataset.record(failures)
            if pixels is not None:
                yield pixels, labels

    def _nothing(self) -> str:
        if not len(self.dataset):
            return f"there are no images to read from {self.dataset.root}"
        path, reason = self.dataset.skipped[0]
        return (
            f"none of the {len(self.dataset)} images chosen from {self.dataset.root} can be read; the first is {path}: "
            f"{reason}. Check the folder and the files' format"
        )


def _collate(
    items: list[tuple[Tensor | None, int, list[tuple[str, str]]]],
) -> tuple[Tensor | None, Tensor | None, list[tuple[str, str]]]:
    failures = [failure for _, _, found in items for failure in found]
    readable = [(pixels, label) for pixels, label, _ in items if pixels is not None]
    if not readable:
        return None, None, failures
    pixels, labels = zip(*readable, strict=True)
    return torch.stack(pixels), torch.tensor(labels, dtype=torch.int64), failures
