"""The cut itself: parameters and buffers made smaller, and modules told of their new sizes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..lrp.graph import argument
from .labels import LayerUse
from .removal import Removal, kept_along
from .sizes import fit, fit_heads


@torch.no_grad()
def cut(model: nn.Module, removal: Removal) -> None:
    """Make a masked model smaller in place, without changing what it computes."""
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    names = removal.captured.parameters | removal.captured.buffers
    labels = removal.coupling.labels
    smaller: dict[str, Tensor] = {}
    for layer in labels.layers:
        smaller[names[layer.weight]] = _weight(tensors[names[layer.weight]], layer, removal)
        _fold_constants(model, tensors, layer, removal)
    for node, name in names.items():
        entries = labels.values.get(node)
        if node not in labels.rows and isinstance(entries, Tensor) and bool(removal.gone(entries).any()):
            smaller[name] = tensors[name]
            for dim, kept in enumerate(kept_along(removal.gone(entries))):
                smaller[name] = smaller[name].index_select(dim, kept.to(smaller[name].device))
    for name, value in smaller.items():
        if value.shape != tensors[name].shape:
            held = value.clone()
            if isinstance(tensors[name], nn.Parameter):
                held = nn.Parameter(held, tensors[name].requires_grad)
            for alias in _aliases(tensors, name):
                _assign(model, alias, held)
    for path in removal.idle:
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, nn.Identity())
    for module in model.modules():
        fit(module)
    modules = dict(model.named_modules())
    for attention in (a for a in labels.attentions if a.module in modules and not removal.skips(a.module)):
        after = int((~removal.gone(attention.heads)).sum())
        fit_heads(modules[attention.module], len(attention.heads), after)


def _weight(weight: Tensor, layer: LayerUse, removal: Removal) -> Tensor:
    """The rows and columns of a layer's weight that stay; each group of a convolution has columns of its own."""
    rows = ~removal.gone(layer.outputs).view(layer.groups, -1)
    if layer.channelwise:
        return weight[rows.flatten().to(weight.device)]
    columns = ~removal.gone(layer.inputs).view(layer.groups, -1)
    parts = weight.unflatten(0, (layer.groups, -1))
    return torch.cat([part[r][:, c] for part, r, c in zip(parts, rows, columns, strict=True)])


def _fold_constants(model: nn.Module, tensors: dict[str, Tensor], layer: LayerUse, removal: Removal) -> None:
    """Add to the layer's bias what it always got from channels that go."""
    if layer.channelwise:
        return
    constant = removal.constants[layer.node].cpu()
    constant = torch.where(removal.gone(layer.inputs), constant, 0)
    names = removal.captured.parameters
    weight = tensors[names[layer.weight]]
    by_group = constant.to(weight).view(layer.groups, 1, -1)
    added = (weight.flatten(2).sum(2) if weight.dim() > 2 else weight).unflatten(0, (layer.groups, -1))
    # A channel that is not read may be anything, NaN included.
    added = torch.where(added == 0, 0, added * by_group).sum(2).flatten()
    if not bool(added.any()):
        return
    bias = argument(layer.node, "bias")
    if bias is None:
        module = model.get_submodule(names[layer.weight].rpartition(".")[0])
        kept = ~removal.gone(layer.outputs)
        module.bias = nn.Parameter(added[kept.to(added.device)].to(weight.dtype), requires_grad=weight.requires_grad)
    else:
        tensors[names[bias]].add_(added)


def _aliases(tensors: dict[str, Tensor], name: str) -> list[str]:
    """All names of a tensor: tied weights have several."""
    return [other for other, tensor in tensors.items() if tensor is tensors[name]]


def _assign(model: nn.Module, name: str, value: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    module = model.get_submodule(owner)
    (module._parameters if attribute in module._parameters else module._buffers)[attribute] = value
