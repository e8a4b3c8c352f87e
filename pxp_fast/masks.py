"""Masks: a plan applied to a model by zeroing parameters, reversibly or for good."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import ops
from .errors import PlanError
from .plan import Plan


def apply_mask(model: nn.Module, plan: Plan) -> None:
    """Zero the parameters of the plan's units for good, in one call for all layers.

    Raises
    ------
    PlanError
        The model lacks a parameter that the plan names, or has it in another shape; nothing is changed then.
    """
    touched = mask_entries(model, plan)
    with torch.no_grad():
        ops.mask_([t for _, t, _, _ in touched], [k for _, _, k, _ in touched], [d for _, _, _, d in touched])


@torch.no_grad()
def masked_tensors(model: nn.Module, plan: Plan) -> dict[str, Tensor]:
    """Copies of the parameters that the plan masks, with its units' entries zeroed, by name; the model stays."""
    found: dict[str, Tensor] = {}
    for name, tensor, keep, dim in mask_entries(model, plan):
        found[name] = found.get(name, tensor).index_fill(dim, (~keep).nonzero().flatten(), 0)
    return found


@contextlib.contextmanager
def masked(model: nn.Module, plan: Plan) -> Iterator[nn.Module]:
    """Let the model run without the plan's units inside a block; afterwards every parameter is bit-identical.

    Also after an exception. Only the masked entries are put by.
    """
    touched = mask_entries(model, plan)
    with torch.no_grad():
        gone = [(t, d, torch.nonzero(~k).flatten()) for _, t, k, d in touched]
        held = [t.index_select(d, index) for t, d, index in gone]
    try:
        apply_mask(model, plan)
        yield model
    finally:
        try:
            _restore(gone, held)
        except BaseException:  # an interruption between two layers
            _restore(gone, held)
            raise


@torch.no_grad()
def _restore(gone: list[tuple[Tensor, int, Tensor]], held: list[Tensor]) -> None:
    for (tensor, dim, index), original in zip(gone, held, strict=True):
        tensor.index_copy_(dim, index, original)


def mask_entries(model: nn.Module, plan: Plan) -> list[tuple[str, Tensor, Tensor, int]]:
    """Each parameter touched: name and tensor, its entries that stay (bool) and the dimension they lie along."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    touched: dict[tuple[str, int], Tensor] = {}
    for group in plan.groups:
        if not group.removed:
            continue
        roles = {piece.role for piece in group.slices}
        chosen = roles if plan.norm == "both" or plan.norm not in roles else {plan.norm}
        for piece in (p for p in group.slices if p.role in chosen):
            keep = piece.keep(group.kept())
            tensor = tensors.get(piece.parameter)
            if tensor is None or tensor.dim() <= piece.dim or tensor.shape[piece.dim] != len(keep):
                found = "it does not exist" if tensor is None else f"it is {list(tensor.shape)}"
                raise PlanError(
                    f"the plan for {plan.model} masks {len(keep)} entries of {piece.parameter} along dimension "
                    f"{piece.dim}, but in this {type(model).__name__} {found}; plan for this model"
                )
            key = (piece.parameter, piece.dim)
            touched[key] = touched[key] & keep if key in touched else keep
    return [(name, tensors[name], keep.to(tensors[name].device), dim) for (name, dim), keep in touched.items()]
