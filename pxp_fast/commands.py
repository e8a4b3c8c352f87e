"""What the smaller commands do: each is one step of :func:`pxp_fast.run.run` on its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from . import progress
from . import report as pages
from .config import RunConfig, TuneConfig
from .data import Images, used_among
from .evaluate import Evaluation
from .evaluate import evaluate_plans as judge_plans
from .evaluate import sweep as judge_every_rate
from .files import atomic_write
from .heatmaps import HeatMaps
from .loader import Loader
from .models import LoadedModel, load
from .plan import Plan
from .planning import Planner, scored_kinds
from .report import tuning as tuning_page
from .report.words import percent
from .results import Hits, Results
from .run import (
    RunResult,
    autocast,
    check_writable,
    engine_notes,
    of_classes,
    plan_options,
    run,
    scored,
    stopping,
    torch_device,
)
from .run_records import curve_record
from .scores import Scores
from .scoring import score as measure
from .selection import for_task, interleaved, judging, record_images, scored_paths, scoring, task_of, tuning
from .stability import LEAST_FOR_INTERVAL
from .stability import stability as study
from .stopping import in_words
from .tune import require_extra as require_optuna
from .tune import tune as search
from .tuning.space import Space


def score(config: RunConfig) -> str:
    """Score; returns the path of the file."""
    check_writable(config.out)
    loaded, device = prepare(config)
    chosen, task = task_of(config, loaded)
    loaded, images = for_task(task, loaded, scoring(chosen, loaded))
    if config.until_stable:
        images = interleaved(images, config.seed)
    with engine_notes() as notes:
        scores = measure(
            loaded.model,
            Loader(images, config.batch_size, config.workers),
            criterion=config.criterion,
            criterion_options=config.criterion_options,
            composite=config.composite,
            initial=config.initial,
            units=scored_kinds(config),
            device=device,
            dtype=getattr(torch, config.dtype),
            exact=config.exact,
            per_class=config.per_class,
            per_sample=config.per_sample,
            until_stable=stopping(config),
            graph=config.graph,
            example=torch.zeros(1, *loaded.input_size),
            model_name=loaded.name,
            progress=progress.tracker(),
        )
    path = config.out / "scores.safetensors"
    record_images(scores, images, config, task).save(path)
    lines = [f"{scored(scores)}{_skipped(images.skipped)}", *notes]
    if scores.header.until_stable is not None:
        lines.append(in_words(scores.header.until_stable, len(images)))
    if scores.sample_table is not None:
        lines.append(f"the scores of every image take {scores.sample_table.nbytes / 1e6:.1f} MB of it")
    return "\n".join([*lines, str(path)])


def evaluate(config: RunConfig, plan_path: Path | None) -> str:
    """Judge; returns the accuracy as a line."""
    plan_ = None if plan_path is None else Plan.load(_inside(plan_path, "plan.json"), model_name=config.model)
    loaded, _ = prepare(config)
    chosen, task = task_of(config, loaded)
    loaded, images = for_task(task, loaded, judging(chosen, loaded))
    loader = Loader(images, config.batch_size, config.workers)
    plans = [None, plan_] if plan_ is not None and config.per_class else [plan_]
    every = judge_plans(loaded.model, plans, loader, dtype=autocast(config), progress=progress.tracker())
    found, what = every[-1], "unpruned"
    if plan_ is not None:
        what = f"with {plan_.removed_count} of {plan_.total_count} units removed"
    hits = Hits(correct=found.correct, total=found.total)
    low, high = hits.interval
    lines = [_class_line(name, accuracies) for name, accuracies in _by_class(every, images)] if config.per_class else []
    lines.append(
        f"accuracy {what}: {percent(hits.accuracy, 2)} ({hits.correct} of {hits.total} images right; "
        f"95\u202f% interval {percent(low)} to {percent(high)}){_skipped(images.skipped)}"
    )
    return "\n".join(lines)


def sweep(scores: Path, config: RunConfig, out: Path | None) -> str:
    """Judge at every rate; returns a table."""
    if out is not None:
        check_writable(out)
    found = Scores.load(scores_path(scores), model_name=config.model)
    loaded, _ = prepare(config)
    paths = scored_paths(found)
    chosen, task = task_of(config, loaded)
    loaded, images = for_task(task, loaded, judging(chosen, loaded, paths))
    curve = judge_every_rate(
        loaded.model,
        of_classes(found, config),
        Loader(images, config.batch_size, config.workers),
        order=config.order,
        seed=config.seed,
        dtype=autocast(config),
        progress=progress.tracker(),
        **Planner(config, loaded.model, loaded.input_size).options(),
    )
    record = curve_record(curve, config.order, config.seed if config.order == "random" else None)
    read, shared = len(images.used), used_among(images, paths)
    if out is not None:
        with atomic_write(out / "sweep.json") as temporary:
            content = {"model": loaded.name, "images": read, "shared_images": shared}
            content["curve"] = record.model_dump(mode="json")
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    lines = ["removed  units  accuracy"]
    rows = zip(record.rates, record.removed, record.accuracies, strict=True)
    lines += [f"{rate:7.0%}  {removed:5d}  {accuracy:8.2%}" for rate, removed, accuracy in rows]
    lines.append(f"A_PR {record.a_pr:.4f}, Top-PR {record.top_pr:.0%}, {read} images{_skipped(images.skipped)}")
    if shared:
        lines.append(f"{shared} of the {read} images that judge also scored: the accuracy is that of images seen")
    recorded = (found.header.data or {}).get("task")
    if recorded is not None and (task is None or recorded != task.describe()):
        lines.append(f"the scores are of a task of classes {recorded['classes']}, and another one was judged here")
    return "\n".join(lines)


def stability(scores: Path, config: RunConfig, sizes: tuple[int, ...], seeds: int, out: Path | None) -> str:
    """Compare plans from sets of images with that of all; returns a table and the paths of the files."""
    path = scores_path(scores)
    found = study(
        Scores.load(path),
        config.rate,
        sizes or None,
        seeds,
        units=config.units or None,
        progress=progress.tracker(),
        **plan_options(config),
    )
    place = out or path.parent
    with atomic_write(place / "stability.json") as temporary:
        temporary.write_text(json.dumps(found.describe(), indent=1) + "\n", encoding="utf-8")
    found.save_figure(place / "stability.svg")
    whole = seeds >= LEAST_FOR_INTERVAL
    interval = " (95 % interval)" if whole else ""
    lines = [f"per class  images  {'overlap' + interval:23s}  Kendall's tau{interval}"]
    for size, images, *measures in zip(found.sizes, found.images, found.overlap, found.tau, strict=True):
        shown = [f"{m.mean:7.3f}" + (f" ({m.low:.3f} to {m.high:.3f})" if whole else "") for m in measures]
        lines.append(f"{size:9d}  {images:6d}  {shown[0]:23s}  {shown[1]}")
    lines.append(
        f"{seeds} sets of each size, drawn from the {found.full} images with replacement, beside all of these; "
        f"{config.rate:.0%} of the units removed"
    )
    if not whole:
        lines.append(f"{LEAST_FOR_INTERVAL} sets of each size make an interval; {seeds} were asked for")
    return "\n".join([*lines, str(place / "stability.json"), str(place / "stability.svg")])


def tune(config: TuneConfig, say: Callable[[str], None]) -> str:
    """Search, and make the page; returns what was found."""
    check_writable(config.out)
    pages.require_extra()
    require_optuna()
    space = None if config.space is None else Space.load(config.space)
    loaded, device = prepare(config)
    chosen, task = task_of(config, loaded)
    loaded, *parts = for_task(task, loaded, *tuning(chosen, loaded))
    reference, judging_, held_out = (Loader(part, config.batch_size, config.workers) for part in parts)
    counts = [len(part) for part in parts]
    say(f"{loaded.name}: {counts[0]} images score, {counts[1]} judge the trials, {counts[2]} are held out")
    with engine_notes() as notes:
        found = search(
            loaded.model,
            reference,
            judging_,
            held_out=held_out,
            out=config.out,
            cache=config.cache,
            trials=config.trials,
            objective=config.objective,
            sampler=config.sampler,
            space=space,
            seed=config.seed,
            units=config.units or None,
            initial=config.initial,
            scope=config.scope,
            absolute=config.absolute,
            device=device,
            dtype=getattr(torch, config.dtype),
            exact=config.exact,
            graph=config.graph,
            judging_dtype=autocast(config),
            model_name=loaded.name,
            say=say,
        )
    page = tuning_page.write(config.out, config.command())
    return "\n".join([*tuning_page.summary(found), *notes, str(config.out / "best.json"), f"report: {page.resolve()}"])


def report(folders: list[Path], out: Path | None) -> str:
    """Render again; returns the path of the page."""
    runs = []
    for folder in folders:
        results = Results.load(_inside(folder, "results.json"))
        place = folder if folder.is_dir() else folder.parent
        runs.append((results, HeatMaps.load(place / "heatmaps.safetensors", results.heatmaps)))
        target = out or (folders[0] if folders[0].is_dir() else folders[0].parent) / "report.html"
    pages.save(pages.render(runs), target)
    return str(target)


def demo(networks: list[str], out: Path, rate: float, seed: int, device: str) -> tuple[list[RunResult], Path]:
    """Run the embedded networks; returns their results and the path of the page over all of them."""
    common = {"data": "demo", "rate": rate, "seed": seed, "device": device, "batch_size": 128, "random_seeds": 2}
    common |= {"samples_per_class": 20, "eval_samples_per_class": 60}
    track = progress.tracker()
    with _one_thread():
        results = [run(RunConfig(model=f"demo:{name}", out=out / name, **common), track) for name in networks]
    if len(results) == 1:
        return results, results[0].report
    page = out / "report.html"
    maps = [HeatMaps.load(r.report.with_name("heatmaps.safetensors"), r.results.heatmaps) for r in results]
    pages.save(pages.render([(r.results, m) for r, m in zip(results, maps, strict=True)]), page)
    return results, page


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small gain little from more threads, and on a busy machine lose much by waiting for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def prepare(config: RunConfig) -> tuple[LoadedModel, torch.device]:
    device = torch_device(config.device)
    loaded = load(config.model, weights=config.weights, checkpoint_kwargs=config.checkpoint_kwargs)
    loaded.model.to(device)
    return loaded, device


def _by_class(found: list[Evaluation], images: Images) -> list[tuple[str, list[tuple[int, int]]]]:
    """The name of every class, and of each evaluation how many of its images are right, and how many there are."""
    return [
        (images.class_names.get(label, str(label)), [one.per_class[label] for one in found])
        for label in found[0].per_class
    ]


def _class_line(name: str, found: list[tuple[int, int]]) -> str:
    shown = " -> ".join(percent(right / total) for right, total in found)
    return f"{name}: {shown} of {found[0][1]} images"


def scores_path(path: Path) -> Path:
    return _inside(path, "scores.safetensors")


def _inside(path: Path, name: str) -> Path:
    """`path` itself, or the file `name` in it when it is a folder."""
    return path / name if path.is_dir() else path


def _skipped(skipped: list[tuple[str, str]]) -> str:
    if not skipped:
        return ""
    return f"\nskipped {len(skipped)} unreadable: " + "; ".join(f"{path} ({reason})" for path, reason in skipped[:10])
