"""The command that trains a smaller network for a few epochs: ``finetune``."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from . import options as o

if TYPE_CHECKING:
    from .config import RunConfig
    from .data import Images
    from .models import LoadedModel

_TRAINING = "Training"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(finetune)


def finetune(
    model: o.Model,
    data: o.Data,
    out: o.Out = Path("finetuned"),
    plan: Annotated[
        Path | None, typer.Option(help="plan.json to make the network smaller by first.", metavar="FILE")
    ] = None,
    repair: o.Repair = "none",
    repair_images: o.RepairImages = 512,
    epochs: Annotated[int, typer.Option(min=1, rich_help_panel=_TRAINING)] = 5,
    lr: Annotated[float, typer.Option(help="Learning rate.", rich_help_panel=_TRAINING)] = 1e-4,
    optimizer: Annotated[str, typer.Option(help="A name that timm knows.", rich_help_panel=_TRAINING)] = "adamw",
    scheduler: Annotated[
        Literal["cosine", "poly", "tanh", "step", "none"],
        typer.Option(help="How the learning rate falls.", rich_help_panel=_TRAINING),
    ] = "cosine",
    weight_decay: Annotated[float, typer.Option(min=0, rich_help_panel=_TRAINING)] = 0.05,
    warmup_epochs: Annotated[int, typer.Option(min=0, rich_help_panel=_TRAINING)] = 0,
    label_smoothing: Annotated[float, typer.Option(min=0, max=0.999, rich_help_panel=_TRAINING)] = 0.1,
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", help="Mirror half of the images.", rich_help_panel=_TRAINING)
    ] = True,
    val: Annotated[
        str | None,
        typer.Option(help="Folder of images to judge by. Default: some of each class of --data.", metavar="DIR"),
    ] = None,
    weights: o.Weights = None,
    checkpoint_kwargs: o.CheckpointKwargs = "{}",
    eval_samples_per_class: o.JudgingSamples = None,
    classes: o.Classes = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    batch_size: o.BatchSize = 64,
    workers: o.Workers = None,
) -> None:
    """Train a network, whole or made smaller by a plan, for a few epochs, and save it where it did best.

    Leaves a network in --out, which is a MODEL from then on: pxp:DIR; beside it, in DIR.state, the state after the last
    epoch. Interrupted, it goes on from there when started again.

    Examples:

      pxp-fast finetune timm:resnet50 --weights resnet50.safetensors --plan out --data imagenet/train --epochs 2

      pxp-fast finetune pxp:vgg16-slim --data photos/
    """
    from .checkpoint import noise, save
    from .config import RunConfig
    from .finetune import finetune as train
    from .loader import Loader, ShuffledLoader
    from .models import load
    from .plan import Plan
    from .progress import tracker
    from .repair_step import in_words, repair_for
    from .run import torch_device
    from .slim import Slimmer

    loaded = load(model, weights=weights, checkpoint_kwargs=o.json_object(checkpoint_kwargs))
    config = RunConfig(
        model=model, data=data, val=val, seed=seed, classes=o.words(classes, "--classes"), samples_per_class=0,
        eval_samples_per_class=eval_samples_per_class, repair=repair, repair_images=repair_images,
        batch_size=batch_size, workers=workers,
    )  # fmt: skip
    training, judging = _images(config, loaded)
    typer.echo(f"{len(training)} images train, {len(judging)} judge", err=True)
    network = loaded.model.to(torch_device(device))
    found = None if plan is None else Plan.load(plan / "plan.json" if plan.is_dir() else plan, model_name=loaded.name)
    if found is not None:
        mended = repair_for(config, network, found, training, tracker())
        for line in [] if mended is None else in_words(mended):
            typer.echo(line, err=True)
        network = Slimmer(network, noise(network, 2, loaded.preprocess)).slim(found, mended)
    judge = Loader(judging, batch_size, workers)
    done = train(
        network,
        ShuffledLoader(training, batch_size, workers, seed, flip),
        judge,
        epochs=epochs,
        optimizer=optimizer,
        scheduler=scheduler,
        lr=lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        label_smoothing=label_smoothing,
        seed=seed,
        state=out.with_name(f"{out.name}.state"),
        progress=tracker(),
        say=lambda line: typer.echo(line, err=True),
    )
    save(network, out, plan=found)
    typer.echo(f"accuracy: {done.epochs[0].accuracy:.2%} -> {done.accuracy:.2%}, after epoch {done.best} of {epochs}")
    typer.echo(str(out))


def _images(config: RunConfig, loaded: LoadedModel) -> tuple[Images, Images]:
    """Images that train and images that judge: of a folder each, or a tenth of each class of one."""
    from .data import split
    from .selection import scoring, scoring_and_judging

    if config.val is not None or config.data == "demo":
        return scoring_and_judging(config, loaded)
    every = scoring(config, loaded)
    count = config.eval_samples_per_class or max(1, min(50, min(Counter(every.labels).values()) // 10))
    judging, training = split(every, reference_per_class=count, seed=config.seed)
    return training, judging
