"""Scoring: one pass over a reference set, from which the relevance of every unit is left."""

from __future__ import annotations

import itertools
import json
import platform
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .criteria import CudaGraphs, Relevance, Step
from .errors import DataError
from .loader import unprepared
from .lrp import Composite, Program
from .prefetch import closing, prefetch
from .progress import Track
from .scores import Scores, ScoresHeader
from .version import __version__

_EMPTY = "the reference set is empty, so there is nothing to score; check the folder and classes"


def score(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    composite: str | Composite = "epsilon",
    units: Iterable[str] | None = None,
    initial: str = "one",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    exact: bool = False,
    per_class: bool = False,
    graph: bool = True,
    model_name: str | None = None,
    data: dict | None = None,
    progress: Track | None = None,
) -> Scores:
    """Score every unit of a classifier by its relevance over a reference set, in one pass.

    Sums stay on the device in float64 and come to the host once, at the end. A GPU is kept busy: batches are brought to
    it ahead of their turn, and from the second batch of a size on the work is a recorded CUDA graph.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; afterwards exactly as before.
    loader
        Yields ``(images [N, C, H, W], labels [N] int64)``; batches may differ in size. Relevance enters at the label.
    composite
        The rules: a :class:`pxp_fast.lrp.Composite`, or the name of a preset, or the path of a composite's file.
    units
        Kinds to score, of ``"filter"``, ``"neuron"``, ``"head"``; None: all that the model has.
    initial
        Relevance at the label's logit: ``"one"``, or ``"logit"`` for its value.
    device, dtype
        Of the computation; default: the model's. bfloat16 is the fast choice; sums stay in float32.
    exact
        In float32, take slower kernels whose rounding errors are two to six times smaller; see
        :class:`pxp_fast.lrp.Program`.
    per_class
        Keep the totals of every class as well, for :meth:`Scores.for_classes`: 32 bytes per class and unit.
    graph
        Record the work on a GPU, so that launching it costs nothing. What cannot be recorded runs as it is, and a
        :class:`pxp_fast.criteria.GraphWarning` says why.
    model_name
        Written into the scores, and checked when they are loaded; default: what the model says of itself.
    data
        A JSON-able description of the reference set, for the record.
    progress
        ``track(iterable, description, total)``, yielding the iterable's items; None: silent.

    Raises
    ------
    CaptureError, ModelError, DataError, NumericalError
        See the messages.
    """
    total = len(loader) if hasattr(loader, "__len__") else None
    raw, preparing = unprepared(loader)
    with closing(iter(raw)) as source:
        first = next(source, None)
        if first is None:
            raise DataError(_EMPTY)
        kinds = tuple(units) if units is not None else None
        options = {"composite": composite, "dtype": dtype, "device": device, "exact": exact}
        criterion = Relevance(model, preparing(first[0].device)(first[0]), kinds=kinds, **options)
        program = criterion.program
        recorder = CudaGraphs(program.device) if graph and program.device.type == "cuda" else None
        step = Step(criterion, initial, per_class=per_class, recorder=recorder)
        checked = _checked(itertools.chain((first,), source), program, initial)
        with closing(prefetch(checked, program.device, program.dtype, preparing(program.device))) as batches:
            for images, labels in progress(batches, "scoring", total) if progress is not None else batches:
                step(images, labels)
    if step.samples == 0:
        raise DataError(_EMPTY)
    criterion.check_finite(step.totals)
    header = ScoresHeader(
        model=model_name or model_name_of(model),
        composite=program.composite.describe(),
        initial=initial,
        samples=step.samples,
        dtype=str(program.dtype).removeprefix("torch."),
        device=program.device.type,
        data=json.loads(json.dumps(data)),
        versions=versions(),
        units=criterion.units,
    )
    if not per_class:
        return Scores(header, step.totals.cpu())
    return Scores(header, step.totals.cpu(), step.class_totals.cpu(), step.class_samples())


def _checked(
    batches: Iterable[tuple[Tensor, Tensor]], program: Program, initial: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, each checked where it still is on the host and can be without waiting for a GPU."""
    for images, labels in batches:
        program.check(images, labels, initial)
        yield images, labels


def model_name_of(model: nn.Module) -> str:
    """The architecture's name where the model knows it (timm), else its class."""
    config = getattr(model, "pretrained_cfg", None) or {}
    return config.get("architecture") or type(model).__name__


def versions() -> dict[str, str]:
    """Of everything that the numbers depend on."""
    return {"pxp_fast": __version__, "torch": torch.__version__, "python": platform.python_version()}
