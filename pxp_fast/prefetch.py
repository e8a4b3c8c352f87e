"""Batches brought to a GPU while it works on those before them."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]
Item = TypeVar("Item")
Started = TypeVar("Started")
Finished = TypeVar("Finished")


def prefetch(
    batches: Iterable[Batch],
    device: torch.device,
    dtype: torch.dtype | None = None,
    prepare: Callable[[Tensor], Tensor] | None = None,
    ahead: int = 1,
) -> Iterator[Batch]:
    """The batches in their order, on a GPU by the time they are asked for; on any other device just as they come.

    Copies go through pinned memory on a stream of their own, so that they pass while earlier batches are computed, and
    whoever takes a batch makes the stream that is current then wait for that batch alone. Tensors that are on a GPU
    already pass through; those in pinned memory are copied from where they are, so they must not change afterwards.

    Parameters
    ----------
    batches
        Of ``(images, labels)``. An error in fetching a batch is raised where that batch would have come. The iterator
        is closed at the end, however early that is.
    dtype
        Of the computation; floating images of a wider type are cast before they are copied.
    prepare
        Applied to the images when a batch is asked for, where they are then.
    ahead
        How many batches to fetch more than were asked for.
    """
    if torch.device(device).type == "cuda":
        upload = Upload(device, dtype)
        arrived = run_ahead(batches, upload.start, upload.finish, ahead)
    else:
        arrived = run_ahead(batches, lambda batch: batch, lambda batch: batch, 0)
    if prepare is None:
        return arrived
    return run_ahead(arrived, lambda batch: (prepare(batch[0]), batch[1]), lambda batch: batch, 0)


def run_ahead(
    items: Iterable[Item], start: Callable[[Item], Started], finish: Callable[[Started], Finished], ahead: int
) -> Iterator[Finished]:
    """``finish(start(item))`` of every item in order, `start` being called `ahead` items early.

    An error in taking or starting an item is raised in that item's place, after the items before it.
    """
    started: deque[Started] = deque()
    end: Exception | None = None
    with closing(iter(items)) as source:
        while True:
            while end is None and len(started) <= ahead:
                try:
                    started.append(start(next(source)))
                except Exception as error:  # StopIteration among them
                    end = error
            if not started:
                break
            yield finish(started.popleft())
    if not isinstance(end, StopIteration):
        raise end


@contextlib.contextmanager
def closing(iterator: Iterator[Item]) -> Iterator[Iterator[Item]]:
    """The iterator, closed in the end if it is one that can be: a generator that holds files or processes, say."""
    try:
        yield iterator
    finally:
        if hasattr(iterator, "close"):
            iterator.close()


class Upload:
    """Copies to a GPU that overlap with what is computed there."""

    def __init__(self, device: torch.device, dtype: torch.dtype | None) -> None:
        self.device = device
        self.dtype = dtype
        self.stream = torch.cuda.Stream(device)

    def start(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        """Enqueue the copies of a batch; the event comes after them."""
        images, labels = batch
        narrower = self.dtype is not None and self.dtype.itemsize < images.dtype.itemsize
        dtype = self.dtype if narrower and images.is_floating_point() else images.dtype
        with torch.cuda.stream(self.stream):
            copies = self._copy(images, dtype), self._copy(labels, labels.dtype)
        return copies, self.stream.record_event()

    def finish(self, started: tuple[Batch, torch.cuda.Event]) -> Batch:
        """The batch, for use on the current stream."""
        batch, arrived = started
        current = torch.cuda.current_stream(self.device)
        current.wait_event(arrived)
        for tensor in batch:
            tensor.record_stream(current)  # the copies' stream may not write there again before this one is done
        return batch

    def _copy(self, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        if tensor.device.type != "cpu":
            return tensor
        if tensor.dtype != dtype or not tensor.is_pinned():
            # Cast and pinned in one pass; the allocator keeps this memory until the copy from it is done.
            tensor = torch.empty(tensor.shape, dtype=dtype, pin_memory=True).copy_(tensor)
        return tensor.to(self.device, non_blocking=True)
