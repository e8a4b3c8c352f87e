"""What a run is asked to do, checked before anything is loaded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from .criteria.registry import check_options
from .lrp.composites import composite as find_composite


class RunConfig(BaseModel):
    """The options of ``pxp-fast run``.

    Parameters
    ----------
    model : as :func:`pxp_fast.models.load` takes it.
    data : a folder with one sub-folder per class, or "demo".
    val : a folder whose images judge; None: the images of `data` that do not score.
    samples_per_class : images of each class that score; 0: all, which needs `val`.
    eval_samples_per_class : images of each class that judge; None: all.
    task_classes : draw so many of the classes at random, by `task_seed`, and use these alone; None: all.
    task_mode : restrict the network to the classes used: "slice" its classifier, or "zero" the other logits; None:
        "slice" with `task_classes`, else leave the network as it is.
    criterion, criterion_options : what units are scored by, as for :func:`pxp_fast.score`.
    per_class : keep the scores of every class as well.
    per_sample : keep the scores of every image as well.
    keep_classes, forget_classes : labels whose scores the plan is made from, see :meth:`pxp_fast.Scores.contrast`.
    until_stable : stop scoring when the plan at these rates no longer changes; none: score all images.
    stable_overlap : the fraction of the units removed that must stay the same for that.
    graph : on a GPU, record the scoring of a batch once and replay it.
    rate : the fraction of the units that the plan removes, in [0, 1).
    random_seeds : random orders that the curve is compared with.
    heatmaps : images to explain before and after the cut.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)
    verb: ClassVar[str] = "run"

    model: str
    data: str
    val: str | None = None
    out: Path = Path("out")
    weights: str | None = None
    checkpoint_kwargs: dict[str, Any] = Field(default_factory=dict)
    samples_per_class: int = Field(10, ge=0)
    eval_samples_per_class: int | None = Field(None, ge=1)
    allow_fewer: bool = False
    classes: tuple[str, ...] = ()
    task_classes: int | None = Field(None, ge=1)
    task_seed: int = Field(0, ge=0)
    task_mode: Literal["slice", "zero"] | None = None
    seed: int = Field(0, ge=0)
    device: str = "auto"
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    exact: bool = False
    initial: Literal["one", "logit", "bounded"] = "bounded"
    per_class: bool = False
    per_sample: bool = False
    until_stable: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    stable_overlap: float = Field(0.95, gt=0, le=1)
    graph: bool = True
    batch_size: int = Field(32, ge=1)
    workers: int | None = Field(None, ge=0)
    criterion: str = "lrp"
    criterion_options: dict[str, Any] = Field(default_factory=dict)
    composite: str = "epsilon"
    keep_classes: tuple[int, ...] = ()
    forget_classes: tuple[int, ...] = ()
    units: tuple[Literal["filter", "neuron", "head"], ...] = ()
    rate: float = Field(0.3, ge=0, lt=1)
    scope: Literal["kind", "global"] = "kind"
    order: Literal["least", "most", "random"] = "least"
    magnitude: bool = True
    absolute: Literal["pxp", "token", "sample"] = "pxp"
    random_seeds: int = Field(5, ge=0)
    heatmaps: int = Field(6, ge=0)

    @field_validator("composite")
    @classmethod
    def _composite_is_known(cls, value: str) -> str:
        find_composite(value)
        return value

    @field_validator("val")
    @classmethod
    def _val_is_no_demo(cls, value: str | None) -> str | None:
        if value == "demo":
            raise ValueError("the demo brings its own judging images; leave --val out")
        return value

    @field_validator("criterion")
    @classmethod
    def _criterion_is_known(cls, value: str) -> str:
        check_options(value, ())
        return value

    @field_validator("criterion_options")
    @classmethod
    def _criterion_has_options(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "criterion" in info.data:
            check_options(info.data["criterion"], value)
        return value

    def command(self) -> str:
        """The command line that asks for this run."""
        words = ["pxp-fast", self.verb, self.model, "--data", self.data]
        defaults = type(self)(model=self.model, data=self.data)
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name in ("model", "data") or value == getattr(defaults, name):
                continue
            option = "--" + name.replace("_", "-")
            if isinstance(value, bool):
                words.append(option if value else f"--no-{option[2:]}")
            elif isinstance(value, dict):
                words += [option, json.dumps(value)]
            else:
                words += [option, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)


class TuneConfig(RunConfig):
    """The options of ``pxp-fast tune``; those of a run that it has no use for keep their defaults.

    Parameters
    ----------
    samples_per_class : images of each class that score.
    eval_samples_per_class : images of each class that judge the trials; None: half of the others, at most 50.
    held_out_samples_per_class : images of each class, besides these, on which the best is compared with epsilon; None:
        all that are left.
    trials : how many there are to be in the end.
    objective, sampler : as :func:`pxp_fast.tune` takes them.
    space : the file of a search space, None: the whole one.
    """

    verb: ClassVar[str] = "tune"

    out: Path = Path("tune")
    samples_per_class: int = Field(20, ge=0)
    batch_size: int = Field(128, ge=1)
    held_out_samples_per_class: int | None = Field(None, ge=1)
    trials: int = Field(40, ge=1)
    objective: str = "a-pr"
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    space: Path | None = None
