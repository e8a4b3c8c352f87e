"""Whether a slimmed model computes what the masked one does, and where it first does not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..lrp.capture import evaluating
from ..lrp.fold import LINEAR
from .removal import Removal

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
_COARSE = 2e-2  # in half precision


@torch.no_grad()
def difference(masked: nn.Module, small: nn.Module, images: Tensor) -> float:
    """The largest difference of two models' logits, relative to the largest logit; infinite where one is not finite."""
    with evaluating(masked), evaluating(small):
        expected, found = masked(images), small(images)
    return _error(expected, found)


@torch.no_grad()
def problem(masked: nn.Module, small: nn.Module, removal: Removal, images: Tensor) -> str:
    """What is wrong with a slimmed model, by the first layer that differs."""
    reason = ""
    watched = _outputs(masked, removal), _outputs(small, removal)
    with watched[0] as expected, watched[1] as found, evaluating(masked), evaluating(small):
        masked(images)
        try:
            small(images)
        except (RuntimeError, ValueError, AssertionError, TypeError) as error:
            reason = f": {str(error).splitlines()[0]}"
    for layer in removal.coupling.labels.layers:
        name = _module(removal, layer)
        if name not in expected:  # called as a function of its weights, or in a block that does nothing
            continue
        if name not in found:
            return f"{name} is not reached{reason}"
        kept = (~removal.gone(layer.outputs)).nonzero().flatten().to(images.device)
        wanted = expected[name].index_select(-1 if layer.node.target is LINEAR else 1, kept)
        error = _error(wanted, found[name])
        if error > tolerance(images.dtype):
            return f"{name} differs by {error:.1e} of its largest value{reason}"
    return f"every layer agrees, but not the logits{reason}"


def tolerance(dtype: torch.dtype) -> float:
    """How far logits may be apart, of the largest of them."""
    return TOLERANCE.get(dtype, _COARSE)


def _error(expected: Tensor, found: Tensor) -> float:
    if expected.shape != found.shape:
        return float("inf")
    error = float((found - expected).abs().max()) / (float(expected.abs().max()) or 1.0)
    return error if error == error else float("inf")


def _module(removal: Removal, layer) -> str:
    return removal.captured.parameters[layer.weight].rpartition(".")[0]


@contextlib.contextmanager
def _outputs(model: nn.Module, removal: Removal) -> Iterator[dict[str, Tensor]]:
    """What each layer's module yields while the model runs in the block, by its name; the first call of each."""
    found: dict[str, Tensor] = {}
    handles = []
    names = dict.fromkeys(_module(removal, layer) for layer in removal.coupling.labels.layers)
    for name in (name for name in names if not removal.skips(name)):

        def look(module: nn.Module, args: tuple, value: object, name: str = name) -> None:
            if isinstance(value, Tensor):
                found.setdefault(name, value)

        handles.append(model.get_submodule(name).register_forward_hook(look))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
