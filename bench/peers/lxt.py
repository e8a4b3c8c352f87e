"""LXT's efficient AttnLRP on torchvision's and timm's ViT. Its patches reach the whole process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .interface import Peer
from .zennit import EPSILON, positions


class Lxt(Peer):
    """`epsilon` adds zennit's rule, as LXT patches it, to linear layers; without it they are not stabilised."""

    def __init__(self, model: nn.Module, images: Tensor, dtype: torch.dtype, *, epsilon: bool = False) -> None:
        patch()
        self.model = model.to(dtype)
        self.dtype = dtype
        if epsilon:
            from lxt.efficient.zennit_patches import monkey_patch_zennit
            from zennit.composites import LayerMapComposite
            from zennit.rules import Epsilon

            monkey_patch_zennit()
            LayerMapComposite([((nn.Linear,), Epsilon(EPSILON))]).register(self.model)
        self.sums: dict[str, Tensor] = {}
        for name, module in self.model.named_modules():
            # torchvision's output projection is never called: attention reads its weight.
            if isinstance(module, nn.Linear) and not name.endswith("out_proj"):
                module.register_forward_hook(self._reader(name))

    def _reader(self, name: str):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            value = output.detach()

            def read(carry: Tensor) -> None:
                relevance = carry * value
                dims = positions(relevance)
                self.sums[name] = relevance.sum(dims) if dims else relevance

            output.register_hook(read)

        return hook

    def prepare(self, images: Tensor) -> Tensor:
        return images.to(self.dtype)

    def run(self, images: Tensor, labels: Tensor) -> None:
        x = images.detach().clone().requires_grad_()
        chosen = self.model(x).gather(1, labels[:, None])
        torch.autograd.grad(chosen, x, 1 / chosen.detach())

    def unit_sums(self) -> dict[str, Tensor]:
        return self.sums


def patch() -> None:
    """LXT's rules on the attention, layer norm and GELU of torchvision and timm, for the whole process."""
    import transformers.pytorch_utils as utilities

    # LXT 2.1 imports helpers for language models that transformers 5 no longer has and that are not used here.
    for name in ("find_pruneable_heads_and_indices", "prune_linear_layer", "apply_chunking_to_forward"):
        if not hasattr(utilities, name):
            setattr(utilities, name, None)
    from lxt.efficient.patches import layer_norm_forward, non_linear_forward, patch_method
    from lxt.efficient.rules import divide_gradient
    from timm.layers.attention import Attention
    from timm.layers.norm import LayerNorm

    def torchvision_attention(self, query, key, value, *args, **kwargs):
        parts = divide_gradient(query, 4), divide_gradient(key, 4), divide_gradient(value, 2)
        return self.original_forward(*parts, *args, **kwargs)

    def timm_attention(self, x, *unused, **ignored):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k, v = divide_gradient(q, 4), divide_gradient(k, 4), divide_gradient(v, 2)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))

    patch_method(torchvision_attention, nn.MultiheadAttention, keep_original=True)
    patch_method(timm_attention, Attention)
    patch_method(layer_norm_forward, nn.LayerNorm)
    # timm's class calls a fused kernel of its own, which LXT's patch of nn.LayerNorm would not reach.
    patch_method(lambda self, x: layer_norm_forward(self, x), LayerNorm)
    patch_method(non_linear_forward, nn.GELU, keep_original=True)
