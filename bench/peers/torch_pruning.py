"""Torch-Pruning's Taylor importance: forward, backward to the weights, importance of every group of channels."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from ..networks import CLASSES
from .interface import Peer


class TorchPruning(Peer):
    """The groups are found once. The importance is that of the whole batch, |weight x gradient of its mean loss|."""

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype, *, classes: int = CLASSES) -> None:
        import torch_pruning

        self.model = model.to(dtype)
        self.dtype = dtype
        heads = {}
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                heads[module] = module.num_heads
            elif hasattr(module, "qkv") and hasattr(module, "num_heads"):
                heads[module.qkv] = module.num_heads
        self.importance = torch_pruning.importance.GroupTaylorImportance()
        with warnings.catch_warnings():  # that class token and position table are cut along with the width
            warnings.filterwarnings("ignore", message="Unwrapped parameters detected")
            pruner = torch_pruning.pruner.BasePruner(
                self.model,
                self.prepare(images[:1]),
                importance=self.importance,
                num_heads=heads,
                ignored_layers=[m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == classes],
            )
        kinds = {"ignored_layers": pruner.ignored_layers, "root_module_types": pruner.root_module_types}
        found = list(pruner.DG.get_all_groups(**kinds))
        names = {module: name for name, module in model.named_modules()}
        self.groups = {names[group[0].dep.target.module]: group for group in found}

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(self.dtype)

    def run(self, images: Tensor, labels: Tensor) -> None:
        self.model.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(self.model(images), labels).backward()
        self.scores = {name: self.importance(group) for name, group in self.groups.items()}

    def unit_sums(self) -> dict[str, Tensor]:
        return self.scores
