"""Scoring: one pass over a reference set, from which the relevance of every unit is left."""

from __future__ import annotations

import contextlib
import itertools
import json
import platform
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .criteria import CudaGraphs, Step
from .criteria import criterion as find_criterion
from .criteria.base import choice
from .criteria.combination import COMBINATION, DEFAULT, HOW, combine, parts
from .criteria.registry import check_classes, check_options, needs_images
from .errors import DataError, PxpError
from .loader import unprepared
from .lrp import Composite, Program
from .memory import kept
from .prefetch import closing, prefetch
from .progress import Track
from .scores import Scores, ScoresHeader
from .scores_samples import SampleTables
from .stopping import UntilStable, Watch
from .units import UnitGroup
from .version import __version__

_EMPTY = "the reference set is empty, so there is nothing to score; check the folder and classes"


def score(
    model: nn.Module,
    loader: Iterable[tuple[Tensor, Tensor]] | None = None,
    *,
    criterion: str = "lrp",
    criterion_options: Mapping[str, object] | None = None,
    composite: str | Composite = "epsilon",
    units: Iterable[str] | None = None,
    initial: str = "bounded",
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    exact: bool = False,
    per_class: bool = False,
    per_sample: bool = False,
    until_stable: UntilStable | None = None,
    graph: bool = True,
    example: Tensor | None = None,
    model_name: str | None = None,
    data: dict | None = None,
    progress: Track | None = None,
) -> Scores:
    """Score every unit of a classifier by its relevance over a reference set, in one pass, or by another criterion.

    Sums stay on the device in float64 and come to the host once, at the end. On a CPU freed memory is kept for the next
    batch until scoring ends (:func:`pxp_fast.memory.kept`). A GPU is kept busy: batches are brought to
    it ahead of their turn, and from the second batch of a size on the work is a recorded CUDA graph.

    Parameters
    ----------
    model
        Maps images ``[N, C, H, W]`` to logits ``[N, classes]``; afterwards exactly as before.
    loader
        Yields ``(images [N, C, H, W], labels [N] int64)``; batches may differ in size. Relevance enters at the label.
        May be None or empty for the criteria ``"random"`` and ``"magnitude"``, which need no images and look at none.
    criterion
        ``"lrp"``, ``"random"``, ``"magnitude"``, ``"activation"``, ``"gradient"``, ``"taylor"``,
        ``"integrated-gradients"``, or ``"combination"`` of several, which passes over the loader once for each.
    criterion_options
        Those of the criterion's class in :mod:`pxp_fast.criteria`, such as ``{"of": "loss"}``. Of a combination:
        `criteria`, a mapping from names to weights; `how`, see :func:`pxp_fast.criteria.combine`; `options`, a mapping
        from names to their options.
    composite
        The rules of relevance: a :class:`pxp_fast.lrp.Composite`, or the name of a preset, or the path of a composite's
        file. Other criteria have none.
    units
        Kinds to score, of ``"filter"``, ``"neuron"``, ``"head"``; None: all that the model has.
    initial
        Relevance at the label's logit: ``"bounded"``, one but for images whose logit is small, which so do not outweigh
        the rest; ``"one"``, as in PXP's code and experiments; or ``"logit"`` for its value. See
        :meth:`pxp_fast.lrp.Program.run`. Other criteria start from no relevance: they refuse ``"logit"``, and to them
        the others are the same.
    device, dtype
        Of the computation; default: the model's. bfloat16 is the fast choice; sums stay in float32.
    exact
        In float32, take slower kernels whose rounding errors are two to six times smaller; see
        :class:`pxp_fast.lrp.Program`.
    per_class
        Keep the totals of every class as well, for :meth:`Scores.for_classes`: 32 bytes per class and unit.
    per_sample
        Keep what every image says about every unit as well, for :meth:`Scores.for_samples` and
        :func:`pxp_fast.stability`: 8 bytes per image and unit, 16 in float64, in memory and in the file. 1,000 images
        and the 26,560 filters of ResNet-50 are 212 MB.
    until_stable
        Stop as soon as more images no longer change the plan; the loader's images must come in a balanced order (see
        :class:`pxp_fast.UntilStable`). The scores' header says how many images that took.
    graph
        Record the work on a GPU, so that launching it costs nothing. What cannot be recorded runs as it is, and a
        :class:`pxp_fast.criteria.GraphWarning` says why.
    example
        A batch that the model accepts, of which only the shape matters, where `loader` has none; default: one of the
        size that the model says it takes (timm).
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
    arguments = dict(locals())
    given = dict(criterion_options or {})
    check_options(criterion, given)
    initial = _initial_of(criterion, initial)
    if (per_sample or until_stable is not None) and (criterion == COMBINATION or not needs_images(criterion)):
        wanted = "per_sample" if per_sample else "until_stable"
        raise PxpError(f"criterion {criterion} has no scores of single images: leave {wanted} out")
    if criterion == COMBINATION:
        return _combination(given, arguments)
    if not needs_images(criterion):
        return _without_images(criterion, given, arguments)
    if loader is None:
        raise DataError(f"criterion {criterion} needs images: pass a loader of (images, labels)")
    total = len(loader) if hasattr(loader, "__len__") else None
    raw, preparing = unprepared(loader)
    with closing(iter(raw)) as source:
        first = next(source, None)
        if first is None:
            raise DataError(_EMPTY)
        kinds = tuple(units) if units is not None else None
        options = {"composite": composite, "dtype": dtype, "device": device, "exact": exact, **given}
        scorer = find_criterion(criterion, model, preparing(first[0].device)(first[0]), kinds=kinds, **options)
        program = scorer.program
        recorder = CudaGraphs(program.device) if graph and program.device.type == "cuda" else None
        tables = _tables(scorer.units, program.dtype, loader) if per_sample else None
        watch = Watch(until_stable, scorer.units, tables) if until_stable is not None else None
        taking = tables if watch is None else watch.tables
        step = Step(scorer, initial, per_class=per_class, tables=taking, recorder=recorder)
        checked = _checked(itertools.chain((first,), source), program, initial)
        batches = prefetch(checked, program.device, program.dtype, preparing(program.device))
        keeping = kept() if program.device.type == "cpu" else contextlib.nullcontext()
        with keeping, closing(batches):
            taken = batches if watch is None else watch.while_unstable(batches)
            for images, labels in progress(taken, "scoring", total) if progress is not None else taken:
                step(images, labels)
                if watch is not None:
                    watch.look(step.totals, step.samples)
    if step.samples == 0:
        raise DataError(_EMPTY)
    scorer.check_finite(step.totals)
    header = ScoresHeader(
        model=model_name or model_name_of(model),
        criterion=criterion,
        criterion_options=scorer.options(),
        composite=program.composite.describe() if criterion == "lrp" else {},
        initial=initial,
        samples=step.samples,
        dtype=str(program.dtype).removeprefix("torch."),
        device=program.device.type,
        data=json.loads(json.dumps(data)),
        versions=versions(),
        units=scorer.units,
        until_stable=None if watch is None else watch.describe(step.samples),
    )
    apart: dict[str, Tensor] = {}
    if per_class:
        apart |= {"class_totals": step.class_totals.cpu(), "class_samples": step.class_samples()}
    if tables is not None:
        apart |= {"sample_table": tables.finish(), "sample_labels": step.labels()}
    return Scores(header, step.totals.cpu(), **apart)


def _initial_of(criterion: str, given: str) -> str:
    """The initial relevance as a criterion takes it: all but relevance differentiate what `given` calls "one"."""
    if criterion in ("lrp", COMBINATION):
        return given
    if given not in ("one", "bounded"):
        raise PxpError(f"initial is {given!r}, but criterion {criterion} starts from no relevance; leave it out")
    return "one"


def _tables(units: Iterable[UnitGroup], dtype: torch.dtype, loader: Iterable) -> SampleTables:
    """Room for the tables of the loader's images, as many as it says it has."""
    images = getattr(loader, "dataset", None)
    expected = len(images) if hasattr(images, "__len__") else None
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return SampleTables(sum(group.count for group in units), wide, expected)


def _without_images(name: str, options: dict, arguments: dict) -> Scores:
    """Scores by a criterion that looks at the model alone; `arguments` are those of :func:`score`."""
    model, kinds = arguments["model"], arguments["units"]
    example = _example(model, arguments["loader"], arguments["example"])
    scorer = find_criterion(name, model, example, kinds=None if kinds is None else tuple(kinds), **options)
    values = scorer.values()
    header = ScoresHeader(
        model=arguments["model_name"] or model_name_of(model),
        criterion=name,
        criterion_options=scorer.options(),
        composite={},
        samples=0,
        dtype="float64",
        device="cpu",
        data=json.loads(json.dumps(arguments["data"])),
        versions=versions(),
        units=scorer.units,
    )
    return Scores(header, torch.stack([values, values.abs(), values.abs(), values.square()]))


def _example(model: nn.Module, loader: Iterable | None, example: Tensor | None) -> Tensor:
    """A batch that the model accepts: the one given, the loader's first, or of the size that the model knows."""
    if example is not None:
        return example
    if loader is not None:
        raw, preparing = unprepared(loader)
        with closing(iter(raw)) as source:
            first = next(source, None)
        if first is not None:
            return preparing(first[0].device)(first[0])
    size = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise DataError(
            f"{type(model).__name__} does not say what images it takes; pass a loader, or an example such as "
            "torch.zeros(1, 3, 224, 224)"
        )
    return torch.zeros(1, *size)


def _combination(options: dict, arguments: dict) -> Scores:
    """The combination of scores by several criteria; `arguments` are those of :func:`score`."""
    loader = arguments["loader"]
    combined = parts(options.get("criteria", DEFAULT), options.get("options", {}))
    for name, (_, own) in combined.items():
        check_options(name, own)
    choice("how", how := options.get("how", "sum"), HOW)
    if arguments["per_class"] and how == "rank":
        check_classes(COMBINATION, options)
    if isinstance(loader, Iterator) and len(combined) > 1:
        raise DataError(
            "a combination passes over the images once for each criterion, but this loader can be passed over only "
            "once; pass a list or a DataLoader"
        )
    initial = {name: arguments["initial"] if name == "lrp" or "lrp" not in combined else "one" for name in combined}
    scores = [
        score(**{**arguments, "criterion": name, "criterion_options": own, "initial": initial[name]})
        for name, (_, own) in combined.items()
    ]
    return combine(scores, [weight for weight, _ in combined.values()], how)


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
