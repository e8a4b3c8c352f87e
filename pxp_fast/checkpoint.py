"""Saved models: a folder of tensors and JSON from which a slimmed model is built again, without running what it holds.

The folder is laid out as the Hugging Face Hub expects: ``model.safetensors``, ``pxp.json``, ``README.md``, and for a
model of timm ``config.json``.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from . import hub, models
from .checkpoint_record import RECORD, WEIGHTS, CheckpointRecord, WeightsFile, other_versions, read_weights, versions
from .decode import Preprocess
from .errors import CheckpointError, ModelError
from .evaluate import Evaluation
from .folders import atomic_folder, previous
from .origin import Origin
from .plan import Plan
from .results import Hits
from .slimming.compare import difference, tolerance
from .slimming.rebuild import compare, named_tensors, take_over
from .weights import fingerprint

FILES = frozenset({RECORD, WEIGHTS, hub.CONFIG, hub.CARD})
_LIBRARIES = ("timm", "torchvision", "demo")
# Arguments that make a constructor read or download weights, which are the checkpoint's own.
_READING = {"pretrained", "weights", "weights_backbone", "checkpoint_path", "cache_dir", "pretrained_cfg",
            "pretrained_cfg_overlay"}  # fmt: skip
_COMPLAINTS = (RuntimeError, ValueError, AssertionError, TypeError, IndexError)


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    preprocess: Preprocess | None = None,
    example: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    accuracy: Mapping[str, Evaluation | Hits] | None = None,
) -> Path:
    """Save a model, slimmed, masked or as it is, to a folder that :func:`load` builds it from again.

    The folder is written beside its place, read again and compared before it takes it, so that an interruption leaves
    what was there.

    Parameters
    ----------
    model
        Of timm, torchvision, the demo or a callable of yours; any dtype.
    path
        The folder; an earlier saved model there is replaced.
    plan
        What was removed from it.
    name, arguments
        Its constructor, as :func:`pxp_fast.models.load` knows it, and what it was called with. Default: what it was
        loaded by, the plan's model, or what a model of timm says of itself.
    preprocess
        How an image becomes its input. Default: its constructor's.
    example
        Images ``[N, C, H, W]`` on which the model and what is read again are compared. Default: noise of the size that
        `preprocess` tells.
    class_names
        Of the logits.
    accuracy
        What was measured, by names such as "unpruned" and "slimmed".

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    CheckpointError
        The constructor is not known or makes something else, or what was read again computes something else.
    OutputError
        The folder cannot be written, or holds other things.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    origin = _origin(model, plan, name, arguments, preprocess, class_names)
    fresh, usual = _build(origin.name, origin.arguments)
    origin = dataclasses.replace(origin, preprocess=_fitted(origin.preprocess or usual, example))
    changes, tensors = compare(fresh, model)
    with atomic_folder(path, FILES) as folder:
        save_file({key: t.cpu().contiguous().clone() for key, t in tensors.items()}, folder / WEIGHTS, {"format": "pt"})
        record = CheckpointRecord(
            architecture=origin.name,
            arguments=origin.arguments,
            changes=changes,
            weights=WeightsFile(size=(folder / WEIGHTS).stat().st_size, sha256=fingerprint(folder / WEIGHTS)),
            preprocess=origin.preprocess,
            class_names=origin.class_names,
            source=origin.weights,
            source_sha256=origin.weights_sha256,
            plans=origin.plans,
            slim=getattr(model, "pxp_slim", None),
            accuracy={key: Hits(correct=one.correct, total=one.total) for key, one in (accuracy or {}).items()},
            versions=versions(),
        )
        record.save(folder / RECORD)
        hub.write(folder, model, record)
        _refuse_other(model, load(folder, trust=True), example, origin.preprocess)
    return Path(path)


def load(path: str | os.PathLike[str], *, trust: bool = False) -> nn.Module:
    """Build a model that :func:`save` saved, in evaluation mode, on the CPU.

    Nothing is unpickled. Its attribute ``pxp_origin`` (:class:`pxp_fast.origin.Origin`) says where it comes from, and
    ``pxp_slim`` what slimming did.

    Parameters
    ----------
    path
        The folder.
    trust
        Whether a constructor that is neither timm's nor torchvision's nor the demo's may be imported and called: it is
        code, which the folder merely names.

    Raises
    ------
    CheckpointError
        The folder is damaged, was made by a later version, does not fit the libraries here, or asks for trust.
    """
    folder = Path(path)
    if not folder.exists() and (before := previous(folder.resolve())).exists():
        raise CheckpointError(f"there is no saved model {folder}, but {before}: a save was interrupted; rename it")
    record = CheckpointRecord.load(folder)
    tensors = read_weights(folder / WEIGHTS, record.weights)
    source = record.architecture.partition(":")[0]
    if source not in _LIBRARIES and not trust:
        raise CheckpointError(
            f"{folder} is built by {record.architecture}, code that is not pxp_fast's; if you trust it, say so: "
            "load(..., trust=True), or --checkpoint-kwargs '{\"trust\": true}'"
        )
    try:
        model, _ = _build(record.architecture, record.arguments)
    except (ModelError, CheckpointError) as error:
        raise CheckpointError(f"{folder} cannot be built here ({error}){other_versions(record)}") from error
    try:
        _refuse_misfit(model, record, tensors)
        take_over(model, record.changes, tensors)
        _run(model.eval(), record.preprocess)
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder} does not fit {record.architecture}: {error}{other_versions(record)}"
        ) from error
    model.pxp_origin = Origin(
        record.architecture, record.arguments, record.preprocess, record.source, record.source_sha256, record.plans,
        record.class_names,
    )  # fmt: skip
    if record.slim is not None:
        model.pxp_slim = record.slim
    return model


def noise(model: nn.Module, count: int, preprocess: Preprocess) -> Tensor:
    """Random images ``[count, C, H, W]`` of the size, dtype and device that a model takes, always the same."""
    like = next((t for t in model.parameters() if t.is_floating_point()), torch.empty(0))
    noise = torch.randn(count, *preprocess.input_size, generator=torch.Generator().manual_seed(0))
    return noise.to(like.device, like.dtype)


def _origin(
    model: nn.Module,
    plan: Plan | None,
    name: str | None,
    arguments: Mapping[str, Any] | None,
    preprocess: Preprocess | None,
    class_names: Sequence[str] | None,
) -> Origin:
    """How the model is built, as far as it can be known."""
    known = getattr(model, "pxp_origin", None)
    config = getattr(model, "pretrained_cfg", None)
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if name is None and known is not None:
        name = known.name
    if name is None and plan is not None and ":" in plan.model and not plan.model.startswith("pxp:"):
        name = plan.model
    if (name is None or name.startswith(("timm:hf-hub:", "timm:local-dir:"))) and architecture:
        name = f"timm:{architecture}"
    if name is None:
        raise CheckpointError(
            f"nothing says how this {type(model).__name__} is built; give name='timm:NAME', 'torchvision:NAME' or "
            "'MODULE:CALLABLE', and the constructor's arguments"
        )
    known = known if known is not None and known.name == name else Origin(name, {}, None)
    if arguments is None:
        remembered = known.arguments or hub.arguments_of(model)
        arguments = {key: value for key, value in remembered.items() if key not in _READING}
    try:
        arguments = json.loads(json.dumps(dict(arguments)))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the arguments of {name} cannot be written as JSON ({error}); give arguments= of numbers, words and lists"
        ) from error
    plans = known.plans if plan is None or plan in known.plans[-1:] else (*known.plans, plan)
    names = known.class_names if class_names is None else tuple(class_names)
    return dataclasses.replace(
        known, name=name, arguments=arguments, preprocess=preprocess or known.preprocess, plans=plans, class_names=names
    )


def _build(name: str, arguments: Mapping[str, Any]) -> tuple[nn.Module, Preprocess]:
    """The model as its constructor makes it; random numbers elsewhere stay what they would have been."""
    source, _, rest = name.partition(":")
    if not source or not rest or source == "pxp" or (source in _LIBRARIES and ":" in rest):
        raise CheckpointError(f"{name!r} names no constructor; expected timm:NAME, torchvision:NAME or MODULE:CALLABLE")
    if source in _LIBRARIES and (reading := sorted(_READING & set(arguments))):
        raise CheckpointError(
            f"the argument {reading[0]} of {name} is about weights, which are saved apart; leave it out"
        )
    with torch.random.fork_rng(devices=[]):
        model, preprocess = models.build(name, dict(arguments))
    return (model if source in _LIBRARIES else copy.deepcopy(model)), preprocess


def _fitted(preprocess: Preprocess, example: Tensor | None) -> Preprocess:
    """The preprocessing for images of the example's size, if that is another one."""
    if example is None or tuple(example.shape[1:]) == tuple(preprocess.input_size):
        return preprocess
    channels, *plane = example.shape[1:]
    if channels != preprocess.input_size[0]:
        raise CheckpointError(
            f"the example's images have {channels} channels, the model's {preprocess.input_size[0]}; give preprocess="
        )
    resize = preprocess.resize and round(preprocess.resize * min(plane) / min(preprocess.input_size[1:]))
    return dataclasses.replace(preprocess, input_size=(channels, *plane), resize=resize)


def _refuse_misfit(fresh: nn.Module, record: CheckpointRecord, tensors: Mapping[str, Tensor]) -> None:
    """Raise where the names or shapes of the tensors are not those that the record promises."""
    changes = record.changes
    usual = {name: tuple(tensor.shape) for name, tensor in named_tensors(fresh).items()}
    inside = tuple(f"{name}." for name, kind in changes.classes.items() if kind == "torch.nn.Identity")
    expected = {n: s for n, s in usual.items() if n not in changes.absent and not (inside and n.startswith(inside))}
    expected |= changes.shapes
    left_out = set(expected) - set(fresh.state_dict()) - set(changes.shapes)
    if missing := [name for name in expected if name not in tensors and name not in left_out]:
        raise CheckpointError(f"there is no tensor {missing[0]} ({len(missing)} missing)")
    if unknown := [name for name in tensors if name not in expected]:
        raise CheckpointError(f"there is a tensor {unknown[0]} that the model has no place for ({len(unknown)} such)")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(expected[name]):
            raise CheckpointError(f"{name} is {list(tensor.shape)}, expected {list(expected[name])}")


def _run(model: nn.Module, preprocess: Preprocess) -> None:
    """Raise where the parts do not fit each other, by the logits of one image."""
    try:
        with torch.inference_mode():
            model(noise(model, 1, preprocess))
    except _COMPLAINTS as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"its parts do not fit each other or images of {preprocess.input_size}: {reason}"
        ) from error


def _refuse_other(model: nn.Module, again: nn.Module, example: Tensor | None, preprocess: Preprocess) -> None:
    """Raise where what was read again does not compute what the model does."""
    like = next((t for t in model.parameters() if t.is_floating_point()), torch.empty(0))
    images = noise(again, 2, preprocess) if example is None else example
    images = images.to(like.device, like.dtype)
    error = difference(model, again.to(like.device), images)
    if error > tolerance(like.dtype):
        raise CheckpointError(
            f"read again, the {type(model).__name__} computes something else (logits differ by {error:.1e} of the "
            "largest): it holds what neither its tensors nor its constructor tell; nothing was saved"
        )
