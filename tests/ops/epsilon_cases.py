"""What the tests of `epsilon`, `epsilon_` and `unit_sums_` share: the definition, and the tensors it is tried on."""

import math

import numpy as np
import pytest
import torch


def activated(activation, z):
    """The activation functions as their papers define them."""
    return {
        "identity": lambda: z,
        "relu": lambda: max(z, 0.0),
        "relu6": lambda: min(max(z, 0.0), 6.0),
        "gelu": lambda: z * 0.5 * math.erfc(-z / math.sqrt(2)),
        # (1 + tanh u) / 2, without its cancellation for negative u
        "gelu_tanh": lambda: z / (1 + math.exp(-2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
        "silu": lambda: z / (1 + math.exp(-z)),
        "hardswish": lambda: z * min(max(z + 3.0, 0.0), 6.0) / 6.0,
    }[activation]()


LIMITS = {"identity": 1.0, "relu": 0.0, "relu6": 0.0, "gelu": 0.5, "gelu_tanh": 0.5, "silu": 0.5, "hardswish": 0.5}


def by_definition(carry, output, eps, activation, unit_dim, group, stabilized_sums=False):
    """Relevance at the output, what goes back from it, and the sums of every unit, element by element."""
    c, z = carry.double().cpu().numpy(), output.double().cpu().numpy()
    scaled, relevance = np.zeros(z.shape), np.zeros(z.shape)
    for index in np.ndindex(z.shape):
        value = z[index]
        gain = activated(activation, value) / value if value else LIMITS[activation]
        stabilized = value + math.copysign(eps, value)
        scaled[index] = c[index] * gain * (value / stabilized if value else 0.0)
        relevance[index] = scaled[index] * value if stabilized_sums else c[index] * gain * value
    relevance = np.moveaxis(relevance, unit_dim, -1)
    samples, channels = z.shape[0], z.shape[unit_dim]
    sums = np.zeros((2, samples, channels // group))
    for n in range(samples):
        for position in np.ndindex(relevance.shape[1:-1]):
            for unit in range(channels // group):
                value = relevance[n][position][unit * group : (unit + 1) * group].sum()
                sums[0, n, unit] += value
                sums[1, n, unit] += abs(value)
    return torch.from_numpy(scaled), torch.from_numpy(sums)


def assert_scaled(scaled, expected):
    """A result narrower than float32 is rounded once, at the end; below its normal range it keeps fewer digits."""
    unit = torch.finfo(scaled.dtype).eps
    # (GELU's tail multiplies the rounding of its argument by the argument squared.)
    bound = 64 * unit if unit < 1e-10 else max(16 * torch.finfo(torch.float32).eps, unit)
    tiny = float(torch.finfo(scaled.dtype).tiny)
    torch.testing.assert_close(scaled.cpu().double(), expected, rtol=bound, atol=tiny * 1.01)


def assert_sums(sums, expected, carry, output, unit_dim, group, before=0.0):
    """Sums cancel: their error is measured by what was added."""
    added = by_definition(carry.abs(), output.abs(), 0.0, "identity", unit_dim, group)[1][1]
    error = (sums.cpu().double() - expected).abs()
    assert (error <= 16 * torch.finfo(sums.dtype).eps * (added + before) + 1e-300).all(), error.max()


def normal(shape, dtype, device, seed=0):
    """Normal values, with zeros of both signs among them."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2
    flat = values.view(-1)
    flat[::11], flat[5::13] = 0.0, -0.0
    return values.to(device, dtype)


def pair(shape, dtype, device):
    return normal(shape, dtype, device, 1), normal(shape, dtype, device, 2)


# Shape, unit_dim, group, and why it is here.
SHAPES = [
    pytest.param((2, 3, 5, 7), 1, 1, id="convolution"),
    pytest.param((2, 3, 33, 1), 1, 1, id="row-longer-than-the-lanes"),
    pytest.param((1, 2, 40, 40), 1, 1, id="row-longer-than-a-chunk"),
    pytest.param((2, 20, 7, 7), 1, 1, id="several-rows-in-a-chunk"),
    pytest.param((2, 5, 4), 1, 1, id="one-spatial-dimension"),
    pytest.param((2, 3, 2, 3, 2), 1, 1, id="three-spatial-dimensions"),
    pytest.param((2, 6, 1, 1), 1, 1, id="one-position"),
    pytest.param((2, 1, 3, 3), 1, 1, id="one-channel"),
    pytest.param((3, 10), 1, 1, id="linear"),
    pytest.param((3, 10), -1, 1, id="linear-last"),
    pytest.param((2, 5, 12), -1, 1, id="tokens"),
    pytest.param((2, 300, 3), -1, 1, id="more-rows-than-a-block"),
    pytest.param((1, 2, 1500), -1, 1, id="more-channels-than-a-chunk"),
    pytest.param((1, 3, 4100), -1, 1, id="more-channels-than-a-tile"),
    pytest.param((2, 3, 4, 6), -1, 1, id="windows-of-tokens"),
    pytest.param((2, 5, 12), -1, 4, id="heads"),
    pytest.param((1, 3, 1400), -1, 700, id="heads-and-pieces"),
    pytest.param((1, 2, 2400), -1, 1200, id="head-longer-than-a-chunk"),
    pytest.param((4, 9), -1, 3, id="heads-without-positions"),
]


def channels_last(t):
    return t.contiguous(memory_format=torch.channels_last)


def transposed(a, b):
    return lambda t: t.transpose(a, b).contiguous().transpose(a, b)


STRIDES = {
    "channels-last": (channels_last, channels_last),
    "carry-contiguous": (lambda t: t, channels_last),
    "output-contiguous": (channels_last, lambda t: t),
    "expanded-carry": (lambda t: t[:, :, :1, :1].expand(t.shape), lambda t: t),
    "expanded-carry-channels-last": (lambda t: t[:, :, :1, :1].expand(t.shape), channels_last),
    "sliced": (lambda t: t[:, 1:], lambda t: t[:, 1:]),
    "sliced-channels-last": (lambda t: channels_last(t)[:, :, 1:], lambda t: channels_last(t)[:, :, 1:]),
    "every-second": (lambda t: t[..., ::2], lambda t: t[..., ::2]),
    "samples-inside": (transposed(0, 3), transposed(0, 3)),
    "columns-before-rows": (transposed(2, 3), transposed(2, 3)),
    "offset": (lambda t: t[:, :, :, 1:], lambda t: t[:, :, :, 1:].contiguous()),
}
