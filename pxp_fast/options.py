"""The command line's options, each written once for all the commands that take it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer


def _fraction(value: float | None) -> float | None:
    if value is not None and not 0 <= value < 1:
        raise typer.BadParameter(f"{value:g} is not in [0, 1): the rate is a fraction of the units, such as 0.3")
    return value


def json_object(text: str) -> dict[str, Any]:
    """JSON text to a dictionary (typer hands the default over as it is)."""
    if isinstance(text, dict):
        return text
    try:
        content = json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise typer.BadParameter('expected a JSON object, such as {"num_classes": 10}')
    return content


def words(text: str | None, option: str) -> tuple[str, ...]:
    """The comma list given for `option` to its parts; none where it is not given."""
    parts = tuple(part.strip() for part in (text or "").split(",") if part.strip())
    if text is not None and not parts:
        raise typer.BadParameter(f"{text!r} names nothing; leave the option out for all", param_hint=option)
    return parts


def counts(text: str | None, option: str) -> tuple[int, ...]:
    """The comma list of whole numbers given for `option`; none where it is not given."""
    parts = words(text, option)
    if bad := [part for part in parts if not part.isdecimal() or not int(part)]:
        raise typer.BadParameter(f"{bad[0]!r} is no whole number above 0", param_hint=option)
    return tuple(map(int, parts))


def labels(text: str | None, option: str) -> tuple[int, ...]:
    """The comma list of labels given for `option`; none where it is not given."""
    parts = words(text, option)
    if named := [part for part in parts if not part.isdecimal()]:
        raise typer.BadParameter(
            f"scores know classes by their labels, not by names such as {named[0]!r}: give numbers", param_hint=option
        )
    return tuple(map(int, parts))


_INPUT, _CHOICE, _MACHINE, _SEARCH = "Network and images", "What is removed", "Machine", "Search"

Model = Annotated[
    str,
    typer.Argument(
        help="timm:NAME, torchvision:NAME, MODULE:CALLABLE, demo:vgg|resnet|vit, or pxp:DIR that slim left.",
        metavar="MODEL",
    ),
]
Data = Annotated[
    str,
    typer.Option(
        help="Folder with one sub-folder of images per class, or 'demo'.", metavar="DIR", rich_help_panel=_INPUT
    ),
]
Val = Annotated[
    str | None,
    typer.Option(
        help="Folder of the images that judge. Default: the images of --data that do not score.",
        metavar="DIR",
        rich_help_panel=_INPUT,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="safetensors file or state dict; 'pretrained' takes the library's own.",
        metavar="FILE",
        rich_help_panel=_INPUT,
    ),
]
CheckpointKwargs = Annotated[
    str,
    typer.Option(
        help="Arguments of the network's constructor, such as '{\"num_classes\": 10}'.",
        metavar="JSON",
        rich_help_panel=_INPUT,
    ),
]
Samples = Annotated[
    int, typer.Option(help="Images of each class that score; 0: all of them.", min=0, rich_help_panel=_INPUT)
]
JudgingSamples = Annotated[
    int | None, typer.Option(help="Images of each class that judge. Default: all.", min=1, rich_help_panel=_INPUT)
]
Classes = Annotated[
    str | None,
    typer.Option(help="Labels or folder names to use, separated by commas.", metavar="LIST", rich_help_panel=_INPUT),
]
TaskClasses = Annotated[
    int | None,
    typer.Option(
        help="Draw so many classes at random, and prune for these alone (see --task-mode).",
        min=1,
        rich_help_panel=_INPUT,
    ),
]
TaskSeed = Annotated[int, typer.Option(help="Which classes --task-classes draws.", min=0, rich_help_panel=_INPUT)]
TaskMode = Annotated[
    Literal["slice", "zero"] | None,
    typer.Option(
        help="Restrict the network to the classes used: slice its classifier, or zero the other logits as PXP does. "
        "Default: slice with --task-classes, else neither.",
        rich_help_panel=_INPUT,
    ),
]
AllowFewer = Annotated[
    bool, typer.Option("--allow-fewer", help="Accept classes with fewer images than asked.", rich_help_panel=_INPUT)
]
Seed = Annotated[int, typer.Option(help="Chooses images and random orders.", min=0, rich_help_panel=_INPUT)]

Rate = Annotated[
    float, typer.Option(help="Fraction of the units to remove, in [0, 1).", callback=_fraction, rich_help_panel=_CHOICE)
]
Units = Annotated[
    str | None,
    typer.Option(
        help="Kinds of unit: filter, neuron, head; 'removable': only what can be cut out alone; 'coupled': also what "
        "can be cut out together. Default: all; of run 'coupled', which makes the network smallest.",
        metavar="LIST",
        rich_help_panel=_CHOICE,
    ),
]
Coupling = Annotated[
    Literal["mean", "sum", "max"],
    typer.Option(help="How the scores of coupled units become one.", rich_help_panel=_CHOICE),
]
Criterion = Annotated[
    str,
    typer.Option(
        help="What units are scored by: lrp, random, magnitude, activation, gradient, taylor, integrated-gradients, "
        "combination.",
        rich_help_panel=_CHOICE,
    ),
]
CriterionOptions = Annotated[
    str, typer.Option(help='The criterion\'s own, such as \'{"of": "loss"}\'.', metavar="JSON", rich_help_panel=_CHOICE)
]
KeepClasses = Annotated[
    str | None,
    typer.Option(
        help="Labels to keep the units of; of scores made with --per-class.", metavar="LIST", rich_help_panel=_CHOICE
    ),
]
ForgetClasses = Annotated[
    str | None,
    typer.Option(
        help="Labels to remove the units of: the scores of the classes kept (default: all others) less those of these.",
        metavar="LIST",
        rich_help_panel=_CHOICE,
    ),
]
Composite = Annotated[
    str,
    typer.Option(
        help="The rules relevance is computed by: epsilon, epsilon-plus, cp-lrp ..., or a composite's file.",
        metavar="NAME|FILE",
        rich_help_panel=_CHOICE,
    ),
]
Order = Annotated[
    Literal["least", "most", "random"],
    typer.Option(help="Which go first: the least or the most relevant, or any.", rich_help_panel=_CHOICE),
]
Scope = Annotated[
    Literal["kind", "global", "layer", "isomorphic"],
    typer.Option(
        help="Rank units among their kind, all together, among their layer, or among those of their kind at the same "
        "position of a block.",
        rich_help_panel=_CHOICE,
    ),
]
BudgetParams = Annotated[
    float | None,
    typer.Option(help="Parameters to leave at most: a fraction, or a number.", rich_help_panel=_CHOICE),
]
BudgetFlops = Annotated[
    float | None, typer.Option(help="FLOPs to leave at most: a fraction, or a number.", rich_help_panel=_CHOICE)
]
BudgetLatency = Annotated[
    str | None,
    typer.Option(
        help="Milliseconds that --batch images may take on this device, or a percentage such as 60%.",
        metavar="MS|PERCENT",
        rich_help_panel=_CHOICE,
    ),
]
Batch = Annotated[int, typer.Option(help="Images at a time when latency is measured.", min=1, rich_help_panel=_CHOICE)]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Remove as much as lowers the accuracy on the images that judge by no more, such as 0.02.",
        rich_help_panel=_CHOICE,
    ),
]
Steps = Annotated[
    int, typer.Option(help="Remove in so many steps, scoring what is left before each.", min=1, rich_help_panel=_CHOICE)
]
RoundTo = Annotated[
    str | None,
    typer.Option(
        help="Channels whose multiples layers keep: 8, 16, or auto for what hardware likes.",
        metavar="N|auto",
        rich_help_panel=_CHOICE,
    ),
]
Magnitude = Annotated[
    bool,
    typer.Option(
        "--magnitude/--no-magnitude", help="Rank by |relevance|, or by signed relevance.", rich_help_panel=_CHOICE
    ),
]
Absolute = Annotated[
    Literal["pxp", "token", "sample"],
    typer.Option(help="Where |relevance| is taken: as PXP does, per position, or per image.", rich_help_panel=_CHOICE),
]
Slim = Annotated[
    bool,
    typer.Option(
        "--slim/--no-slim",
        help="Cut out what the plan removes and measure what that saves, or mask it alone.",
        rich_help_panel=_CHOICE,
    ),
]
Repair = Annotated[
    Literal["none", "mean", "ridge"],
    typer.Option(
        help="Make up for what is removed, without training: shift the layers that read it by what it gave them on "
        "average, or refit these by ridge regression.",
        rich_help_panel=_CHOICE,
    ),
]
RepairImages = Annotated[int, typer.Option(help="Images to repair with at most.", min=1, rich_help_panel=_CHOICE)]
RandomSeeds = Annotated[int, typer.Option(help="Random orders to compare with.", min=0, rich_help_panel=_CHOICE)]

Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...", rich_help_panel=_MACHINE)]
Dtype = Annotated[
    Literal["float32", "float64", "bfloat16", "float16"],
    typer.Option(help="Arithmetic of the network.", rich_help_panel=_MACHINE),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact/--no-exact",
        help="Score in float32 with slower kernels, whose rounding errors are two to six times smaller.",
        rich_help_panel=_MACHINE,
    ),
]
Initial = Annotated[
    Literal["one", "logit", "bounded"],
    typer.Option(
        help="Relevance at the label's logit: 1 but for images whose logit is small, 1 as in PXP, or the logit.",
        rich_help_panel=_CHOICE,
    ),
]
PerClass = Annotated[
    bool,
    typer.Option("--per-class/--no-per-class", help="Keep the scores of every class as well.", rich_help_panel=_CHOICE),
]
PerSample = Annotated[
    bool,
    typer.Option(
        "--per-sample/--no-per-sample",
        help="Keep the scores of every image as well: 8 bytes per image and unit.",
        rich_help_panel=_CHOICE,
    ),
]
UntilStable = Annotated[
    str | None,
    typer.Option(
        help="Score images in balanced order, and stop when the plan at these rates no longer changes.",
        metavar="RATES",
        rich_help_panel=_CHOICE,
    ),
]
StableOverlap = Annotated[
    float,
    typer.Option(
        help="Fraction of the units removed that must then be those of half the images.",
        rich_help_panel=_CHOICE,
    ),
]
Graph = Annotated[
    bool,
    typer.Option(
        "--graph/--no-graph",
        help="On a GPU, record the scoring of a batch once and replay it.",
        rich_help_panel=_MACHINE,
    ),
]
BatchSize = Annotated[int, typer.Option(help="Images at a time.", min=1, rich_help_panel=_MACHINE)]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that decode images; 0: none. Default: by their number.", min=0, rich_help_panel=_MACHINE
    ),
]
Out = Annotated[Path, typer.Option(help="Folder for the results.", metavar="DIR")]
HeatMapCount = Annotated[int, typer.Option("--heatmaps", help="Images to explain before and after.", min=0)]
ScoresFile = Annotated[Path, typer.Argument(help="scores.safetensors, or the folder it is in.", metavar="SCORES")]

Trials = Annotated[
    int,
    typer.Option(help="Trials in the end, with those that --out holds already.", min=1, rich_help_panel=_SEARCH),
]
Objective = Annotated[
    str,
    typer.Option(
        help="a-pr, top-pr, rate:0.5 (accuracy with half of the units removed), flops:0.5 (at half of the FLOPs).",
        rich_help_panel=_SEARCH,
    ),
]
Sampler = Annotated[
    Literal["tpe", "gp", "random"],
    typer.Option(help="Parzen estimators, a Gaussian process, or chance.", rich_help_panel=_SEARCH),
]
Space = Annotated[
    Path | None,
    typer.Option(
        help="JSON or YAML file of the rules and ranges to search. Default: all.",
        metavar="FILE",
        rich_help_panel=_SEARCH,
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        help="Folder of scores and judgements, to be shared with other searches. Default: in --out.",
        metavar="DIR",
        rich_help_panel=_SEARCH,
    ),
]
TuningSamples = Annotated[
    int | None,
    typer.Option(
        help="Images of each class that judge trials. Default: half of those that do not score, at most 50.",
        min=1,
        rich_help_panel=_INPUT,
    ),
]
HeldOutSamples = Annotated[
    int | None,
    typer.Option(
        help="Images of each class for the final comparison. Default: all that are left.",
        min=1,
        rich_help_panel=_INPUT,
    ),
]
