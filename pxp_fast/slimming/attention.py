"""Attention with fewer heads than its input has room for, where a library's own class insists on all of them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class NarrowMultiheadAttention(nn.MultiheadAttention):
    """:class:`torch.nn.MultiheadAttention` of one sequence with itself, whose heads together are narrower than it.

    Parameters keep their names: ``in_proj_weight [3 * heads * head_dim, embed_dim]``, ``out_proj.weight
    [embed_dim, heads * head_dim]``.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`torch.nn.MultiheadAttention.forward`; masks and attention weights are not offered."""
        if key is not query or value is not query or key_padding_mask is not None or attn_mask is not None:
            raise NotImplementedError(
                "attention without some of its heads serves self-attention without masks; keep its heads as zeros"
            )
        if need_weights:
            raise NotImplementedError("attention without some of its heads gives no weights; pass need_weights=False")
        tokens = query if self.batch_first or query.dim() == 2 else query.transpose(0, 1)
        parts = F.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        parts = parts.unflatten(-1, (3, self.num_heads, self.head_dim))
        queries, keys, values = parts.transpose(-4, -2).unbind(-3)
        dropout = self.dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(queries, keys, values, dropout_p=dropout, is_causal=is_causal)
        found = self.out_proj(found.transpose(-3, -2).flatten(-2))
        return (found if self.batch_first or query.dim() == 2 else found.transpose(0, 1)), None


def narrow(module: nn.Module) -> None:
    """Let an attention whose class needs all of its heads do with those that it has left."""
    if type(module) is nn.MultiheadAttention:
        module.__class__ = NarrowMultiheadAttention
    elif type(module).__module__ == "torchvision.models.swin_transformer":
        from .window_attention import SHIFTED_WINDOWS

        module.__class__ = SHIFTED_WINDOWS.get(type(module), type(module))
