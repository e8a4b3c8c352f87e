"""A plan as masks of :mod:`torch.nn.utils.prune`, for training loops and tools that know these."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from .errors import PlanError
from .masks import mask_entries
from .plan import Plan


def prune_masks(model: nn.Module, plan: Plan) -> nn.Module:
    """Mask the parameters of the plan's units by :func:`torch.nn.utils.prune.custom_from_mask`, in place.

    Each such parameter ``weight`` becomes ``weight_orig``, which goes on being trained, times a buffer ``weight_mask``,
    at every call of its module; ``prune.remove(module, "weight")`` makes it an ordinary parameter with zeros.

    Parameters
    ----------
    model
        Changed: its logits become those under :func:`pxp_fast.masked`.
    plan
        Made for it.

    Returns
    -------
    nn.Module
        The model.

    Raises
    ------
    PlanError
        The model lacks what the plan names, or it is a buffer, which cannot be masked so. Nothing is changed then.

    Notes
    -----
    Where a module's parameter is read by another module, as that of an ``nn.MultiheadAttention``'s ``out_proj`` is, the
    product is computed only here, not at every call: right for inference, but not for training.
    """
    names = dict(model.named_parameters(remove_duplicate=False))
    masks: dict[int, Tensor] = {}
    for name, tensor, keep, dim in mask_entries(model, plan):
        if name not in names:
            raise PlanError(f"{name} is a buffer of this {type(model).__name__}, not a parameter; use pxp_fast.masked")
        mask = masks.setdefault(id(tensor), torch.ones_like(tensor, requires_grad=False))
        mask.index_fill_(dim, (~keep).nonzero().flatten(), 0)
    for name, tensor in names.items():
        if id(tensor) in masks:
            owner, _, attribute = name.rpartition(".")
            module = model.get_submodule(owner)
            if attribute in module._parameters:  # a module may have several names
                prune.custom_from_mask(module, attribute, masks[id(tensor)])
    return model
