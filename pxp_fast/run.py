"""The main job from end to end: a network and images in; scores, plan, results and report out.

Each file is written whole as soon as its step is done, so what an interruption leaves behind is good.
"""

from __future__ import annotations

import datetime
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import data, environment, report
from .checkpoint import save
from .config import RunConfig
from .errors import CheckpointError, OutputError, PxpError
from .evaluate import RATES, Curve, Evaluation, evaluate, sweep
from .heatmaps import HeatMaps, explain
from .loader import Loader
from .masks import masked
from .measure import measure
from .models import load
from .plan import Plan
from .planning import Planner, scored_kinds
from .progress import Track, silent
from .repair_step import in_words as repair_in_words
from .repair_step import repair_for
from .report.smaller import in_short
from .results import (
    CurveRecord,
    Results,
    SkippedRecord,
    TaskRecord,
)
from .run_records import class_records, curve_record, data_record, model_record, notes_of
from .scores import Scores
from .scoring import score
from .selection import check_classes, for_task, interleaved, read_by, record_images, scoring_and_judging, task_of
from .smaller import hits, layers, paired, smaller
from .steps import Stepped, plan_in_steps
from .stopping import UntilStable


@dataclass(frozen=True)
class RunResult:
    """A finished run: its findings, and where its files are."""

    results: Results
    scores: Path
    plan: Path
    results_file: Path
    report: Path


def run(config: RunConfig, progress: Track | None = None, say: Callable[[str], None] = lambda text: None) -> RunResult:
    """Score, plan, make smaller, judge, measure and report, as `config` asks.

    Parameters
    ----------
    progress : ``track(iterable, description, total)``, see :mod:`pxp_fast.progress`; None: silent.
    say : called with one line for people at each step.

    Raises
    ------
    PxpError
        Whatever stands in the way, in the words of the step that found it: the output folder is checked first.
    """
    track = progress or silent
    seconds: dict[str, float] = {}
    check_writable(config.out)
    report.require_extra()
    device, dtype = torch_device(config.device), getattr(torch, config.dtype)
    with _timed(seconds, "load"):
        loaded = load(config.model, weights=config.weights, checkpoint_kwargs=config.checkpoint_kwargs)
        chosen, task = task_of(config, loaded)
        loaded, reference, evaluation = for_task(task, loaded, *scoring_and_judging(chosen, loaded))
        check_classes(config, reference, task)
        if config.until_stable:
            reference = interleaved(reference, config.seed)
    network = loaded.model.to(device)
    shared = data.shared_images(reference, evaluation)
    say(
        f"{loaded.name} ({loaded.weights} weights): {len(reference)} images score, {len(evaluation)} judge"
        + (f", {shared} of which also score" if shared else "")
    )
    to_score, to_judge = (Loader(part, config.batch_size, config.workers) for part in (reference, evaluation))

    # The smaller network is measured below, once.
    planner = Planner(config, network, loaded.input_size, to_judge, autocast(config), clock=not config.slim)

    def scoring(masked_network: nn.Module) -> Scores:
        found = score(
            masked_network,
            to_score,
            criterion=config.criterion,
            criterion_options=config.criterion_options,
            composite=config.composite,
            initial=config.initial,
            units=scored_kinds(config),
            device=device,
            dtype=dtype,
            exact=config.exact,
            per_class=config.per_class or bool(config.keep_classes or config.forget_classes),
            per_sample=config.per_sample,
            until_stable=stopping(config),
            graph=config.graph,
            example=torch.zeros(1, *loaded.input_size),
            model_name=loaded.name,
            progress=track,
        )
        return record_images(found, reference, config, task)

    with _timed(seconds, "score"), engine_notes() as fallbacks:
        scores = scoring(network)
        scores.save(config.out / "scores.safetensors")
    with _timed(seconds, "plan"), engine_notes():
        ranked = of_classes(scores, config)
        if config.steps > 1:
            stepped = _in_steps(network, scores, scoring, planner, config)
            plan = stepped.plan
            stepped.scores[-1].save(config.out / "scores-last.safetensors")
        else:
            plan = planner.plan(ranked)
        plan.save(config.out / "plan.json")
    say(f"{scored(scores)}; the plan removes {plan.removed_count} of {plan.total_count} units")

    for line in [] if planner.achieved is None else planner.achieved.lines():
        say(line)

    with _timed(seconds, "evaluate"):
        judging = {"dtype": autocast(config)}
        before = evaluate(network, to_judge, **judging, progress=_named(track, "unpruned"))
        with masked(network, plan):
            after = evaluate(network, to_judge, **judging, progress=_named(track, "masked"))
    small, slimmed, costs = None, None, None
    if config.slim:
        with _timed(seconds, "slim"), engine_notes():
            mended = repair_for(config, network, plan, reference, track)
            small, slimmed = smaller(network, plan, to_judge, mended)
            fallbacks += [] if mended is None else repair_in_words(mended)
        slimmed = slimmed.model_copy(update={"masked": hits(after)})
    if small is not None:
        with _timed(seconds, "evaluate"):
            after = evaluate(small, to_judge, **judging, progress=_named(track, "slimmed"))
        with _timed(seconds, "measure"):
            costs = measure(network, small, small.pxp_slim, loaded.input_size, **judging, folder=config.out)
        with _timed(seconds, "save"):
            say(_saved(small, plan, config.out / "model", {"unpruned": before, "slimmed": after}))
    if slimmed is not None:
        say(in_short(slimmed, costs))
    with _timed(seconds, "sweep"):
        curves = tuple(_curves(network, ranked, before, to_judge, config, planner, track))
    with _timed(seconds, "heat maps"), engine_notes():  # the same as when scoring
        pruned = plan if small is None else small
        maps = explain(loaded, pruned, evaluation, config.heatmaps, config.composite, batch_size=config.batch_size)
        maps.save(config.out / "heatmaps.safetensors")

    # Again: images that cannot be read had stand-ins, and scoring may have stopped early.
    shared = data.shared_images(read_by(scores, reference), evaluation)
    skipped = {path: reason for part in (reference, evaluation) for path, reason in part.skipped}
    results = Results(
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=config.command(),
        config=config.model_dump(mode="json"),
        model=model_record(loaded),
        reference=data_record(reference, scores.samples),
        evaluation=data_record(evaluation, before.total),
        shared_images=shared,
        rate=plan.rate,
        removed=plan.removed_count,
        units=plan.total_count,
        before=hits(before),
        after=hits(after),
        paired=paired(before, after),
        slimmed=slimmed,
        costs=costs,
        curves=curves,
        layers=layers(plan, small),
        classes=class_records(before, after, evaluation),
        task=None if task is None else TaskRecord(**task.describe()),
        until_stable=scores.header.until_stable,
        heatmaps=maps.records,
        agreement=maps.agreement,
        skipped=tuple(SkippedRecord(path=path, reason=reason) for path, reason in skipped.items()),
        notes=tuple(notes_of(loaded, shared, fallbacks, before, scores, len(reference), config)),
        seconds={step: round(spent, 3) for step, spent in seconds.items()},
        environment=environment.describe(device),
    )
    return write(results, maps, config.out)


def write(results: Results, maps: HeatMaps, out: Path) -> RunResult:
    """Write results.json and report.html into `out`."""
    result = RunResult(
        results, out / "scores.safetensors", out / "plan.json", out / "results.json", out / "report.html"
    )
    page = report.render([(results, maps)])
    results.save(result.results_file)
    report.save(page, result.report)
    return result


def check_writable(out: Path) -> None:
    """Create the folder `out` and write into it, so that a run does not fail only when it is done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out) as probe:
            probe.write(b"\0" * 4096)
    except OSError as error:
        raise OutputError(
            f"cannot write into {out}: {error.strerror or error}; give another folder with --out, or free space there"
        ) from error


def torch_device(name: str) -> torch.device:
    """The device by name; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise PxpError(f"device {name!r} cannot be used: {reason}; try --device auto or --device cpu") from error
    return device


def autocast(config: RunConfig) -> torch.dtype | None:
    """What judging casts to: nothing, unless half the precision was asked for."""
    return getattr(torch, config.dtype) if config.dtype in ("bfloat16", "float16") else None


@contextmanager
def engine_notes() -> Iterator[list[str]]:
    """Collect what the engine warns of, as lines for the report; other libraries' warnings are dropped."""
    notes: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield notes
    lines = (str(warning.message) for warning in caught)
    ours = (line for line in lines if line.startswith(("no relevance rule", "no CUDA graph")))
    notes += dict.fromkeys(f"{line[0].upper()}{line[1:]}." for line in ours)


def stopping(config: RunConfig) -> UntilStable | None:
    """When scoring is to stop early; None: never."""
    if not config.until_stable:
        return None
    return UntilStable(config.until_stable, config.stable_overlap, units=scored_kinds(config), **plan_options(config))


def of_classes(scores: Scores, config: RunConfig) -> Scores:
    """The scores that a plan is made from: of all classes, or as `config` keeps and forgets some."""
    if not config.keep_classes and not config.forget_classes:
        return scores
    return scores.contrast(config.keep_classes or None, config.forget_classes or None)


def scored(scores: Scores) -> str:
    """How many images scored, in words."""
    return f"{scores.samples} images scored" if scores.samples else f"no images needed by {scores.header.criterion}"


def plan_options(config: RunConfig) -> dict[str, object]:
    """The options of `config` that a plan depends on, other than rate, order and seed."""
    return {"scope": config.scope, "magnitude": config.magnitude, "absolute": config.absolute}


def _saved(small: nn.Module, plan: Plan, folder: Path, judged: dict[str, Evaluation]) -> str:
    """Save the smaller network; where it is, or why it is nowhere."""
    try:
        return f"smaller network: {save(small, folder, plan=plan, accuracy=judged)}"
    except CheckpointError as error:
        return f"the smaller network is not saved: {error}"


def _in_steps(
    network: nn.Module, first: Scores, scoring: Callable[[nn.Module], Scores], planner: Planner, config: RunConfig
) -> Stepped:
    """Plan in steps, of which the first has scored."""
    known = [first]
    return plan_in_steps(
        network,
        lambda left: known.pop() if known else scoring(left),
        config.steps,
        lambda scores, part, after: planner.plan(of_classes(scores, config), part, after),
    )


def _curves(
    network: nn.Module,
    scores: Scores,
    unpruned: Evaluation,
    loader: Loader,
    config: RunConfig,
    planner: Planner,
    track: Track,
) -> Iterator[CurveRecord]:
    """Least relevant first, most relevant first, and every random order; all begin where nothing is removed."""
    orders = [("least", None), ("most", None), *(("random", config.seed + i) for i in range(config.random_seeds))]
    for order, seed in orders:
        title = f"{order} relevant first" if seed is None else f"random order {seed - config.seed + 1}"
        curve = sweep(
            network,
            scores,
            loader,
            rates=RATES[1:],
            order=order,
            seed=config.seed if seed is None else seed,
            dtype=autocast(config),
            progress=_named(track, title),
            **planner.options(),
        )
        whole = Curve(RATES, (unpruned.accuracy, *curve.accuracies), (0, *curve.removed), order)
        yield curve_record(whole, order, seed)


def _named(track: Track, title: str) -> Track:
    """`track` under a title that says which of several passes this is."""
    return lambda iterable, description, total=None: track(iterable, title, total)


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[step] = seconds.get(step, 0.0) + time.perf_counter() - start
