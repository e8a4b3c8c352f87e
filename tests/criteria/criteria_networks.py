"""Small float64 networks, their images, and what each unit contributes, worked out on the networks themselves."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import torch
from oracles.networks import pictures, randomise
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

SIZE, CLASSES = 8, 4


class Residual(nn.Module):
    """Two parallel stems, batch norms, a shortcut, activations in place, an MLP on top."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 5, 1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        self.inner, self.inner_norm = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.relu, self.gelu = nn.ReLU(inplace=True), nn.GELU()
        self.mlp, self.head = nn.Linear(20, 7), nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.left(x))) + self.right(x)
        x = self.relu(self.inner_norm(self.inner(x)) + x)
        x = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        return self.head(self.gelu(self.mlp(x)))


class Folding(nn.Module):
    """A convolution on windows folded into the batch, used twice, and an MLP on tokens with the samples inside."""

    def __init__(self):
        super().__init__()
        self.shared = nn.Conv2d(3, 3, 3, padding=1)
        self.up, self.down, self.head = nn.Linear(3, 6), nn.Linear(6, 3), nn.Linear(3, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        windows = x.view(-1, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        windows = self.shared(self.shared(windows).tanh()).relu()
        tokens = windows.mean((2, 3)).unflatten(0, (-1, 4)).transpose(0, 1)
        tokens = tokens + self.down(nn.functional.silu(self.up(tokens)))
        return self.head(tokens.mean(0))


def cnn() -> nn.Module:
    return _seeded(Residual)


def folding() -> nn.Module:
    return _seeded(Folding)


def vit() -> nn.Module:
    config = {"img_size": SIZE, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": CLASSES}
    return _seeded(functools.partial(VisionTransformer, **config))


def _seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """The same network every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    return randomise(model, pictures(16, SIZE, seed=1)[0]).double()


def batch(count: int = 3) -> tuple[Tensor, Tensor]:
    images, labels = pictures(count, SIZE, classes=CLASSES)
    return images.double(), labels


def at_modules(model: nn.Module, images: Tensor, labels: Tensor, of: str = "logit") -> tuple[dict, dict]:
    """Output (of an ``out`` projection: input) of every leaf module, and the gradient there, by autograd."""
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    values: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(module, inputs, output):
            values[name], values[f"{name}.input"] = output, inputs[0]

        return hook

    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(keep(name))
    logits = model(images.clone().requires_grad_())
    if of == "loss":
        explained = nn.functional.cross_entropy(logits, labels, reduction="sum")
    else:
        explained = logits[range(len(labels)), labels].sum()
    names = list(values)
    found = torch.autograd.grad(explained, [values[name] for name in names], allow_unused=True)
    return {n: v.detach() for n, v in values.items()}, dict(zip(names, found, strict=True))


def heads(tokens: Tensor, count: int) -> Tensor:
    """The input ``[N, T, heads * d]`` of a projection as ``[N, T, heads, d]``."""
    return tokens.unflatten(-1, (count, -1))
