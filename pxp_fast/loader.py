"""Batches of images, decoded in this process or in others, and kept when they fit into memory.

A sweep judges the same images a hundred times. Decoding them once and keeping the pixels as bytes makes every pass
after the first cost what the network costs.
"""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .data import Images, Item
from .errors import DataError

CACHE_BYTES = 4 * 2**30
_WORKERS_FROM = 512
_STOPS = (signal.SIGINT, signal.SIGTERM)


class Loader:
    """Iterate over (images float32 [N, C, H, W], labels int64 [N]) in the dataset's order, batch by batch.

    Images that cannot be read are noted in ``dataset.skipped``; spares of their class, if any, follow at the end and
    are noted in ``dataset.stand_ins``.

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
            workers = min(8, os.cpu_count() or 1) if dataset.on_disk and len(dataset) >= _WORKERS_FROM else 0
        self.dataset = dataset
        self.batch_size = batch_size
        self.workers = workers
        pixels = torch.Size(dataset.preprocess.input_size).numel()
        self._keep = len(dataset) * pixels <= cache_bytes
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, labels in self.pixels():
            yield self.dataset.preprocess.normalize(pixels), labels

    def normalizer(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """What makes of the pixels on `device` the images that iterating yields."""
        return self.dataset.preprocess.normalizer(device)

    def pixels(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches before they are normalised, uint8: a quarter of the bytes to copy to a GPU."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[Tensor, Tensor]] = []
        read = 0
        for pixels, labels in self._decoded():
            read += len(labels)
            if self._keep:
                kept.append((pixels, labels))
            yield pixels, labels
        if not read:
            raise DataError(self._nothing())
        if self._keep:
            self._kept = kept

    def _decoded(self) -> Iterator[tuple[Tensor, Tensor]]:
        batches = DataLoader(
            self.dataset,
            batch_size=self.batch_size,
            shuffle=False,
            num_workers=self.workers,
            collate_fn=_collate,
            worker_init_fn=_leave_signals_to_the_parent,
        )
        lost: list[int] = []
        with _stops_held():
            decoded = iter(batches)
        for pixels, labels, failures in decoded:
            for label, path, reason in failures:
                self.dataset.skip(path, reason)
                lost.append(label)
            if pixels is not None:
                yield pixels, labels
        stand_ins = list(self._stand_ins(lost))
        for start in range(0, len(stand_ins), self.batch_size):
            pixels, labels, _ = _collate(stand_ins[start : start + self.batch_size])
            yield pixels, labels

    def _stand_ins(self, lost: list[int]) -> Iterator[Item]:
        """A readable spare, if there is one, for every image that was lost."""
        spares = {label: iter(found) for label, found in self.dataset.spares.items()}
        for label in lost:
            for sample in spares.get(label, ()):
                item = self.dataset.read(sample)
                if item[0] is not None:
                    if sample not in self.dataset.stand_ins:
                        self.dataset.stand_ins.append(sample)
                    yield item
                    break
                self.dataset.skip(*item[2])

    def _nothing(self) -> str:
        if not len(self.dataset):
            return f"there are no images to read from {self.dataset.root}"
        path, reason = self.dataset.skipped[0]
        return (
            f"none of the {len(self.dataset)} images chosen from {self.dataset.root} can be read; the first is {path}: "
            f"{reason}. Check the folder and the files' format"
        )


class ShuffledLoader(Loader):
    """A loader for training: every epoch in another order, each image mirrored or not, as the seed and the epoch say.

    Nothing is kept between epochs. A batch of one image, which a batch norm cannot be trained with, is left out.

    Parameters
    ----------
    seed : of the orders and of what is mirrored.
    flip : mirror half of the images left to right.
    """

    def __init__(
        self, dataset: Images, batch_size: int = 32, workers: int | None = None, seed: int = 0, flip: bool = True
    ) -> None:
        super().__init__(dataset, batch_size, workers, cache_bytes=0)
        self.seed = seed
        self.flip = flip
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next."""
        self._epoch = epoch

    def pixels(self) -> Iterator[tuple[Tensor, Tensor]]:
        chance = torch.Generator().manual_seed(self.seed * 1_000_003 + self._epoch)
        order = torch.randperm(len(self.dataset), generator=chance).tolist()
        samples = [self.dataset.samples[position] for position in order]
        epoch = Loader(dataclasses.replace(self.dataset, samples=samples), self.batch_size, self.workers, cache_bytes=0)
        for pixels, labels in epoch.pixels():
            if self.flip:
                mirrored = torch.rand(len(pixels), generator=chance) < 0.5
                pixels = torch.where(mirrored.view(-1, 1, 1, 1), pixels.flip(-1), pixels)
            if len(labels) > 1 or self.batch_size == 1:
                yield pixels, labels


def unprepared(
    loader: Iterable[tuple[Tensor, Tensor]],
) -> tuple[Iterable[tuple[Tensor, Tensor]], Callable[[torch.device], Callable[[Tensor], Tensor]]]:
    """The batches of `loader` as bytes where it has them, and what gives, for a device, what makes images of them."""
    if isinstance(loader, Loader):
        return loader.pixels(), loader.normalizer
    return loader, lambda device: lambda images: images


@contextmanager
def _stops_held() -> Iterator[None]:
    """Keep Ctrl-C and a stop waiting while processes are made: one interrupted as it begins might never end."""
    if threading.current_thread() is not threading.main_thread():  # they only ever interrupt the main thread
        yield
        return
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for number in arrived[:1]:
            signal.raise_signal(number)


def _leave_signals_to_the_parent(worker: int) -> None:
    """In a decoding process: the parent, which Ctrl-C reaches too, ends it by SIGTERM."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _collate(items: list[Item]) -> tuple[Tensor | None, Tensor | None, list[tuple[int, str, str]]]:
    """Pixels and labels of the readable items, and (label, path, reason) of the others."""
    failures = [(label, *failure) for _, label, failure in items if failure is not None]
    readable = [(pixels, label) for pixels, label, _ in items if pixels is not None]
    if not readable:
        return None, None, failures
    pixels, labels = zip(*readable, strict=True)
    return torch.stack(pixels), torch.tensor(labels, dtype=torch.int64), failures
