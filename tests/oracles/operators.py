"""Small random networks, one for each operator that has a rule: a convolution, the operator, a classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import pictures, randomise

WIDTH = 8


class Sandwich(nn.Module):
    """convolution -> the operator under test on [N, 8, 9, 9] -> classifier."""

    def __init__(self, middle: nn.Module, after_relu: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.before = nn.ReLU() if after_relu else nn.Identity()
        self.middle = middle
        size = self.middle(torch.randn(4, WIDTH, 9, 9)).flatten(1).shape[1]
        self.flatten, self.head = nn.Flatten(), nn.Linear(size, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.middle(self.before(self.stem(x)))))


class Tokens(nn.Module):
    """convolution -> the operator under test on [N, 81, 8] -> classifier."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, WIDTH, 3, padding=1), middle
        size = self.middle(torch.randn(4, 81, WIDTH)).flatten(1).shape[1]
        self.head = nn.Linear(size, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.stem(x).flatten(2).transpose(1, 2)).flatten(1))


class Apply(nn.Module):
    """A function of the activation, with layers and parameters that it may use: `function(self, x)`."""

    def __init__(self, function, **parts) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def conv(out: int = WIDTH, kernel=3, into: int = WIDTH, **options) -> nn.Conv2d:
    return nn.Conv2d(into, out, kernel, **options)


def squeeze_excite(gate: nn.Module) -> nn.Module:
    def function(m, x):
        s = F.adaptive_avg_pool2d(x, 1)
        return x * m.gate(m.expand(m.relu(m.reduce(s))))

    return Apply(function, reduce=conv(4, 1), relu=nn.ReLU(), expand=conv(8, 1, 4), gate=gate)


def attention(mix) -> nn.Module:
    def function(m, x):
        heads = lambda t: t.unflatten(-1, (2, 4)).transpose(1, 2)  # noqa: E731
        mixed = mix(m, heads(m.q(x)), heads(m.k(x)), heads(m.v(x)))
        return x + m.out(mixed.transpose(1, 2).flatten(2))

    layers = {name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k", "v", "out")}
    return Apply(function, bias=torch.randn(1, 2, 81, 81), softmax=nn.Softmax(-1), **layers)


def softmax_between_matmuls(m, q, k, v):
    return m.softmax(q * 0.5 @ k.transpose(-2, -1)) @ v


def fused_qkv(m, x):
    q, k, v = m.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
    return x + m.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def sum_beside(shape):
    """A sum ``s`` of `shape(m, x)` whose carry meets another one at `x`: neither may end up in the other's share."""

    def function(m, x):
        s = shape(m, x)
        return torch.cat((m.b(s), x.permute(0, 1, 3, 2)), 1)

    return Apply(function, b=conv(padding=1), c=conv(padding=1))


def convnext(m, x):
    y = m.norm(m.depthwise(x).permute(0, 2, 3, 1))
    return x + (m.fc2(m.act(m.fc1(y))) * m.gamma).permute(0, 3, 1, 2)


def root_mean_square(m, x):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * m.weight


def layer_norm_by_hand(m, x):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(x.var(-1, keepdim=True, correction=0) + 1e-6) * m.weight + m.shift


def token(m, x):
    return torch.cat((m.token.expand(x.shape[0], -1, -1), x), 1) + m.position


IMAGE_OPERATORS = {
    "sum with a broadcast operand, beside another branch": lambda: sum_beside(
        lambda m, x: x + F.adaptive_avg_pool2d(m.c(x), 1)
    ),
    "difference beside another branch": lambda: sum_beside(lambda m, x: x - m.c(x)),
    "weighted sum beside another branch": lambda: sum_beside(lambda m, x: torch.add(x, m.c(x), alpha=0.5)),
    "conv": lambda: conv(),
    "conv stride": lambda: conv(stride=2, padding=1),
    "conv padding 2": lambda: conv(padding=2),
    "conv dilation": lambda: conv(dilation=2, padding=2),
    "conv groups": lambda: conv(12, groups=4),
    "conv depthwise": lambda: conv(groups=WIDTH, padding=1),
    "conv depthwise multiplier": lambda: conv(16, groups=WIDTH, stride=2),
    "conv pointwise stride": lambda: conv(6, 1, stride=2),
    "conv of two sizes": lambda: conv(6, (1, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)),
    "conv same": lambda: conv(6, 3, padding="same", dilation=2),
    "conv valid": lambda: conv(6, 3, padding="valid"),
    "conv same, even kernel": lambda: conv(6, 4, padding="same"),
    "conv reflect": lambda: conv(6, 3, padding=1, padding_mode="reflect"),
    "conv circular": lambda: conv(6, 3, padding=1, padding_mode="circular"),
    "conv without bias": lambda: conv(bias=False),
    "conv bn": lambda: nn.Sequential(conv(bias=False), nn.BatchNorm2d(WIDTH)),
    "conv bias bn relu": lambda: nn.Sequential(conv(groups=2), nn.BatchNorm2d(WIDTH), nn.ReLU()),
    "bn without a layer": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(WIDTH), nn.ReLU(), conv()),
    "bn not affine": lambda: nn.Sequential(nn.ReLU(), nn.BatchNorm2d(WIDTH, affine=False), conv()),
    "conv bn not affine": lambda: nn.Sequential(conv(), nn.BatchNorm2d(WIDTH, affine=False), nn.ReLU()),
    "bn on one of two uses": lambda: Apply(
        lambda m, x: (y := m.conv(x)) + m.relu(m.norm(y)), conv=conv(padding=1), norm=nn.BatchNorm2d(8), relu=nn.ReLU()
    ),
    "bn after concat": lambda: nn.Sequential(
        Apply(lambda m, x: torch.cat((x, m.conv(x)), 1), conv=conv(4, padding=1)),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        conv(6, 3, 12),
    ),
    "relu": lambda: nn.Sequential(nn.ReLU(), conv()),
    "relu in place": lambda: nn.Sequential(nn.ReLU(inplace=True), conv(), nn.ReLU(inplace=True)),
    "relu twice": lambda: nn.Sequential(nn.ReLU(), nn.ReLU(), conv()),
    "relu shared": lambda: Apply(lambda m, x: m.c2(m.relu(m.c1(m.relu(x)))), relu=nn.ReLU(), c1=conv(), c2=conv()),
    "relu6": lambda: nn.Sequential(nn.ReLU6(), conv()),
    "hardtanh": lambda: nn.Sequential(nn.Hardtanh(-0.5, 0.8), conv()),
    "gelu": lambda: nn.Sequential(nn.GELU(), conv()),
    "gelu tanh": lambda: nn.Sequential(nn.GELU(approximate="tanh"), conv()),
    "silu": lambda: nn.Sequential(nn.SiLU(), conv()),
    "silu in place": lambda: nn.Sequential(conv(), nn.SiLU(inplace=True), conv()),
    "hardswish": lambda: nn.Sequential(nn.Hardswish(), conv()),
    "hardswish in place": lambda: nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Hardswish(inplace=True), conv()),
    "leaky relu": lambda: nn.Sequential(nn.LeakyReLU(0.1), conv()),
    "elu": lambda: nn.Sequential(nn.ELU(), conv()),
    "tanh": lambda: nn.Sequential(nn.Tanh(), conv()),
    "activation of a sum": lambda: Apply(
        lambda m, x: m.after(m.act(x + m.conv(x))), conv=conv(padding=1), act=nn.GELU(), after=conv()
    ),
    "gate of itself": lambda: Apply(lambda m, x: m.conv(x * torch.sigmoid(x)), conv=conv()),
    "squeeze and excite": lambda: squeeze_excite(nn.Sigmoid()),
    "squeeze and excite, hard": lambda: squeeze_excite(nn.Hardsigmoid()),
    "sum": lambda: Apply(lambda m, x: x + m.conv(x), conv=conv(padding=1)),
    "sum bn relu": lambda: Apply(
        lambda m, x: m.relu(m.norm(m.conv(x)) + x),
        conv=conv(padding=1),
        norm=nn.BatchNorm2d(WIDTH),
        relu=nn.ReLU(inplace=True),
    ),
    "sum in place": lambda: Apply(lambda m, x: m.conv(x).add_(x).relu_() * 1.0, conv=conv(padding=1)),
    "sum of two branches": lambda: Apply(lambda m, x: m.a(x) + m.b(x), a=conv(padding=1), b=conv(kernel=1)),
    "sum of three": lambda: Apply(lambda m, x: x + m.a(x) + m.b(x), a=conv(padding=1), b=conv(kernel=1)),
    "sum with itself": lambda: Apply(lambda m, x: m.conv(x + x), conv=conv()),
    "sum broadcast": lambda: Apply(
        lambda m, x: m.conv(x + m.small(x.mean((2, 3), keepdim=True))), small=conv(kernel=1), conv=conv()
    ),
    "sum with alpha": lambda: Apply(lambda m, x: torch.add(x, m.conv(x), alpha=2), conv=conv(padding=1)),
    "sum with a parameter": lambda: Apply(lambda m, x: m.conv(x + m.p), p=torch.randn(1, 8, 1, 1), conv=conv()),
    "sum with a number": lambda: Apply(lambda m, x: m.conv(x + 0.7), conv=conv()),
    "difference": lambda: Apply(lambda m, x: m.after(x - m.conv(x)), conv=conv(padding=1), after=conv()),
    "number minus": lambda: Apply(lambda m, x: m.conv(1.5 - x), conv=conv()),
    "pooling minus input": lambda: Apply(lambda m, x: m.conv(F.avg_pool2d(x, 3, 1, 1) - x), conv=conv()),
    "negation": lambda: Apply(lambda m, x: m.conv(-x), conv=conv()),
    "product": lambda: Apply(lambda m, x: x * m.conv(x), conv=conv(padding=1)),
    "product with itself": lambda: Apply(lambda m, x: m.conv(x * x), conv=conv()),
    "product with a parameter": lambda: Apply(
        lambda m, x: m.conv(m.gamma * x), gamma=torch.randn(8, 1, 1), conv=conv()
    ),
    "product with a number": lambda: Apply(lambda m, x: m.conv(x * -0.3), conv=conv()),
    "quotient": lambda: Apply(lambda m, x: m.conv(x / m.p / 3), p=torch.rand(8, 1, 1) + 0.5, conv=conv()),
    "max pool": lambda: nn.MaxPool2d(2),
    "max pool overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "max pool ceil": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2, 2, ceil_mode=True), conv()),
    "max pool dilated": lambda: nn.MaxPool2d(3, 1, dilation=2),
    "adaptive max pool": lambda: nn.AdaptiveMaxPool2d(4),
    "average pool": lambda: nn.AvgPool2d(3),
    "average pool padded": lambda: nn.AvgPool2d(3, 2, 1),
    "average pool of what is there": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "average pool ceil": lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False),
    "adaptive average pool": lambda: nn.AdaptiveAvgPool2d(4),
    "adaptive average pool upwards": lambda: nn.AdaptiveAvgPool2d(12),
    "global average pool": lambda: nn.AdaptiveAvgPool2d(1),
    "mean": lambda: Apply(lambda m, x: x.mean((2, 3))),
    "mean of tokens": lambda: Apply(lambda m, x: x.flatten(2).mean(-1)),
    "average and max": lambda: Apply(lambda m, x: F.adaptive_avg_pool2d(x, 1) + F.adaptive_max_pool2d(x, 1)),
    "concat": lambda: Apply(lambda m, x: torch.cat((x, m.a(x), x), 1), a=conv(padding=1)),
    "dense": lambda: Apply(
        lambda m, x: torch.cat((y := torch.cat((x, m.a(m.relu(x))), 1), m.b(m.relu(y))), 1),
        a=conv(4, padding=1),
        b=conv(4, 3, 12, padding=1),
        relu=nn.ReLU(),
    ),  # fmt: skip
    "chunk": lambda: Apply(lambda m, x: (p := x.chunk(2, 1))[0] * m.conv(p[1]), conv=conv(4, 3, 4, padding=1)),
    "split": lambda: Apply(lambda m, x: (p := torch.split(x, [2, 6], 1))[0] + m.conv(p[1]), conv=conv(2, 1, 6)),
    "slice": lambda: Apply(lambda m, x: m.conv(x[:, 1:5, ::2, -6:]), conv=conv(6, 3, 4)),
    "shuffle": lambda: Apply(
        lambda m, x: m.conv(x.view(-1, 2, 4, 9, 9).transpose(1, 2).reshape(-1, 8, 9, 9)), conv=conv(groups=2)
    ),
    "pad": lambda: Apply(lambda m, x: m.conv(F.pad(x, (1, 0, 2, 1))), conv=conv()),
    "roll": lambda: Apply(lambda m, x: m.conv(torch.roll(x, (2, -1), (2, 3))), conv=conv()),
    "pixel shuffle": lambda: nn.Sequential(nn.PixelShuffle(2), conv(4, 3, 2)),
    "nearest upsampling": lambda: nn.Sequential(nn.Upsample(scale_factor=2), conv()),
    "dropout": lambda: nn.Sequential(nn.Dropout2d(0.5), conv(), nn.Dropout(0.5)),
    "softmax of channels": lambda: nn.Sequential(nn.Softmax(1), conv()),
    "group norm": lambda: nn.Sequential(nn.GroupNorm(4, WIDTH), conv()),
    "group norm of one": lambda: nn.Sequential(nn.GroupNorm(1, WIDTH), nn.ReLU(), conv()),
    "layer norm of everything": lambda: nn.Sequential(nn.LayerNorm((8, 9, 9)), conv()),
    "layer norm of channels": lambda: Apply(
        lambda m, x: m.conv(m.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)), norm=nn.LayerNorm(8), conv=conv()
    ),
    "convnext block": lambda: Apply(
        convnext,
        depthwise=conv(groups=8, padding=1),
        norm=nn.LayerNorm(8),
        fc1=nn.Linear(8, 16),
        act=nn.GELU(),
        fc2=nn.Linear(16, 8),
        gamma=torch.randn(8),
    ),  # fmt: skip
    "linear relu linear": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(648, 20), nn.ReLU(), nn.Linear(20, 7), nn.ReLU()
    ),
    "linear bn": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(648, 20), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 7)
    ),
}

TOKEN_OPERATORS = {
    "linear": lambda: nn.Linear(WIDTH, 6),
    "linear without bias": lambda: nn.Sequential(nn.Linear(WIDTH, 6, bias=False), nn.ReLU()),
    "mlp": lambda: nn.Sequential(nn.Linear(WIDTH, 12), nn.GELU(), nn.Dropout(0.1), nn.Linear(12, 8)),
    "gated mlp": lambda: Apply(
        lambda m, x: x + m.out(m.act(m.gate(x)) * m.value(x)),
        gate=nn.Linear(8, 12),
        value=nn.Linear(8, 12),
        act=nn.SiLU(),
        out=nn.Linear(12, 8),
    ),  # fmt: skip
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "layer norm without parameters": lambda: nn.LayerNorm(WIDTH, elementwise_affine=False),
    "layer norm without bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "layer norm of a residual": lambda: Apply(
        lambda m, x: x + m.fc(m.norm(x)), norm=nn.LayerNorm(WIDTH), fc=nn.Linear(WIDTH, WIDTH)
    ),
    "root mean square norm": lambda: nn.RMSNorm(WIDTH, eps=1e-6),
    "root mean square by hand": lambda: Apply(root_mean_square, weight=torch.randn(WIDTH)),
    "layer norm by hand": lambda: Apply(layer_norm_by_hand, weight=torch.randn(WIDTH), shift=torch.randn(WIDTH)),
    "layer scale": lambda: Apply(
        lambda m, x: x + m.gamma * m.fc(x), gamma=torch.randn(WIDTH), fc=nn.Linear(WIDTH, WIDTH)
    ),
    "token and position": lambda: Apply(token, token=torch.randn(1, 1, WIDTH), position=torch.randn(1, 82, WIDTH)),
    "class token": lambda: nn.Sequential(
        Apply(token, token=torch.randn(1, 1, WIDTH), position=torch.randn(1, 82, WIDTH)),
        attention(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)),
        nn.LayerNorm(WIDTH),
        Apply(lambda m, x: x[:, 0]),
    ),
    "token drop": lambda: Apply(lambda m, x: m.fc(x[:, 1:]).mean(1), fc=nn.Linear(WIDTH, 6)),
    "token mixer": lambda: Apply(
        lambda m, x: x + m.fc2(m.act(m.fc1(x.transpose(1, 2)))).transpose(1, 2),
        fc1=nn.Linear(81, 10),
        act=nn.GELU(),
        fc2=nn.Linear(10, 81),
    ),  # fmt: skip
    "matmul": lambda: Apply(lambda m, x: m.a(x).transpose(1, 2) @ m.b(x), a=nn.Linear(8, 6), b=nn.Linear(8, 4)),
    "matmul with itself": lambda: Apply(lambda m, x: x.transpose(1, 2) @ x),
    "batched matmul": lambda: Apply(lambda m, x: torch.bmm(x.transpose(1, 2), m.b(x)), b=nn.Linear(8, 4)),
    "attention": lambda: attention(softmax_between_matmuls),
    "attention fused": lambda: attention(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)),
    "attention with a scale": lambda: attention(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.9)),
    "attention with a bias": lambda: attention(
        lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=m.bias)
    ),
    "attention with one qkv": lambda: Apply(fused_qkv, qkv=nn.Linear(8, 24), out=nn.Linear(8, 8)),
    "attention of few queries": lambda: Apply(
        lambda m, x: m.out(F.scaled_dot_product_attention(m.q(x[:, :3]), m.k(x), m.v(x))),
        q=nn.Linear(8, 8),
        k=nn.Linear(8, 8),
        v=nn.Linear(8, 8),
        out=nn.Linear(8, 8),
    ),  # fmt: skip
}


def build_network(frame: type[nn.Module], build, seed: int = 1) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    images, labels = pictures(3, 9, classes=5)
    model = randomise(frame(build()), pictures(16, 9, seed=2)[0])
    return model.double(), images.double(), labels
