"""What a run is asked to do, checked before anything is loaded."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from .criteria.registry import check_classes, check_options
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
    repair : what makes up for the units removed, see :func:`pxp_fast.repair`; from the images that score.
    repair_images : images to repair with at most.
    slim : cut out of the network what the plan removes, and measure what that saves; else it has masks alone.
    units : kinds that may be removed, none: all; with "removable" only what can be cut out alone, with "coupled"
        also what can be cut out together.
    coupling : how the scores of what is cut out together become one.
    rate : the fraction of the units that the plan removes, in [0, 1), where there is no budget.
    budget_params, budget_flops : what is to be left at most, a fraction or a number, see :func:`pxp_fast.plan_for`.
    budget_latency : the same, in milliseconds or with a % sign, for `batch` images at a time.
    max_drop : how much lower the accuracy on the images that judge may be.
    steps : how many times to score and remove a part.
    round_to : channels whose multiples layers keep, "auto": what hardware likes.
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
    seed: int = Field(0, ge=0, lt=2**63)
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
    units: tuple[Literal["filter", "neuron", "head", "removable", "coupled"], ...] = ()
    coupling: Literal["mean", "sum", "max"] = "mean"
    rate: float = Field(0.3, ge=0, lt=1)
    budget_params: float | None = Field(None, gt=0)
    budget_flops: float | None = Field(None, gt=0)
    budget_latency: Annotated[str, Field(pattern=r"^\d*\.?\d+(%|ms)?$")] | None = None
    batch: int = Field(1, ge=1)
    max_drop: float | None = Field(None, ge=0, lt=1)
    steps: int = Field(1, ge=1)
    round_to: Annotated[int, Field(ge=1)] | Literal["auto"] | None = None
    scope: Literal["kind", "global", "layer", "isomorphic"] = "kind"
    order: Literal["least", "most", "random"] = "least"
    magnitude: bool = True
    absolute: Literal["pxp", "token", "sample"] = "pxp"
    repair: Literal["none", "mean", "ridge"] = "none"
    repair_images: int = Field(512, ge=1)
    slim: bool = True
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

    @field_validator("keep_classes", "forget_classes")
    @classmethod
    def _classes_can_be_told_apart(cls, value: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        asked = info.data
        if not value or "criterion" not in asked:
            return value
        if both := sorted(set(value) & set(asked.get("keep_classes", ()))):
            raise ValueError(f"classes {both} are both to be kept and to be forgotten; choose one")
        if asked.get("until_stable"):
            raise ValueError("--until-stable watches the plan from all classes; leave it out, or plan by classes later")
        check_classes(asked["criterion"], asked.get("criterion_options", {}))
        return value

    @field_validator("slim")
    @classmethod
    def _repaired_networks_are_slimmed(cls, value: bool, info: ValidationInfo) -> bool:
        if not value and info.data.get("repair", "none") != "none":
            raise ValueError("--repair goes with a network that is made smaller; leave --no-slim or --repair out")
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
    cache : the folder of scores and judgements, which searches may share; None: in `out`.
    """

    verb: ClassVar[str] = "tune"

    out: Path = Path("tune")
    samples_per_class: int = Field(20, ge=0)
    batch_size: int = Field(128, ge=1)
    held_out_samples_per_class: int | None = Field(None, ge=1)
    trials: int = Field(40, ge=1)
    units: tuple[Literal["filter", "neuron", "head"], ...] = ()
    objective: str = "a-pr"
    sampler: Literal["tpe", "gp", "random"] = "tpe"
    space: Path | None = None
    cache: Path | None = None
