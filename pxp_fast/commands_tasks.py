"""The command ``tasks``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options as o

if TYPE_CHECKING:
    from .config import RunConfig


def register(app: typer.Typer, config_of: Callable[..., RunConfig]) -> None:
    """Add the command; `config_of` makes a configuration of the options."""

    @app.command()
    def tasks(
        model: o.Model, data: o.Data, out: o.Out = Path("out"), val: o.Val = None, weights: o.Weights = None,
        checkpoint_kwargs: o.CheckpointKwargs = "{}", samples_per_class: o.Samples = 10,
        eval_samples_per_class: o.JudgingSamples = None, classes: o.Classes = None, allow_fewer: o.AllowFewer = False,
        task_classes: o.TaskClasses = 3,
        seeds: Annotated[int, typer.Option(help="Tasks to draw, by the seeds 0, 1 ...", min=1)] = 20,
        task_mode: o.TaskMode = None, seed: o.Seed = 0, units: o.Units = None, criterion: o.Criterion = "lrp",
        criterion_options: o.CriterionOptions = "{}", composite: o.Composite = "epsilon",
        initial: o.Initial = "bounded", order: o.Order = "least", scope: o.Scope = "kind",
        magnitude: o.Magnitude = True, absolute: o.Absolute = "pxp", device: o.Device = "auto",
        dtype: o.Dtype = "float32", exact: o.Exact = False, graph: o.Graph = True, batch_size: o.BatchSize = 32,
        workers: o.Workers = None,
    ) -> None:  # fmt: skip
        """Prune for many tasks of a few classes each: A_PR and Top-PR, mean and standard error.

        Every task scores with the images of its classes, restricts the network to these, and is judged on them at
        twenty rates. Leaves tasks.json in --out.

        Example: pxp-fast tasks torchvision:vgg16 --weights vgg16.pth --data imagenet/val --task-classes 3 --seeds 20
        """
        values = {name: value for name, value in locals().items() if name not in ("seeds", "config_of")}
        typer.echo(study(config_of(**values), seeds))


def study(config: RunConfig, seeds: int) -> str:
    """Study; returns a table and the path of the file."""
    import torch

    from . import progress
    from .commands import prepare
    from .loader import Loader
    from .run import autocast, check_writable, engine_notes, plan_options
    from .selection import scoring_and_judging, task_of
    from .task_study import over_tasks

    check_writable(config.out)
    loaded, device = prepare(config)
    drawn = [task_of(config.model_copy(update={"task_seed": seed}), loaded)[1] for seed in range(seeds)]
    parts = scoring_and_judging(config, loaded)
    scoring: dict[str, Any] = {
        "criterion": config.criterion,
        "criterion_options": config.criterion_options,
        "composite": config.composite,
        "initial": config.initial,
        "units": config.units or None,
        "device": device,
        "dtype": getattr(torch, config.dtype),
        "exact": config.exact,
        "graph": config.graph,
    }
    with engine_notes() as notes:
        found = over_tasks(
            loaded.model,
            drawn,
            *(Loader(part, config.batch_size, config.workers) for part in parts),
            scoring=scoring,
            planning=plan_options(config) | {"order": config.order},
            dtype=autocast(config),
            progress=progress.tracker(),
        )
    path = config.out / "tasks.json"
    found.save(path)
    lines = ["unpruned   A_PR  Top-PR  classes"]
    for task, curve in zip(found.tasks, found.curves, strict=True):
        shown = f"{curve.accuracies[0]:8.1%}  {curve.a_pr:.3f}  {curve.top_pr:6.0%}"
        lines.append(f"{shown}  {', '.join(map(str, task.classes))}")
    different = len({task.classes for task in found.tasks})
    same = "" if different == seeds else f", {different} of them different"
    lines.append(f"A_PR {found.a_pr}, Top-PR {found.top_pr}, unpruned {found.unpruned}: mean ± standard error")
    lines.append(f"over {seeds} tasks{same}; they share the network and its images, so they are not independent")
    return "\n".join([*lines, *notes, str(path)])
