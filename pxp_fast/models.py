"""Networks by name: timm, torchvision, your own callable, or the embedded demo.

``load("timm:vit_base_patch16_224", weights="vit.safetensors")`` gives the network in evaluation mode together with what
its images must look like.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .decode import Preprocess
from .errors import ModelError, PxpError
from .origin import Origin
from .weights import fingerprint, load_weights, refuse_non_finite


@dataclass(frozen=True)
class LoadedModel:
    """A network in evaluation mode and what belongs to it.

    Parameters
    ----------
    model : the classifier; images [N, C, H, W] in, logits [N, num_classes] out.
    name : the specification it was loaded by, which scores and plans carry.
    preprocess : how an image becomes its input.
    num_classes : length of a row of logits.
    weights : "random", "pretrained", "as built" (a callable decided), "saved" (by :func:`pxp_fast.save`) or the
        checkpoint's path.
    weights_sha256 : of the checkpoint file, None without one.
    """

    model: nn.Module
    name: str
    preprocess: Preprocess
    num_classes: int
    weights: str
    weights_sha256: str | None = None

    @property
    def input_size(self) -> tuple[int, int, int]:
        return self.preprocess.input_size

    @property
    def mean(self) -> tuple[float, ...]:
        return self.preprocess.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.preprocess.std

    @property
    def interpolation(self) -> str:
        return self.preprocess.interpolation


def load(
    spec: str, *, weights: str | os.PathLike[str] | None = None, checkpoint_kwargs: Mapping[str, Any] | None = None
) -> LoadedModel:
    """Build the network that `spec` names and load its weights.

    Parameters
    ----------
    spec : ``timm:NAME``, ``torchvision:NAME``, ``MODULE:CALLABLE`` (importable from the current folder; returns an
        ``nn.Module``, which may carry a dictionary ``pxp_input`` with input_size, mean, std, interpolation, crop_pct),
        ``demo:vgg``, ``demo:resnet``, ``demo:vit``, or ``pxp:FOLDER``, what :func:`pxp_fast.save` left there.
    weights : a safetensors file or a state dict; "pretrained" downloads the library's own (timm, torchvision); None
        leaves a timm or torchvision network at random weights.
    checkpoint_kwargs : arguments for the network's constructor, such as ``{"num_classes": 10}``; for ``pxp:FOLDER``
        ``{"trust": True}``, which lets a checkpoint call the constructor that it names in a module of yours.

    Raises
    ------
    ModelError
        Unknown name, missing library, a constructor that fails, weights that do not fit or are not finite, or an
        output that is not [N, classes].
    """
    source, separator, name = str(spec).partition(":")
    if not separator or not source or not name:
        raise ModelError(
            f"model {spec!r} is not understood; write timm:NAME, torchvision:NAME, MODULE:CALLABLE, demo:vgg or "
            "pxp:FOLDER"
        )
    arguments = dict(checkpoint_kwargs or {})
    pretrained = weights == "pretrained"
    model, preprocess = build(spec, arguments, pretrained)
    label, digest = {"timm": "random", "torchvision": "random", "pxp": "saved"}.get(source, "as built"), None
    if source == "pxp":
        digest = model.pxp_origin.weights_sha256
    if pretrained:
        label = "pretrained"
    elif weights is not None:
        load_weights(model, weights)
        label, digest = str(weights), fingerprint(weights)
    refuse_non_finite(model, spec)
    model = model.eval()
    if source != "pxp":
        model.pxp_origin = Origin(str(spec), arguments, preprocess, label, digest)
    return LoadedModel(model, str(spec), preprocess, _count_classes(model, preprocess, spec), label, digest)


def build(spec: str, arguments: dict[str, Any], pretrained: bool = False) -> tuple[nn.Module, Preprocess]:
    """Build the network that `spec` names, with weights of its own or its library's, and say what its images are."""
    source, _, name = spec.partition(":")
    builders: dict[str, Callable[..., tuple[nn.Module, Preprocess]]] = {
        "timm": _timm,
        "torchvision": _torchvision,
        "demo": _demo,
        "pxp": _saved,
    }
    return builders.get(source, _callable)(spec, name, arguments, pretrained)


def _timm(spec: str, name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[nn.Module, Preprocess]:
    timm = _import_extra("timm", spec)
    if not name.startswith(("hf-hub:", "local-dir:")) and not timm.is_model(name):
        raise ModelError(_unknown(spec, name.split(".")[0], timm.list_models(), "timm.list_models()"))
    model = _construct(spec, timm.create_model, name, pretrained=pretrained, **arguments)
    config = timm.data.resolve_model_data_config(model)
    channels, *plane = config["input_size"]
    if (size := arguments.get("img_size")) is not None:
        plane = [size, size] if isinstance(size, int) else list(size)
    mean, std = config["mean"], config["std"]
    if arguments.get("in_chans", channels) != channels:  # timm's configuration goes on describing the colour network
        channels = arguments["in_chans"]
        mean, std = [sum(mean) / len(mean)] * channels, [sum(std) / len(std)] * channels
    preprocess = Preprocess.from_crop_fraction(
        (channels, *plane),
        config["crop_pct"],
        mean=tuple(mean),
        std=tuple(std),
        interpolation=config["interpolation"],
        squash=config["crop_mode"] == "squash",
    )
    return model, preprocess


def _torchvision(spec: str, name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[nn.Module, Preprocess]:
    models = _import_extra("torchvision", spec).models
    if name not in models.list_models():
        raise ModelError(_unknown(spec, name, models.list_models(), "torchvision.models.list_models()"))
    model = _construct(spec, models.get_model, name, weights="DEFAULT" if pretrained else None, **arguments)
    try:
        transform = models.get_model_weights(name).DEFAULT.transforms()
        crop, resize = transform.crop_size[0], transform.resize_size[0]
    except (ValueError, AttributeError):  # no published weights, or weights of something that is no classifier
        return model, Preprocess((3, 224, 224), resize=256)
    preprocess = Preprocess(
        (3, crop, crop),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        resize=resize,
    )
    return model, preprocess


def _demo(spec: str, name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[nn.Module, Preprocess]:
    from . import demo

    if name not in demo.NETWORKS:
        raise ModelError(_unknown(spec, name, demo.NETWORKS, "demo:" + ", demo:".join(demo.NETWORKS)))
    if arguments:
        raise ModelError(f"{spec}: the embedded networks take no --checkpoint-kwargs; leave {sorted(arguments)} out")
    return demo.network(name), Preprocess(demo.INPUT_SIZE, mean=demo.MEAN, std=demo.STD)


def _saved(spec: str, name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[nn.Module, Preprocess]:
    from . import checkpoint

    if pretrained or set(arguments) - {"trust"}:
        raise ModelError(
            f"{spec} has its weights and arguments; leave --weights pretrained and --checkpoint-kwargs out"
        )
    model = checkpoint.load(name, trust=bool(arguments.get("trust")))
    return model, model.pxp_origin.preprocess


def _callable(spec: str, name: str, arguments: dict[str, Any], pretrained: bool) -> tuple[nn.Module, Preprocess]:
    source = spec.partition(":")[0]
    if pretrained:
        raise ModelError(
            f"{spec}: --weights pretrained is for timm: and torchvision:; give a file, or load it yourself"
        )
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(source)
    except Exception as error:  # whatever the user's module raises is the user's to see, in one line
        raise ModelError(
            f"{spec}: cannot import {source!r} ({type(error).__name__}: {error}); "
            f"it must be importable from {os.getcwd()}"
        ) from error
    for part in name.split("."):
        if not hasattr(target, part):
            raise ModelError(
                f"{spec}: {source!r} has no {name!r}; it has {_some(n for n in dir(target) if n[0] != '_')}"
            )
        target = getattr(target, part)
    model = target if isinstance(target, nn.Module) else _construct(spec, target, **arguments)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} returned a {type(model).__name__}; it must return a torch.nn.Module")
    info = getattr(model, "pxp_input", None) or getattr(target, "pxp_input", None)
    return model, _declared(spec, info)


def _declared(spec: str, info: Mapping[str, Any] | None) -> Preprocess:
    """The preprocessing a callable's ``pxp_input`` asks for; ImageNet's where it says nothing."""
    values = dict(info or {})
    size = tuple(values.pop("input_size", (3, 224, 224)))
    fraction = values.pop("crop_pct", 0.875)
    allowed = {"mean", "std", "interpolation", "resize", "squash"}
    if unknown := sorted(set(values) - allowed):
        raise ModelError(
            f"{spec}: pxp_input has {', '.join(unknown)}; it may hold input_size, crop_pct, "
            f"{', '.join(sorted(allowed))}"
        )
    if "mean" not in values and len(size) == 3 and size[0] == 1:
        values |= {"mean": (0.5,), "std": (0.5,)}
    for key in ("mean", "std"):
        if key in values:
            values[key] = tuple(values[key])
    if "resize" in values:
        return Preprocess(size, **values)
    return Preprocess.from_crop_fraction(size, fraction, **values)


def _construct(spec: str, build: Any, *positional: Any, **arguments: Any) -> nn.Module:
    if not callable(build):
        raise ModelError(f"{spec} is a {type(build).__name__}; name a callable that returns a torch.nn.Module")
    try:
        return build(*positional, **arguments)
    except PxpError:
        raise
    except Exception as error:  # a constructor may raise anything; the reader needs its words, not our traceback
        raise ModelError(f"{spec}: building the network failed with {type(error).__name__}: {error}") from error


def _count_classes(model: nn.Module, preprocess: Preprocess, spec: str) -> int:
    """Length of a row of logits, found by asking the network."""
    size = tuple(preprocess.input_size)
    parameter = next(model.parameters(), torch.empty(0))
    try:
        with torch.inference_mode():
            output = model(torch.zeros(2, *size, dtype=parameter.dtype, device=parameter.device))
    except Exception as error:  # any operator may refuse the shape, in its own words
        raise ModelError(f"{spec} does not accept images of size {size}: {type(error).__name__}: {error}") from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or output.shape[0] != 2:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ModelError(f"{spec} returns {found} for two images; a classifier returns logits [2, classes]")
    return output.shape[1]


def _import_extra(name: str, spec: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ModelError(f"{spec} needs {name} ({error}); install it with: pip install 'pxp_fast[models]'") from error


def _unknown(spec: str, name: str, known: Any, listing: str) -> str:
    close = difflib.get_close_matches(name, list(known), n=3)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    return f"model {spec!r} is unknown; {hint}All names: {listing}"


def _some(names: Any, limit: int = 8) -> str:
    names = list(names)
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")
