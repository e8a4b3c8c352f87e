"""The commands that make a smaller model and hand it on: ``slim`` and ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from . import options as o

_ENDINGS = {"onnx": ".onnx", "torch": ".pt2"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(slim)
    app.command()(export)


def slim(
    model: o.Model,
    plan: Annotated[Path, typer.Option(help="plan.json, or the folder it is in.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="Folder for the smaller network.", metavar="DIR")],
    weights: o.Weights = None,
    checkpoint_kwargs: o.CheckpointKwargs = "{}",
    repair: o.Repair = "none",
    repair_images: o.RepairImages = 512,
    data: Annotated[str | None, typer.Option(help="Images to repair with: a folder, or 'demo'.", metavar="DIR")] = None,
) -> None:
    """Cut what a plan removes out of a network, and save what is left as a network of its own.

    Leaves model.safetensors, pxp.json and README.md in --out, which is a MODEL from then on: pxp:DIR.

    Example: pxp-fast slim torchvision:vgg16 --weights vgg16.pth --plan vgg16/plan.json --out vgg16-slim
    """
    from .checkpoint import noise, save
    from .models import load
    from .plan import Plan
    from .repair_step import in_words, repair_with
    from .slim import Slimmer

    loaded = load(model, weights=weights, checkpoint_kwargs=o.json_object(checkpoint_kwargs))
    found = Plan.load(plan / "plan.json" if plan.is_dir() else plan, model_name=loaded.name)
    mended = repair_with(data, loaded, found, repair, repair_images)
    small = Slimmer(loaded.model, noise(loaded.model, 2, loaded.preprocess)).slim(found, mended)
    save(small, out, plan=found)
    record = small.pxp_slim
    layers = sum(layer.cut > 0 for layer in record.layers)
    for name, before, after in (
        ("parameters", record.before.parameters, record.after.parameters),
        ("FLOPs", record.before.flops, record.after.flops),
    ):
        typer.echo(f"{name}: {before:,} -> {after:,} ({after / before - 1:+.1%})")
    typer.echo(
        f"units: {found.removed_count:,} of {found.total_count:,} removed; {record.cut:,} cut out, in {layers} layers, "
        f"{record.zeros:,} stay as zeros"
    )
    for line in [] if mended is None else in_words(mended):
        typer.echo(line)
    typer.echo(f"logits: {record.difference:.1e} of the largest from the masked network's")
    typer.echo(str(out))


def export(
    folder: Annotated[Path, typer.Argument(help="A network that `slim` saved.", metavar="DIR")],
    to: Annotated[Literal["onnx", "torch"], typer.Option(help="ONNX, or a program of torch.export.")],
    out: Annotated[Path, typer.Option(help="The file; its ending may be left out.", metavar="FILE")],
    trust: Annotated[
        bool, typer.Option("--trust", help="Call the constructor that the folder names in a module of yours.")
    ] = False,
) -> None:
    """Write a saved network as a file for other runtimes, after running that file and comparing logits.

    Example: pxp-fast export vgg16-slim --to onnx --out vgg16.onnx
    """
    from .checkpoint import load, noise
    from .export import export_onnx, export_torch

    model = load(folder, trust=trust)
    target = out if out.suffix else out.with_suffix(_ENDINGS[to])
    write = {"onnx": export_onnx, "torch": export_torch}[to]
    error = write(model, noise(model, 2, model.pxp_origin.preprocess), target)
    typer.echo(f"logits: {error:.1e} of the largest from the network's, at batch sizes 1 and 2")
    typer.echo(f"{target}: {target.stat().st_size:,} bytes")
