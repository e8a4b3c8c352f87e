"""What modules say of their own sizes, brought in line with the shapes of their tensors.

A cut and the rebuilding of a saved model share this: both change tensors first.
"""

from __future__ import annotations

from torch import nn

from .attention import narrow


def fit(module: nn.Module) -> None:
    """Let a layer or norm say the sizes that its tensors have.

    A convolution that read one channel in each group still does; any other keeps its number of groups.
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        _fit_convolution(module)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = module.weight if module.weight is not None else module.running_mean
        if held is not None:
            module.num_features = len(held)
    elif isinstance(getattr(module, "normalized_shape", None), tuple) and module.weight is not None:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm) and module.weight is not None:
        module.num_channels = len(module.weight)


def fit_heads(module: nn.Module, before: int, after: int) -> None:
    """Let an attention that had `before` heads say that it has `after`, under the names that attentions have for this.

    No tensor's shape tells the number of heads.
    """
    if before == after or getattr(module, "num_heads", None) != before:
        return
    narrow(module)
    module.num_heads = after
    for name in ("attn_dim", "inner_dim", "all_head_dim"):
        width = getattr(module, name, None)
        if isinstance(width, int) and width % before == 0:
            setattr(module, name, width // before * after)


def _fit_convolution(module: nn.modules.conv._ConvNd) -> None:
    first, second = module.weight.shape[:2]
    if module.transposed:
        module.in_channels, module.out_channels = first, second * module.groups
        return
    if module.groups == module.in_channels > 1:
        module.groups = first // (module.out_channels // module.groups)
    module.out_channels, module.in_channels = first, second * module.groups
