"""LXT 2.1 (AttnLRP, efficient form) on a plain timm ViT, in a process of its own: it patches classes for good.

As a script: reads ``{"config", "state", "images", "targets"}`` from the first path, writes
``{layer: [2, N, channels]}`` (signed and absolute sums over tokens, at every linear layer's output) to the second.
LXT stabilises nothing in linear layers, sums and norms (LRP-0), and carries about 1e-10 from its activation rule.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor, nn


def lxt_relevance(config: dict, model: nn.Module, images: Tensor, targets: Tensor, folder: Path) -> dict[str, Tensor]:
    """Relevance sums of `model`, which is ``timm.models.vision_transformer.VisionTransformer(**config)``."""
    question, answer = folder / "question.pt", folder / "answer.pt"
    torch.save({"config": config, "state": model.state_dict(), "images": images, "targets": targets}, question)
    subprocess.run([sys.executable, __file__, question, answer], check=True, capture_output=True, text=True)
    return torch.load(answer)


def patch() -> None:
    """LXT's rules on timm's attention, layer norm and GELU."""
    import transformers.pytorch_utils as utilities

    # LXT 2.1 imports helpers for language models that transformers 5 no longer has and that are not used here.
    for name in ("find_pruneable_heads_and_indices", "prune_linear_layer", "apply_chunking_to_forward"):
        if not hasattr(utilities, name):
            setattr(utilities, name, None)
    from lxt.efficient.patches import layer_norm_forward, non_linear_forward, patch_method
    from lxt.efficient.rules import divide_gradient
    from timm.layers.attention import Attention
    from timm.layers.norm import LayerNorm

    def attention_forward(self, x, *unused, **ignored):
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k, v = divide_gradient(q, 4), divide_gradient(k, 4), divide_gradient(v, 2)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))

    patch_method(attention_forward, Attention)
    patch_method(lambda self, x: layer_norm_forward(self, x), LayerNorm)
    patch_method(non_linear_forward, nn.GELU, keep_original=True)


def main(question: str, answer: str) -> None:
    from timm.models.vision_transformer import VisionTransformer

    asked = torch.load(question)
    patch()
    model = VisionTransformer(**asked["config"]).to(asked["images"].dtype).eval()
    model.load_state_dict(asked["state"])
    sums = {}

    def recorder(name: str):
        def hook(module, inputs, output):
            value = output.detach()

            def record(gradient):
                relevance = (gradient * value).unsqueeze(1).flatten(1, -2)
                sums[name] = torch.stack((relevance.sum(1), relevance.abs().sum(1)))

            output.register_hook(record)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(recorder(name))
    x = asked["images"].clone().requires_grad_()
    logits = model(x)
    rows = torch.arange(len(logits))
    start = torch.zeros_like(logits)
    start[rows, asked["targets"]] = 1 / logits.detach()[rows, asked["targets"]]
    torch.autograd.grad(logits, x, start)
    torch.save(sums, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
