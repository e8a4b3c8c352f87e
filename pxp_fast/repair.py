"""Repair without training: the layers that read what a plan removes are changed so that they miss it least."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .errors import DataError, PxpError
from .lrp import capture
from .lrp.graph import Captured, argument
from .masks import apply_mask, masked_tensors
from .plan import Plan
from .progress import Track, silent
from .slimming.masked import with_parameters
from .slimming.patches import by_position, chunks, patches
from .slimming.readers import LeftAlone, Reader, readers
from .slimming.regression import Regression
from .slimming.side_by_side import SideBySide, output

METHODS = ("none", "mean", "ridge")
STRENGTH = 1e-2
IMAGES = 512
MEMORY = 2 << 30


@dataclasses.dataclass(frozen=True)
class RepairedLayer:
    """How far one layer's outputs are from the unpruned network's.

    Attributes
    ----------
    name
        The layer's module.
    before, after
        The root of the mean squared difference over the images, relative to the outputs' standard deviation; by
        ``"ridge"`` with the layers before already repaired, by ``"mean"`` with these as they were.
    """

    name: str
    before: float
    after: float


@dataclasses.dataclass(frozen=True)
class Repair:
    """What repairs a model under a plan's masks.

    Attributes
    ----------
    plan, method, strength
        As given to :func:`repair`.
    images
        How many were used.
    tensors
        The parameters and running means that change, by name; biases among them that the model does not have yet.
    layers
        In execution order.
    left
        Layers that read what is removed but could not be changed, and why.
    """

    plan: Plan
    method: str
    strength: float
    images: int
    tensors: dict[str, Tensor]
    layers: tuple[RepairedLayer, ...]
    left: tuple[LeftAlone, ...]

    @torch.no_grad()
    def apply(self, model: nn.Module) -> None:
        """Mask and repair the model for good.

        Raises
        ------
        PlanError
            The plan is for another model.
        """
        apply_mask(model, self.plan)
        found = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        for name, value in self.tensors.items():
            if name in found:
                found[name].copy_(value)
                continue
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            weight = module.weight
            setattr(module, attribute, nn.Parameter(value.to(weight), requires_grad=weight.requires_grad))

    def repaired(self, model: nn.Module) -> nn.Module:
        """A masked and repaired copy of the model."""
        model = copy.deepcopy(model)
        self.apply(model)
        return model


@torch.no_grad()
def repair(
    model: nn.Module,
    plan: Plan,
    images: Iterable,
    method: str = "ridge",
    *,
    strength: float = STRENGTH,
    count: int = IMAGES,
    memory: int = MEMORY,
    captured: Captured | None = None,
    progress: Track | None = None,
) -> Repair:
    """Change what is left of a model under a plan's masks so that it misses least what is gone. No labels, no training.

    ``"mean"`` adds to each layer that reads removed units what these gave it on average in the unpruned model.

    ``"ridge"`` goes through all layers whose input the masks change, in execution order, with what comes before already
    repaired, and refits the weights and the bias in closed form: so that from the inputs left the layer yields what the
    unpruned model's layer yields. The change ``D`` of the weights minimises
    ``|lacking - inputs D|^2 + strength * v |D|^2``, where ``v`` is the mean over columns of the sum of squared inputs
    about their mean, so nothing is worse than before on the images given. Weights of what is removed stay as they are.

    Parameters
    ----------
    model
        A classifier; read, never changed. It runs where its parameters are.
    plan
        Made for it, by whatever criterion.
    images
        Batches ``[N, C, H, W]``, or pairs of these and labels, which nobody looks at.
    method
        ``"none"``, ``"mean"`` or ``"ridge"``.
    strength
        Of the ridge.
    count
        Take no more images than this; they are held in memory.
    memory
        Bytes of activations to hold between two layers. With too little, early layers are computed again.
    captured
        The model's capture, where there is one already.
    progress
        ``track(iterable, description, total)``; None: silent.

    Raises
    ------
    PxpError
        There is no such method, or the strength is negative.
    PlanError
        The plan is for another model.
    DataError
        There are no images.
    CaptureError
        The model's graph cannot be captured.
    """
    if method not in METHODS:
        raise PxpError(f"repair is {method!r}; choose one of {', '.join(METHODS)}")
    if not strength >= 0:
        raise PxpError(f"the repair's strength is {strength}; it must not be negative, such as {STRENGTH}")
    if method == "none":
        return Repair(plan, method, strength, 0, {}, (), ())
    batches = _first(images, count)
    whole = captured or capture(model, batches[0])
    device, dtype = _place(whole)
    batches = [batch.to(device, dtype) for batch in batches]
    masked = with_parameters(whole, masked_tensors(model, plan))
    ridge = method == "ridge"
    pair = SideBySide(whole, masked if ridge else whole, batches, memory)
    tensors: dict[str, Tensor] = {}
    layers, left = [], []
    found = list(readers(model, whole, masked))
    for reader in (progress or silent)(found, f"repairing ({method})", len(found)):
        if isinstance(reader, LeftAlone):
            left.append(reader)
            continue
        if not ridge and not reader.loses:
            continue
        layer, weight, shift = _fitted(reader, pair, whole, masked, strength if ridge else None)
        layers.append(layer)
        tensors |= _changes(reader, model, pair, masked, weight, shift)
    return Repair(plan, method, strength, sum(map(len, batches)), tensors, tuple(layers), tuple(dict.fromkeys(left)))


def _fitted(
    reader: Reader, pair: SideBySide, whole: Captured, masked: Captured, strength: float | None
) -> tuple[RepairedLayer, Tensor, Tensor]:
    """How well a layer can be repaired, its weight, and the shift of its outputs ``[O]``; no strength: by a shift."""
    node, weight = reader.node, masked.constants[reader.node.args[1]]
    columns = [group.nonzero().flatten() for group in reader.columns]
    rows = [group.nonzero().flatten() for group in reader.rows.view(reader.groups, -1)]
    fits = [Regression(0 if strength is None else len(group) * weight[0, 0].numel()) for group in columns]
    spread = Regression(0)
    for before, after in pair.until(node):
        source = after if strength is not None else reader.without(before)
        wanted, found = output(node, whole, before), output(node, masked, source)
        for part, *outputs in chunks(weight, source, wanted, found):
            target, reached = (by_position(node, one).unflatten(1, (reader.groups, -1)) for one in outputs)
            for group, fit in enumerate(fits):
                shown = patches(node, weight, part, group, columns[group]) if fit.columns else None
                fit.add(shown, (target - reached)[:, group].index_select(1, rows[group]))
            spread.add(None, target.flatten(1)[:, reader.rows])
    weight, shift = weight.to(torch.float64, copy=True), weight.new_zeros(len(weight), dtype=torch.float64)
    was = now = 0.0
    for group, fit in enumerate(fits):
        change, intercept, before, after = fit.solve(strength or 0.0)
        places = rows[group] + group * (len(weight) // reader.groups)
        if fit.columns:
            weight[places[:, None], columns[group]] += change.unflatten(1, (-1, *weight.shape[2:]))
        shift[places] = intercept
        was, now = was + float(before.sum()), now + float(after.sum())
    scale = float(spread.solve(0.0)[3].sum()) or 1.0
    return RepairedLayer(reader.name, (was / scale) ** 0.5, (now / scale) ** 0.5), weight, shift


def _changes(
    reader: Reader, model: nn.Module, pair: SideBySide, masked: Captured, weight: Tensor, shift: Tensor
) -> dict[str, Tensor]:
    """The tensors of the model that a repaired layer changes; the pair goes on with them."""
    bias = argument(reader.node, "bias")
    held = masked.constants[bias].double() if bias is not None else 0.0
    dtype = masked.constants[reader.node.args[1]].dtype
    weight, bias = weight.to(dtype), (held + shift).to(dtype)
    changed = {reader.bias: bias}
    if pair.masked is masked:  # the layers after it are to get what it yields now
        pair.replace(reader.node, weight, bias)
        changed[reader.weight] = weight
    if reader.subtracted:
        mean = model.get_buffer(reader.bias)
        changed[reader.bias] = (mean.double() - shift).to(mean.dtype)
    return changed


def _first(images: Iterable, count: int) -> list[Tensor]:
    """The first `count` images, in the batches that they come in."""
    if isinstance(images, Tensor):
        images = images.split(32)
    if count < 1:
        raise DataError(f"{count} images are to repair with; give at least 1, such as {IMAGES}")
    batches: list[Tensor] = []
    for batch in images:
        batch = batch if isinstance(batch, Tensor) else batch[0]
        batches.append(batch[:count])
        count -= len(batches[-1])
        if not count:
            break
    if not any(map(len, batches)):
        raise DataError("there are no images to repair with; check the folder and the classes chosen")
    return [batch for batch in batches if len(batch)]


def _place(captured: Captured) -> tuple[torch.device, torch.dtype]:
    like = next(captured.constants[node] for node in captured.parameters)
    return like.device, captured.images.meta["val"].dtype
