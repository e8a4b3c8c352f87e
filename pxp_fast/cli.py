"""The command ``pxp-fast``.

Exit status: 0 done; 1 the input or the machine stood in the way, or it was interrupted; 2 the command line is wrong.
Results go to standard output, progress and messages to standard error. What takes seconds to import is imported by the
commands that need it.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from . import commands_finetune, commands_slim, commands_tasks, memory
from . import options as o
from .errors import PxpError

if TYPE_CHECKING:
    from .config import RunConfig


class _Commands(TyperGroup):
    """Turns what stands in a command's way into one line and an exit status."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (PxpError, KeyboardInterrupt, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not (_out_of_memory(error) or _worker_stopped(error)):
                raise
            if ctx.params.get("debug"):
                raise
            typer.echo(f"pxp-fast: {_message(error)}", err=True)
            raise typer.Exit(1) from error


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Prune vision networks by explaining them: score every unit by its relevance, remove the least relevant, "
    "and see what that did.",
    epilog="Start with: pxp-fast demo",
)


@app.callback()
def _global(debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False) -> None:
    pass


@app.command()
def run(
    model: o.Model, data: o.Data, out: o.Out = Path("out"), val: o.Val = None, weights: o.Weights = None,
    checkpoint_kwargs: o.CheckpointKwargs = "{}", samples_per_class: o.Samples = 10,
    eval_samples_per_class: o.JudgingSamples = None, classes: o.Classes = None, allow_fewer: o.AllowFewer = False,
    seed: o.Seed = 0, rate: o.Rate = 0.3, units: o.Units = None, criterion: o.Criterion = "lrp",
    criterion_options: o.CriterionOptions = "{}", composite: o.Composite = "epsilon", initial: o.Initial = "bounded",
    keep_classes: o.KeepClasses = None, forget_classes: o.ForgetClasses = None,
    budget_params: o.BudgetParams = None, budget_flops: o.BudgetFlops = None,
    budget_latency: o.BudgetLatency = None, batch: o.Batch = 1, max_drop: o.MaxDrop = None, steps: o.Steps = 1,
    round_to: o.RoundTo = None, coupling: o.Coupling = "mean",
    order: o.Order = "least", scope: o.Scope = "kind", magnitude: o.Magnitude = True, absolute: o.Absolute = "pxp",
    random_seeds: o.RandomSeeds = 5, heatmaps: o.HeatMapCount = 6, device: o.Device = "auto",
    dtype: o.Dtype = "float32", exact: o.Exact = False, graph: o.Graph = True, batch_size: o.BatchSize = 32,
    workers: o.Workers = None, per_class: o.PerClass = False, per_sample: o.PerSample = False,
    task_classes: o.TaskClasses = None, task_seed: o.TaskSeed = 0, task_mode: o.TaskMode = None,
    until_stable: o.UntilStable = None, stable_overlap: o.StableOverlap = 0.95, slim: o.Slim = True,
    repair: o.Repair = "none", repair_images: o.RepairImages = 512,
) -> None:  # fmt: skip
    """Score, plan, make smaller, judge, measure and report, in one go.

    Leaves scores.safetensors, plan.json, results.json and report.html in --out.

    Examples:

      pxp-fast run timm:resnet50 --weights resnet50.safetensors --data imagenet/val --classes 0,1,2 --rate 0.2

      pxp-fast run mymodels:classifier --data photos/ --samples-per-class 20 --out pruned
    """
    if units is None and slim:
        units = "coupled"
    config = _config(**locals())
    from . import progress
    from .run import run as run_all

    result = run_all(config, progress.tracker(), _say)
    _summarise([result])
    typer.echo(f"report: {result.report.resolve()}")


@app.command()
def score(
    model: o.Model, data: o.Data, out: o.Out = Path("out"), weights: o.Weights = None,
    checkpoint_kwargs: o.CheckpointKwargs = "{}", samples_per_class: o.Samples = 10, classes: o.Classes = None,
    allow_fewer: o.AllowFewer = False, seed: o.Seed = 0, units: o.Units = None, criterion: o.Criterion = "lrp",
    criterion_options: o.CriterionOptions = "{}", composite: o.Composite = "epsilon", initial: o.Initial = "bounded",
    per_class: o.PerClass = False, device: o.Device = "auto", dtype: o.Dtype = "float32", exact: o.Exact = False,
    graph: o.Graph = True, batch_size: o.BatchSize = 32, workers: o.Workers = None,
    per_sample: o.PerSample = False, task_classes: o.TaskClasses = None, task_seed: o.TaskSeed = 0,
    task_mode: o.TaskMode = None, until_stable: o.UntilStable = None, stable_overlap: o.StableOverlap = 0.95,
) -> None:  # fmt: skip
    """Measure the relevance of every unit; leaves scores.safetensors in --out.

    Example: pxp-fast score torchvision:vgg16 --weights vgg16.pth --data imagenet/train --out vgg16
    """
    config = _config(**locals())
    from . import commands

    typer.echo(commands.score(config))


@app.command()
def plan(
    scores: o.ScoresFile, rate: o.Rate = 0.3, units: o.Units = None, order: o.Order = "least",
    scope: o.Scope = "kind", seed: o.Seed = 0, magnitude: o.Magnitude = True, absolute: o.Absolute = "pxp",
    classes: Annotated[
        str | None,
        typer.Option(help="Labels whose images alone count, of scores made with --per-class.", metavar="LIST"),
    ] = None,
    keep_classes: o.KeepClasses = None, forget_classes: o.ForgetClasses = None, round_to: o.RoundTo = None,
    coupling: o.Coupling = "mean",
    budget_params: o.BudgetParams = None, budget_flops: o.BudgetFlops = None,
    budget_latency: o.BudgetLatency = None, batch: o.Batch = 1, max_drop: o.MaxDrop = None,
    model: Annotated[
        str | None, typer.Option(help="The network, for budgets and removable units. Default: as it scored.")
    ] = None,
    weights: o.Weights = None, checkpoint_kwargs: o.CheckpointKwargs = "{}",
    data: Annotated[
        str | None, typer.Option(help="Folder of images for --max-drop, less those that scored.", metavar="DIR")
    ] = None,
    eval_samples_per_class: o.JudgingSamples = None, device: o.Device = "auto", dtype: o.Dtype = "float32",
    batch_size: o.BatchSize = 32, workers: o.Workers = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: beside the scores.")] = None,
) -> None:  # fmt: skip
    """Choose the units to remove; needs only the scores, but for a budget or removable units the network too.

    Examples:

      pxp-fast plan vgg16 --rate 0.25

      pxp-fast plan vgg16 --rate 0.05 --forget-classes 3

      pxp-fast plan vgg16 --units removable --budget-flops 0.5 --weights vgg16.pth
    """
    values = {name: value for name, value in locals().items() if name not in ("scores", "out", "model", "data")}
    config = _config(model=model or "", data=data or "", **values)
    from . import commands_plan

    typer.echo(commands_plan.plan(scores, config, out))


@app.command(name="eval")
def evaluate(
    model: o.Model, data: o.Data,
    plan: Annotated[Path | None, typer.Option(help="plan.json to prune the network by.", metavar="FILE")] = None,
    weights: o.Weights = None, checkpoint_kwargs: o.CheckpointKwargs = "{}",
    samples_per_class: o.JudgingSamples = None, classes: o.Classes = None, allow_fewer: o.AllowFewer = False,
    seed: o.Seed = 0, device: o.Device = "auto", dtype: o.Dtype = "float32", batch_size: o.BatchSize = 32,
    workers: o.Workers = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Print the accuracy of every class too.")] = False,
    task_classes: o.TaskClasses = None, task_seed: o.TaskSeed = 0, task_mode: o.TaskMode = None,
) -> None:  # fmt: skip
    """Measure accuracy, of the network as it is or pruned by a plan.

    Example: pxp-fast eval torchvision:vgg16 --weights vgg16.pth --data imagenet/val --plan vgg16/plan.json
    """
    values = locals()
    values["eval_samples_per_class"] = values.pop("samples_per_class")
    config = _config(**{name: value for name, value in values.items() if name != "plan"})
    from . import commands

    typer.echo(commands.evaluate(config, plan))


@app.command()
def sweep(
    model: o.Model, scores: o.ScoresFile, data: o.Data, weights: o.Weights = None,
    checkpoint_kwargs: o.CheckpointKwargs = "{}", samples_per_class: o.JudgingSamples = None,
    classes: o.Classes = None, allow_fewer: o.AllowFewer = False, seed: o.Seed = 0, order: o.Order = "least",
    scope: o.Scope = "kind", units: o.Units = None, magnitude: o.Magnitude = True, absolute: o.Absolute = "pxp",
    keep_classes: o.KeepClasses = None, forget_classes: o.ForgetClasses = None,
    device: o.Device = "auto", dtype: o.Dtype = "float32", batch_size: o.BatchSize = 32, workers: o.Workers = None,
    task_classes: o.TaskClasses = None, task_seed: o.TaskSeed = 0, task_mode: o.TaskMode = None,
    out: Annotated[Path | None, typer.Option(help="Folder for sweep.json; by default none.", metavar="DIR")] = None,
) -> None:  # fmt: skip
    """Measure accuracy at every pruning rate, from one scoring.

    Images that scored are left out, except of classes that have no others, which is said.

    Example: pxp-fast sweep torchvision:vgg16 vgg16/scores.safetensors --weights vgg16.pth --data imagenet/val
    """
    values = locals()
    values["eval_samples_per_class"] = values.pop("samples_per_class")
    config = _config(**{name: value for name, value in values.items() if name not in ("scores", "out")})
    from . import commands

    typer.echo(commands.sweep(scores, config, out))


@app.command()
def stability(
    scores: o.ScoresFile, rate: o.Rate = 0.3,
    sizes: Annotated[
        str | None, typer.Option(help="Images per class. Default: 1, 2, 5, 10 ... as far as they last.", metavar="LIST")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Sets of images of each size; an interval takes 20.", min=1)] = 20,
    units: o.Units = None, scope: o.Scope = "kind", magnitude: o.Magnitude = True, absolute: o.Absolute = "pxp",
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Default: beside the scores.")] = None,
) -> None:  # fmt: skip
    """See how many images a plan needs, from scores made with --per-sample; leaves stability.json and stability.svg.

    Example: pxp-fast stability vgg16 --rate 0.3
    """
    values = {"units": units, "rate": rate, "scope": scope, "magnitude": magnitude, "absolute": absolute}
    config = _config(model="", data="", **values)
    from . import commands

    typer.echo(commands.stability(scores, config, o.counts(sizes, "--sizes"), seeds, out))


@app.command()
def tune(
    model: o.Model, data: o.Data, out: o.Out = Path("tune"), trials: o.Trials = 40, objective: o.Objective = "a-pr",
    sampler: o.Sampler = "tpe", space: o.Space = None, val: o.Val = None, weights: o.Weights = None,
    checkpoint_kwargs: o.CheckpointKwargs = "{}", samples_per_class: o.Samples = 20,
    eval_samples_per_class: o.TuningSamples = None, held_out_samples_per_class: o.HeldOutSamples = None,
    classes: o.Classes = None, allow_fewer: o.AllowFewer = False, seed: o.Seed = 0, units: o.Units = None,
    initial: o.Initial = "bounded", scope: o.Scope = "kind", absolute: o.Absolute = "pxp", device: o.Device = "auto",
    dtype: o.Dtype = "float32", exact: o.Exact = False, graph: o.Graph = True, batch_size: o.BatchSize = 128,
    workers: o.Workers = None, task_classes: o.TaskClasses = None, task_seed: o.TaskSeed = 0,
    task_mode: o.TaskMode = None, cache: o.Cache = None,
) -> None:  # fmt: skip
    """Search for the composite whose scores prune best.

    Some images score, others judge the trials, and on others still, held out, the best is compared with epsilon.
    Leaves best.json (for `score --composite`), tune.json and tune.html in --out. Interrupted, it goes on where it was
    when started again; started several times at once, the processes share the trials.

    Example: pxp-fast tune torchvision:vgg16 --weights vgg16.pth --data imagenet/val --classes 0,1,2 --trials 40
    """
    config = _config(**locals())
    from . import commands

    typer.echo(commands.tune(config, _say))


@app.command()
def report(
    folders: Annotated[list[Path], typer.Argument(help="Folders that `run` wrote, for one page.", metavar="DIR...")],
    out: Annotated[Path | None, typer.Option(help="The page; by default in the first folder.", metavar="FILE")] = None,
) -> None:
    """Make the page again from results.json, for one run or several side by side.

    Example: pxp-fast report runs/resnet18 runs/resnet50 --out both.html
    """
    from . import commands

    typer.echo(commands.report(folders, out))


@app.command()
def info() -> None:
    """Print versions, devices, and which kernels are there."""
    from .info import collect, render

    typer.echo(render(collect()))


@app.command()
def demo(
    networks: Annotated[
        list[str] | None, typer.Argument(help="vgg, resnet, vit. Default: all three.", metavar="[NETWORK]...")
    ] = None,
    out: o.Out = Path("pxp-demo"), rate: o.Rate = 0.3, seed: o.Seed = 0, device: o.Device = "auto",
) -> None:  # fmt: skip
    """Prune three small networks that come with the package; needs no network and no data.

    Example: pxp-fast demo
    """
    from .demo import NETWORKS

    names = list(dict.fromkeys(networks or NETWORKS))
    if unknown := [name for name in names if name not in NETWORKS]:
        raise typer.BadParameter(f"unknown network {unknown[0]!r}; choose from {', '.join(NETWORKS)}")
    from . import commands

    results, page = commands.demo(names, out, rate, seed, device)
    _summarise(results)
    typer.echo(f"report: {page.resolve()}")


commands_slim.register(app)
commands_finetune.register(app)


def main() -> None:
    """Entry point of the console script."""
    memory.retain()
    signal.signal(signal.SIGTERM, _interrupt)  # a scheduler's stop leaves as little behind as Ctrl-C
    try:
        app(prog_name="pxp-fast")
    except KeyboardInterrupt:
        sys.exit(1)


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _config(**values: Any) -> RunConfig:
    """The options as a :class:`RunConfig`, or a :class:`TuneConfig`; what does not fit is a usage error."""
    from pydantic import ValidationError

    from .config import RunConfig, TuneConfig

    for name in ("classes", "units", "until_stable"):
        if name in values:
            values[name] = o.words(values[name], f"--{name.replace('_', '-')}")
    for name in ("keep_classes", "forget_classes"):
        if name in values:
            values[name] = o.labels(values[name], f"--{name.replace('_', '-')}")
    for name in ("checkpoint_kwargs", "criterion_options"):
        if name in values:
            values[name] = o.json_object(values[name])
    try:
        return (TuneConfig if "trials" in values else RunConfig)(**values)
    except ValidationError as error:
        first = error.errors()[0]
        option = "--" + str(first["loc"][0]).replace("_", "-")
        raise typer.BadParameter(f"{first['msg']} (found {first['input']!r})", param_hint=option) from error


commands_tasks.register(app, _config)


def _summarise(results: list[Any]) -> None:
    from .report.words import headline

    for result in results:
        typer.echo(f"{result.results.model.name}: {headline(result.results)}")


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _out_of_memory(error: RuntimeError) -> bool:
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def _worker_stopped(error: BaseException) -> bool:
    """Whether a decoding process was told to stop: by whoever tells the command too, and sometimes is heard first."""
    return "DataLoader worker" in str(error) and "killed by signal: Terminated" in str(error)


def _message(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt) or _worker_stopped(error):
        return "interrupted; files already finished are whole"
    if isinstance(error, PxpError):
        return " ".join(str(error).split())
    reason = (str(error).splitlines() or ["no more can be had"])[0]
    return f"out of memory: {reason}; try a smaller --batch-size"
