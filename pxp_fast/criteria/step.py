"""A scoring step: the relevance of a batch, added to the totals; run as it is, or recorded once and replayed.

A step is hundreds of small kernels, and launching them takes a GPU's host longer than the GPU takes to run them. A CUDA
graph launches them all at once. It repeats the very same work on the very same memory, so the step keeps buffers of a
fixed size for images and labels, and fills a smaller batch up with samples that count for nothing.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from .. import ops
from ..scores_samples import SampleTables
from .base import ImageCriterion

LEFT_OUT = -1
"""The label of a sample that is not to be added to the totals."""


class GraphWarning(UserWarning):
    """A scoring step cannot be recorded as a CUDA graph, so it runs without."""


class Recorder(Protocol):
    """A way to repeat a computation on the tensors it has read and written before."""

    def record(self, compute: Callable[[], object]) -> Callable[[], object] | None:
        """What repeats `compute`; None where that cannot be. May run it too, so running it must change no totals."""


class Again:
    """Repeats a computation by running it again, on any device."""

    def record(self, compute: Callable[[], object]) -> Callable[[], object]:
        return compute


class CudaGraphs:
    """Repeats a computation as a CUDA graph; where that fails it says so once, and records nothing from then on.

    The computation must neither wait for the GPU nor read from it. The graphs share their intermediate memory, as no
    two of them run at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.stream = _capture_stream(self.device.index)
        self.pool = torch.cuda.graph_pool_handle()
        self.failed = False

    def record(self, compute: Callable[[], object]) -> Callable[[], object] | None:
        if not self.failed:
            try:
                with torch.cuda.device(self.device):
                    return self._capture(compute)
            except RuntimeError as error:
                self.failed = True
                reason = str(error.__context__ or error).strip().split("\n")[0]
                warnings.warn(
                    f"no CUDA graph of the scoring step, so it runs with the same results but slower: {reason} "
                    "(graph=False, or --no-graph, does not try)",
                    GraphWarning,
                    stacklevel=2,
                )
        return None

    def _capture(self, compute: Callable[[], object]) -> Callable[[], object]:
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        # Once as it is: libraries choose algorithms and take their workspace then, which no graph may do. What would
        # wait for the GPU is found here, as PyTorch recovers badly from a capture that it ends.
        try:
            with torch.cuda.stream(self.stream), _refusing_to_wait():
                compute()
        finally:
            current.wait_stream(self.stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: threads of the caller, such as one that pins memory, may go on.
            with torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"):
                compute()
        except RuntimeError:
            torch.cuda.set_stream(current)
            # Where PyTorch (before 2.12) has not come to it, or has these private functions no more.
            with contextlib.suppress(RuntimeError, AttributeError):
                torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
                torch._C._cuda_releasePool(self.device.index, self.pool)
            graph.reset()
            _failed.append(graph)
            raise
        return graph.replay


_failed: list[torch.cuda.CUDAGraph] = []
"""Kept, as PyTorch (before 2.12) goes on asking graphs whose capture failed which memory is theirs."""


@contextlib.contextmanager
def _refusing_to_wait() -> Iterator[None]:
    """RuntimeError at whatever makes the host wait for a GPU, as far as PyTorch notices."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says that it does not notice everything
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@functools.cache
def _capture_stream(index: int) -> torch.cuda.Stream:
    """One per GPU: the matrix library keeps a workspace for every stream that it has ever seen."""
    return torch.cuda.Stream(index)


class Step:
    """Adds the relevance of batch after batch to totals that stay on the device.

    Parameters
    ----------
    criterion
        Of whose units there are totals.
    initial
        Relevance at the label's logit, see :meth:`pxp_fast.lrp.Program.run`.
    per_class
        Keep the totals of every class as well.
    tables
        Takes the table of every batch as well; None: tables are dropped once they are added up.
    recorder
        What repeats a step. A batch size is recorded when it comes for the second time; from then on batches of this
        size or less are computed at this size. None: every batch is computed as it is.
    sizes
        How many batch sizes to record at most; others are computed as they are.

    Attributes
    ----------
    totals
        ``[4, U]`` float64, of all samples; rows as in :func:`pxp_fast.ops.accumulate_`.
    class_totals
        ``[classes, 4, U]`` float64, of each class's samples; None unless asked for.
    samples
        How many there have been.
    """

    def __init__(
        self,
        criterion: ImageCriterion,
        initial: str = "one",
        *,
        per_class: bool = False,
        tables: SampleTables | None = None,
        recorder: Recorder | None = None,
        sizes: int = 3,
    ) -> None:
        self.criterion = criterion
        self.initial = initial
        self.tables = tables
        self.recorder = recorder
        self.sizes = sizes
        self.samples = 0
        units = sum(group.count for group in criterion.units)
        zeros = functools.partial(torch.zeros, dtype=torch.float64, device=criterion.program.device)
        with torch.inference_mode(False):
            self.totals = zeros(4, units)
            self.class_totals = zeros(criterion.num_classes, 4, units) if per_class else None
        self._labels: list[Tensor] = []
        self._met: set[int] = set()
        self._recorded: dict[int, _Recorded] = {}

    def __call__(self, images: Tensor, labels: Tensor) -> None:
        """Add a batch that :meth:`pxp_fast.lrp.Program.check` has passed; does not wait for a GPU.

        Relevance that is not finite is an error here on a CPU, where it costs nothing to look, unless the step is
        recorded; else it shows in the totals.
        """
        if len(images) == 0:
            return
        device = self.criterion.program.device
        with torch.inference_mode(False), torch.no_grad():
            images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            recorded = self._recording(images, labels)
            if recorded is not None:
                table = recorded.run(images, labels)
            else:
                table = self.add(images, labels, labels)
                if table.device.type == "cpu":
                    self.criterion.check_finite(table)
            if self.tables is not None:
                self.tables.add(table)
        if self.class_totals is not None or self.tables is not None:
            self._labels.append(labels.clone())
        self.samples += len(images)

    def add(self, images: Tensor, targets: Tensor, counted: Tensor, keep: Tensor | None = None) -> Tensor:
        """Add to the totals the samples that `counted`, their labels, does not leave out; returns their table.

        This is what is recorded: the work of a device, of which the host sees nothing. Memory that it takes for
        itself may serve something else afterwards, so a table that is to last is copied into `keep`.
        """
        table = self.criterion.program.compute(images, targets, self.initial)
        ops.accumulate_(self.totals, table, counted)
        if self.class_totals is not None:
            ops.accumulate_(self.class_totals, table, counted)
        if keep is not None:
            keep.copy_(table)
        return table

    def class_samples(self) -> Tensor:
        """How many samples of every class there have been, ``[classes]`` int64 on the CPU."""
        return torch.bincount(self.labels(), minlength=self.criterion.num_classes)

    def labels(self) -> Tensor:
        """The label of every sample, ``[N]`` int64 on the CPU; known where classes or samples are kept apart."""
        return torch.cat(self._labels).cpu() if self._labels else torch.empty(0, dtype=torch.int64)

    def _recording(self, images: Tensor, labels: Tensor) -> _Recorded | None:
        """The smallest that holds the batch, if need be a new one; None: compute the batch as it is."""
        size = len(images)
        large_enough = [other for other in self._recorded if other >= size]
        if large_enough:
            return self._recorded[min(large_enough)]
        if self.recorder is None or len(self._recorded) == self.sizes:
            return None
        if size not in self._met:  # one that never comes again is not worth recording
            self._met.add(size)
            return None
        recorded = _Recorded(self, images, labels)
        if recorded.repeat is None:
            self.recorder = None
            return None
        self._recorded[size] = recorded
        return recorded


class _Recorded:
    """A step on buffers of its own, of one batch size."""

    def __init__(self, step: Step, images: Tensor, labels: Tensor) -> None:
        self.images = torch.empty(images.shape, dtype=step.criterion.program.dtype, device=images.device).copy_(images)
        self.targets = labels.clone()
        self.counted = torch.full_like(labels, LEFT_OUT)  # so that recording adds nothing
        self.table = None
        if step.tables is not None:
            self.table = torch.empty(
                2, len(images), step.totals.shape[1], dtype=step.tables.dtype, device=step.totals.device
            )
        compute = functools.partial(step.add, self.images, self.targets, self.counted, keep=self.table)
        self.repeat = step.recorder.record(compute)

    def run(self, images: Tensor, labels: Tensor) -> Tensor | None:
        """Add a batch of this size or less; what earlier ones left behind fills it up, and is left out.

        Returns its table where the step keeps tables; the next batch overwrites it.
        """
        size = len(images)
        for buffer, values in ((self.images, images), (self.targets, labels), (self.counted, labels)):
            buffer[:size].copy_(values)
        self.counted[size:].fill_(LEFT_OUT)
        self.repeat()
        return None if self.table is None else self.table[:, :size]
