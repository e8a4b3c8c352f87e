"""Plain ViTs spelled out module by module, so that `definition.Definition` can read them, with weights of the original.

PXP's units of torchvision's ViT-B/16: the outputs of both linear layers of every MLP, aggregated as
``sum_x sum_t |R|``, and the attention heads, as ``sum_x sum_q |sum_k R_softmax|``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .definition import Definition


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads)
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class ExplicitViT(nn.Module):
    """A ViT with a class token, as torchvision and timm build it."""

    def __init__(
        self, *, width: int, heads: int, hidden: int, depth: int, patch: int, eps: float, classes: int
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, heads, hidden, eps) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width, eps), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch(images).flatten(2).transpose(1, 2)
        token = self.token.expand(images.shape[0], -1, -1)
        x = torch.cat((token, x), 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])

    @torch.no_grad()
    def fill(self, pairs: list[tuple[nn.Module, nn.Module]], qkv: list[tuple[Tensor, Tensor]], token, position) -> None:
        self.token.data, self.position.data = token, position
        for mine, theirs in pairs:
            mine.load_state_dict(theirs.state_dict())
        for block, (weight, bias) in zip(self.blocks, qkv, strict=True):
            for layer, w, b in zip(
                (block.attn.q, block.attn.k, block.attn.v), weight.chunk(3), bias.chunk(3), strict=True
            ):
                layer.weight.data, layer.bias.data = w.clone(), b.clone()


def from_torchvision(model: nn.Module) -> ExplicitViT:
    """The same function as a torchvision `VisionTransformer`."""
    layers = list(model.encoder.layers)
    explicit = ExplicitViT(
        width=model.hidden_dim, heads=layers[0].num_heads, hidden=model.mlp_dim, depth=len(layers),
        patch=model.patch_size, eps=layers[0].ln_1.eps, classes=model.num_classes,
    ).to(model.class_token.dtype)  # fmt: skip
    pairs = [(explicit.patch, model.conv_proj), (explicit.norm, model.encoder.ln), (explicit.head, model.heads.head)]
    for mine, theirs in zip(explicit.blocks, layers, strict=True):
        pairs += [
            (mine.norm1, theirs.ln_1),
            (mine.norm2, theirs.ln_2),
            (mine.fc1, theirs.mlp[0]),
            (mine.fc2, theirs.mlp[3]),
        ]
        pairs += [(mine.attn.out, theirs.self_attention.out_proj)]
    qkv = [(b.self_attention.in_proj_weight, b.self_attention.in_proj_bias) for b in layers]
    explicit.fill(pairs, qkv, model.class_token.data, model.encoder.pos_embedding.data)
    return explicit.eval()


def from_timm(model: nn.Module) -> ExplicitViT:
    """The same function as a plain timm `VisionTransformer` with a class token."""
    block = model.blocks[0]
    explicit = ExplicitViT(
        width=model.embed_dim, heads=block.attn.num_heads, hidden=block.mlp.fc1.out_features, depth=len(model.blocks),
        patch=model.patch_embed.proj.stride[0], eps=block.norm1.eps, classes=model.num_classes,
    ).to(model.cls_token.dtype)  # fmt: skip
    pairs = [(explicit.patch, model.patch_embed.proj), (explicit.norm, model.norm), (explicit.head, model.head)]
    for mine, theirs in zip(explicit.blocks, model.blocks, strict=True):
        pairs += [
            (mine.norm1, theirs.norm1),
            (mine.norm2, theirs.norm2),
            (mine.fc1, theirs.mlp.fc1),
            (mine.fc2, theirs.mlp.fc2),
        ]
        pairs += [(mine.attn.out, theirs.attn.proj)]
    qkv = [(b.attn.qkv.weight, b.attn.qkv.bias) for b in model.blocks]
    explicit.fill(pairs, qkv, model.cls_token.data, model.pos_embed.data)
    return explicit.eval()


def pxp_sums(explicit: ExplicitViT, images: Tensor, targets: Tensor, epsilon: float = 1e-6) -> dict[str, Tensor]:
    """``{"0.fc1" | "0.fc2" | "0.heads" | ...: [2, N, units]}``: signed sums, and PXP's sums of absolute relevance."""
    found = Definition(explicit, epsilon)(images, targets)
    sums = {}
    for index, at_softmax in enumerate(found.attention):
        for layer in ("fc1", "fc2"):
            relevance = found.at[f"blocks.{index}.{layer}"]
            sums[f"{index}.{layer}"] = torch.stack((relevance.sum(1), relevance.abs().sum(1)))
        per_query = at_softmax.sum(-1)
        sums[f"{index}.heads"] = torch.stack((per_query.sum(-1), per_query.abs().sum(-1)))
    return sums
