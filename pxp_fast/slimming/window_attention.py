"""torchvision's shifted-window attention (Liu et al., 2021, arXiv 2103.14030) with fewer heads than its width holds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttention

HIDDEN = -100.0  # what torchvision adds to the logits of positions that were not neighbours before the shift


class NarrowShiftedWindowAttention(ShiftedWindowAttention):
    """:class:`ShiftedWindowAttention` whose heads are as wide as ever but fewer."""

    def forward(self, x: Tensor) -> Tensor:
        """``[N, H, W, C]`` to the same."""
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        padded = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        sizes = padded.shape[1:3]
        shift = [
            s if size > window else 0 for s, size, window in zip(self.shift_size, sizes, self.window_size, strict=True)
        ]
        tokens = self._windows(padded.roll([-s for s in shift], (1, 2)))
        # Windows are folded into the batch, since other runtimes know attention in four dimensions alone.
        parts = self.qkv(tokens.flatten(0, 1)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.get_relative_position_bias()
        if any(shift):
            bias = (bias + self._hidden(sizes, shift, x)).repeat(x.shape[0], 1, 1, 1)
        dropout = self.attention_dropout if self.training else 0.0
        found = F.scaled_dot_product_attention(*parts, attn_mask=bias, dropout_p=dropout)
        found = self.proj(found.transpose(1, 2).flatten(2)).unflatten(0, tokens.shape[:2])
        found = F.dropout(found, self.dropout, self.training)
        found = found.unflatten(2, (rows, columns)).unflatten(1, (sizes[0] // rows, -1)).transpose(2, 3)
        return found.flatten(3, 4).flatten(1, 2).roll(shift, (1, 2))[:, :height, :width].contiguous()

    def _windows(self, image: Tensor) -> Tensor:
        """``[N, H, W, C]`` as ``[N, windows, positions, C]``."""
        rows, columns = self.window_size
        image = image.unflatten(2, (-1, columns)).unflatten(1, (-1, rows)).transpose(2, 3)
        return image.flatten(3, 4).flatten(1, 2)

    def _hidden(self, sizes: torch.Size, shift: list[int], like: Tensor) -> Tensor:
        """``[windows, 1, positions, positions]``: what keeps apart positions that the shift brought together."""
        regions = [
            (torch.arange(size, device=like.device) >= size - window).long()
            + (torch.arange(size, device=like.device) >= size - s).long()
            if s
            else torch.zeros(size, dtype=torch.int64, device=like.device)
            for size, window, s in zip(sizes, self.window_size, shift, strict=True)
        ]
        region = self._windows((3 * regions[0][:, None] + regions[1])[None, :, :, None])[0, :, :, 0]
        apart = region.unsqueeze(1) != region.unsqueeze(2)
        return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, HIDDEN).unsqueeze(1)


SHIFTED_WINDOWS = {ShiftedWindowAttention: NarrowShiftedWindowAttention}
