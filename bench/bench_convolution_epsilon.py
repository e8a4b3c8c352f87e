"""How fast `convolution_epsilon` is, beside the same work in separate steps and what torch.compile makes of these.

``pytest -s bench/bench_convolution_epsilon.py`` prints TFLOP/s and GB/s, which also stand in `extra_info` of
``--benchmark-json``: the input gradient alone counts as arithmetic, and what the fused form must read and write as
memory. All tensors are channels-last.
"""

from __future__ import annotations

import pytest
import torch

from pxp_fast.ops import convolution_epsilon, epsilon

from .rounds import DEVICE, compiled, dtypes, rotated, run

SAMPLES = 64 if DEVICE == "cuda" else 1

# Layers of a ResNet-50: channels below, rows (and columns) below, features above, kernel, stride, whether a residual
# carry joins.
CASES = {
    "early-3x3": (64, 56, 64, 3, 1, False),
    "early-1x1": (256, 56, 64, 1, 1, True),
    "strided-3x3": (128, 56, 128, 3, 2, False),
    "shortcut": (512, 28, 1024, 1, 2, True),
    "late-3x3": (512, 7, 512, 3, 1, False),
    "late-1x1": (2048, 7, 512, 1, 1, True),
}


def fused(scaled, weight, output, carry, sums, stride, padding):
    return convolution_epsilon(
        scaled, weight, output, carry, sums=sums, stride=stride, padding=padding, activation="relu", tf32=True
    )


def gradient(scaled, weight, output, carry, stride, padding):
    total = torch.ops.aten.convolution_backward(
        scaled, output, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (True, False, False)
    )[0]
    return total if carry is None else total + carry


def separate(scaled, weight, output, carry, sums, stride, padding):
    """A library's input gradient, and this package's epsilon in one pass over what it wrote."""
    result, own = epsilon(gradient(scaled, weight, output, carry, stride, padding), output, activation="relu")
    sums += own
    return result


def composite(scaled, weight, output, carry, sums, stride, padding):
    """The same in plain PyTorch, as a user would write it."""
    z = output.float()
    passed = gradient(scaled, weight, output, carry, stride, padding).float() * (z > 0)
    relevance = passed * z
    sums += torch.stack([relevance.sum((2, 3)), relevance.abs().sum((2, 3))])
    return (passed * (z.abs() / (z.abs() + 1e-6))).to(output.dtype)


@dtypes
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "implementation",
    [fused, separate, composite, compiled(composite)],
    ids=["fused", "separate", "composite", "compile"],
)
def test_convolution_epsilon(benchmark, case, dtype, implementation):
    channels, size, features, kernel, step, joined = CASES[case]
    stride, padding = (step, step), (kernel // 2, kernel // 2)
    above = (size + 2 * padding[0] - kernel) // step + 1
    benchmark.group = f"{case} {dtype}"
    torch.backends.cudnn.allow_tf32 = True  # what `fused` may do, the others may too

    sums = torch.zeros(2, SAMPLES, channels, device=DEVICE)

    def make(generator):
        def normal(*shape):
            values = torch.randn(shape, generator=generator, device=DEVICE)
            return values.to(dtype, memory_format=torch.channels_last)

        scaled, weight = normal(SAMPLES, features, above, above), normal(features, channels, kernel, kernel)
        output = normal(SAMPLES, channels, size, size)
        return scaled, weight, output, torch.randn_like(output) if joined else None, sums, stride, padding

    sets = rotated(make)
    scaled, weight, output, carry = sets[0][:4]
    moved = sum(t.nbytes for t in (scaled, weight, output, output, sums) + ((carry,) if joined else ()))
    operations = 2 * SAMPLES * above**2 * features * channels * kernel**2
    run(benchmark, implementation, sets, moved, rounds=20, operations=operations)
