"""Reading a checkpoint into a network: no code in the file is run, and what does not fit is named."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from .errors import ModelError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "module")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_NAMED = 5


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load the safetensors file or state dict at `path` into `model`, strictly.

    Wrappers that training scripts leave behind are taken off: an outer dictionary ("state_dict", "model", ...), and a
    prefix that every name carries ("module." of DistributedDataParallel, "_orig_mod." of torch.compile). The counts of
    batches that normalization layers keep may be missing, as in files older than these counts.

    Raises
    ------
    ModelError
        The file is missing, damaged, not a state dict, holds more than tensors, or does not fit the model; the message
        names the first few missing, unexpected and wrongly shaped parameters.
    """
    path = Path(path)
    counts = {name: n for name, n in model.state_dict().items() if name.split(".")[-1] == "num_batches_tracked"}
    state = counts | _fit_names(read_state_dict(path), model)
    _refuse_misfit(state, model, path)
    model.load_state_dict(state, strict=True)


def read_state_dict(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, or of a state dict read with ``weights_only=True``, wrappers taken off."""
    if not path.is_file():
        raise ModelError(f"weights file {path} does not exist or is not a file; check the path given to --weights")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"cannot read {path} as safetensors: {error}; is the file complete?") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises anything at all on a damaged file
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot read {path} as a state dict ({reason}). Only tensors are read, never code: save the weights with "
            "torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    return _unwrap(content, path)


def refuse_non_finite(model: nn.Module, name: str) -> None:
    """Raise ModelError naming the first parameter or buffer of `model` that holds NaN or infinity.

    Buffers other than batch statistics may hold infinities, as attention masks do.
    """
    learned = {key for key, _ in model.named_parameters(remove_duplicate=False)}
    for key, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        what = "parameter" if key in learned else "buffer"
        finite = key in learned or key.split(".")[-1] in ("running_mean", "running_var")
        wrong = ~torch.isfinite(tensor) if finite else torch.isnan(tensor)
        if bad := int(wrong.sum()):
            raise ModelError(
                f"{name}: {what} {key} holds NaN or infinite values ({bad} of {tensor.numel()}); "
                "relevance through it would mean nothing: use a checkpoint whose weights are finite"
            )


def fingerprint(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _unwrap(content: object, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(content, Mapping):
        if content and all(isinstance(value, torch.Tensor) for value in content.values()):
            return {str(key): value for key, value in content.items()}
        inner = next((key for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            found = ", ".join(map(str, list(content)[:_NAMED])) or "nothing"
            raise ModelError(
                f"{path} holds no state dict: found {found}; expected tensors by parameter name, or one of the keys "
                f"{', '.join(_WRAPPERS)}"
            )
        content = content[inner]
    raise ModelError(f"{path} holds a {type(content).__name__}, not a state dict; save model.state_dict() instead")


def _fit_names(state: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Take off a prefix that all names carry, as long as the names do not fit the model as they are."""
    expected = set(model.state_dict())
    while state and not expected & set(state):
        prefix = next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None)
        if prefix is None:
            break
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _refuse_misfit(state: dict[str, torch.Tensor], model: nn.Module, path: Path) -> None:
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    misshapen = [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{len(names)} {label}: {', '.join(names[:_NAMED])}{', ...' if len(names) > _NAMED else ''}"
        for label, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen))
        if names
    ]
    if problems:
        raise ModelError(
            f"weights file {path} does not fit the model. {'; '.join(problems)}. Choose the architecture it was saved "
            "from, or its arguments with --checkpoint-kwargs (for example '{\"num_classes\": 10}')"
        )
