"""Random networks whose relevance is worth comparing: no zero biases, batch norm calibrated, then jittered."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def randomise(model: nn.Module, example: Tensor, seed: int = 0, zero_bias: bool = False) -> nn.Module:
    """Random biases (zero ones would hide their share of the relevance), norms away from their initial values.

    `zero_bias` leaves out every additive parameter instead, so that relevance is conserved.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = lambda t, std: std * torch.randn(t.shape, generator=generator)  # noqa: E731
    batch_norms = [m for m in model.modules() if isinstance(m, BATCH_NORMS)]
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if name.endswith("bias"):
                    parameter.copy_(normal(parameter, 0.05))
                if isinstance(module, NORMS):
                    parameter.copy_(1 + normal(parameter, 0.2) if name == "weight" else normal(parameter, 0.1))
                if isinstance(module, nn.Linear) and name == "weight" and not parameter.any():
                    parameter.copy_(normal(parameter, 0.02))
                if name.endswith("gain") and not parameter.any():  # 0 cuts its branch off
                    parameter.fill_(0.5)
        for norm in batch_norms:
            norm.momentum = 1.0
            if norm.affine:
                norm.weight.copy_(0.5 + torch.rand(norm.num_features, generator=generator))
                norm.bias.copy_(0.3 * torch.randn(norm.num_features, generator=generator))
        if batch_norms:
            model.train()(example)
        for norm in batch_norms:  # off a little, as running statistics are, but not so far that signals grow with depth
            norm.momentum = 0.1
            norm.running_mean.add_(0.1 * norm.running_var.sqrt() * torch.randn(norm.num_features, generator=generator))
            norm.running_var.mul_(0.8 + 0.4 * torch.rand(norm.num_features, generator=generator))
        if zero_bias:
            for module in model.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    if name.endswith("bias"):
                        parameter.zero_()
                if isinstance(module, BATCH_NORMS):
                    module.running_mean.zero_()
    return model.eval()


def pictures(count: int, size: int, channels: int = 3, seed: int = 5, classes: int = 1000) -> tuple[Tensor, Tensor]:
    """Noise with some spatial correlation [count, channels, size, size] float32, and random labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, size, size, generator=generator)
    labels = torch.randint(0, classes, (count,), generator=generator)
    return F.avg_pool2d(images, 5, 1, 2) * 4, labels
