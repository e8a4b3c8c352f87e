"""Repair as a step of the commands: which images it takes, and what it says."""

from __future__ import annotations

from torch import nn

from . import progress
from .config import RunConfig
from .data import Images
from .errors import PxpError
from .loader import Loader
from .models import LoadedModel
from .plan import Plan
from .progress import Track
from .repair import Repair, repair
from .selection import interleaved, scoring


def repair_for(config: RunConfig, network: nn.Module, plan: Plan, images: Images, track: Track) -> Repair | None:
    """The repair that `config` asks for, from these images, all classes alike; None: none."""
    if config.repair == "none":
        return None
    loader = Loader(interleaved(images, config.seed), config.batch_size, config.workers)
    return repair(network, plan, loader, config.repair, count=config.repair_images, progress=track)


def repair_with(data: str | None, loaded: LoadedModel, plan: Plan, method: str, count: int) -> Repair | None:
    """A repair from the images of a folder, or of the demo; None: none.

    Raises
    ------
    PxpError
        A repair is asked for, but no images are given.
    """
    if method == "none":
        return None
    if data is None:
        raise PxpError(f"--repair {method} takes images, which need no labels that are right: give --data DIR")
    config = RunConfig(model=loaded.name, data=data, samples_per_class=0, repair=method, repair_images=count)
    return repair_for(config, loaded.model, plan, scoring(config, loaded), progress.tracker())


def in_words(repair: Repair) -> list[str]:
    """What was repaired, in lines for people."""
    way = {"mean": "shifted by what they lack on average", "ridge": "refitted by ridge regression"}[repair.method]
    lines = [f"{len(repair.layers)} layers {way}, on {repair.images} images."]
    if repair.layers:
        before, after = (
            sorted(getattr(layer, when) for layer in repair.layers)[len(repair.layers) // 2]
            for when in ("before", "after")
        )
        lines[0] = f"{lines[0][:-1]}: the median of their errors falls from {before:.2f} to {after:.2f} deviations."
    lines += [f"{left.name} was not repaired: {left.reason}." for left in repair.left]
    return lines
