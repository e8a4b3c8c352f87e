"""`convolution_epsilon` against its definition: tap by tap, in double precision."""

import pytest
import torch
from products import PRECISIONS, TENSOR_CORES, check, convolution_carry, needs_cuda, normal, table, transposed_carry
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import ACTIVATIONS, convolution_epsilon, epsilon

OPERATOR = torch.ops.pxp_fast.convolution_epsilon.default
PLAIN = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1}


def tensors(shape, features, kernel, dtype, device, layout=torch.channels_last, **settings):
    """`scaled`, `weight`, `output` and `carry` for an output of `shape` below a convolution."""
    settings = PLAIN | settings
    above = [
        (size + 2 * pad - gap * (taps - 1) - 1) // step + 1
        for size, taps, step, pad, gap in zip(
            shape[2:], kernel, settings["stride"], settings["padding"], settings["dilation"], strict=True
        )
    ]
    return (
        normal((shape[0], features, *above), dtype, device, 1, layout),
        normal((features, shape[1] // settings["groups"], *kernel), dtype, device, 2, layout),
        normal(shape, dtype, device, 3, layout) * 2,
        normal(shape, dtype, device, 4, layout),
    )


def verify(
    scaled, weight, output, joined=None, activation="identity", tf32=False, eps=1e-2, true=convolution_carry, **settings
):
    def operation(sums):
        return convolution_epsilon(
            scaled, weight, output, joined, sums=sums, eps=eps, activation=activation, tf32=tf32, **settings
        )

    carry = true(scaled, weight, output.shape, **settings)
    magnitude = true(scaled.abs(), weight.abs(), output.shape, **settings)
    check(operation, output, carry, magnitude, joined, 1, eps, activation, tf32=tf32 and scaled.is_cuda)


# Shape of the output, features above it, kernel, what else there is to the convolution, and why it is here.
CASES = [
    pytest.param((2, 16, 5, 6), 24, (1, 1), {}, id="1x1"),
    pytest.param((2, 8, 7, 5), 8, (3, 3), {"padding": (1, 1)}, id="3x3"),
    pytest.param((1, 8, 9, 9), 16, (7, 7), {"padding": (3, 3), "stride": (2, 2)}, id="7x7-stride-2"),
    pytest.param((2, 16, 8, 7), 8, (3, 3), {"padding": (1, 1), "stride": (2, 2)}, id="3x3-stride-2"),
    pytest.param((2, 8, 7, 8), 16, (1, 1), {"stride": (2, 2)}, id="1x1-stride-2"),
    pytest.param((2, 8, 11, 10), 8, (3, 3), {"padding": (2, 2), "dilation": (2, 2)}, id="dilation-2"),
    pytest.param((1, 8, 12, 12), 8, (3, 3), {"stride": (2, 2), "dilation": (2, 2)}, id="stride-2-and-dilation-2"),
    pytest.param((1, 8, 14, 13), 8, (3, 2), {"stride": (3, 2), "dilation": (2, 3), "padding": (1, 2)}, id="all-uneven"),
    pytest.param((1, 8, 9, 11), 8, (2, 2), {"stride": (4, 3)}, id="stride-beyond-the-kernel"),
    pytest.param((2, 8, 12, 12), 16, (4, 4), {"stride": (4, 4)}, id="patches"),
    pytest.param((1, 8, 2, 3), 8, (5, 5), {"padding": (4, 4)}, id="kernel-beyond-the-image"),
    pytest.param((2, 32, 5, 5), 48, (3, 3), {"padding": (1, 1), "groups": 2}, id="groups"),
    pytest.param((2, 32, 5, 5), 16, (3, 3), {"padding": (1, 1), "groups": 8}, id="groups-of-4-and-2"),
    pytest.param((2, 24, 7, 7), 24, (3, 3), {"padding": (1, 1), "groups": 24}, id="depthwise"),
    pytest.param((1, 9, 7, 7), 18, (5, 5), {"padding": (2, 2), "groups": 9, "stride": (2, 2)}, id="depthwise-doubling"),
    pytest.param((2, 5, 6, 7), 7, (3, 3), {"padding": (1, 0)}, id="odd-channels"),
    pytest.param((5, 136, 7, 7), 72, (1, 1), {}, id="tiles-that-straddle-samples"),
    pytest.param((3, 8, 1, 1), 8, (1, 1), {}, id="one-pixel"),
    pytest.param((2, 8, 5, 4), 8, (5, 1), {"stride": (10**9, 1), "dilation": (1, 10**9)}, id="steps-that-mean-nothing"),
    pytest.param((2, 3, 6, 5), 8, (3, 3), {}, id="colours"),
]


@pytest.mark.parametrize(("shape", "features", "kernel", "settings"), CASES)
@pytest.mark.parametrize(("dtype", "tf32"), PRECISIONS)
def test_definition_cases(shape, features, kernel, settings, dtype, tf32, device):
    scaled, weight, output, carry = tensors(shape, features, kernel, dtype, device, **settings)
    verify(scaled, weight, output, None, "identity", tf32, **settings)
    verify(scaled, weight, output, carry, "relu", tf32, **settings)


LAYERS = [
    pytest.param((8, 64, 56, 56), 72, (3, 3), {"padding": (1, 1)}, id="tall-tiles"),
    pytest.param((8, 64, 56, 56), 72, (3, 3), {"padding": (1, 1), "stride": (2, 2)}, id="tall-tiles-stride-2"),
    pytest.param((8, 136, 56, 56), 120, (3, 3), {"padding": (1, 1)}, id="large-tiles"),
    pytest.param((8, 136, 56, 56), 72, (1, 1), {"stride": (2, 2)}, id="large-tiles-stride-2"),
]


# What only layers as large as real ones meet: the tiles taken where there are at least 128 of them. One of the layers
# adds up more than a thousand terms.
@needs_cuda
@pytest.mark.parametrize(("shape", "features", "kernel", "settings"), LAYERS)
@pytest.mark.parametrize(("dtype", "tf32"), TENSOR_CORES)
def test_definition_of_real_layers_on_cuda(shape, features, kernel, settings, dtype, tf32):
    scaled, weight, output, carry = tensors(shape, features, kernel, dtype, "cuda", **settings)
    verify(scaled, weight, output, None, "identity", tf32, true=transposed_carry, **settings)
    verify(scaled, weight, output, carry, "relu", tf32, true=transposed_carry, **settings)


@pytest.mark.parametrize(("shape", "features", "kernel", "settings"), CASES)
def test_truth_of_large_layers_is_the_definition(shape, features, kernel, settings):
    scaled, weight, output, _ = tensors(shape, features, kernel, torch.float64, "cpu", **settings)
    found = transposed_carry(scaled, weight, output.shape, **settings)
    torch.testing.assert_close(found, convolution_carry(scaled, weight, output.shape, **settings))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_definition_activations(activation, dtype, device):
    verify(*tensors((2, 8, 5, 5), 8, (3, 3), dtype, device), activation)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_definition_eps(eps, device):
    verify(*tensors((2, 8, 5, 5), 8, (3, 3), torch.float32, device), eps=eps)


def test_definition_layouts(dtype, device):
    settings = {"padding": (1, 1), "stride": (2, 2)}
    scaled, weight, output, carry = tensors((2, 16, 8, 6), 8, (3, 3), dtype, device, **settings)
    for contiguous in range(16):
        mixed = [t.contiguous() if contiguous >> i & 1 else t for i, t in enumerate((scaled, weight, output, carry))]
        verify(*mixed, **settings)
    sliced = scaled[:, :, :, 1:], weight, output[:, :, :, 2:], carry[:, :, :, 2:]
    verify(*sliced, stride=(2, 2), padding=(1, 1))
    verify(scaled, weight[:, 8:], output[:, 8:], carry[:, 8:], **settings)
    verify(scaled[:1].expand(2, -1, -1, -1), weight, output[:1].expand(2, -1, -1, -1), carry, **settings)


def test_is_the_gradient_and_then_epsilon(device):
    settings = {"padding": (1, 2), "stride": (2, 1), "groups": 2}
    scaled, weight, output, carry = tensors((3, 6, 7, 6), 4, (3, 3), torch.float64, device, **settings)
    below = output.clone().requires_grad_()
    above = torch.nn.functional.conv2d(below, weight, **settings)
    (gradient,) = torch.autograd.grad(above, below, scaled)
    sums = torch.zeros(2, 3, 6, dtype=torch.float64, device=device)
    result = convolution_epsilon(scaled, weight, output, carry, sums=sums, eps=1e-3, activation="silu", **settings)
    expected = epsilon(gradient + carry, output, eps=1e-3, activation="silu")
    torch.testing.assert_close((result, sums), expected, rtol=1e-12, atol=1e-12)


def test_no_samples(device):
    scaled, weight, output, carry = tensors((0, 8, 5, 5), 8, (3, 3), torch.float32, device)
    sums = torch.ones(2, 0, 8, device=device)
    assert convolution_epsilon(scaled, weight, output, carry, sums=sums).shape == output.shape


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("summed", [False, True])
def test_opcheck(joined, summed, dtype, device):
    scaled, weight, output, carry = tensors((2, 8, 6, 5), 8, (3, 3), dtype, device, stride=(2, 1))
    sums = table(2, 8, torch.float64 if dtype == torch.float64 else torch.float32, device)[1] if summed else None
    opcheck(
        OPERATOR,
        (
            scaled,
            weight,
            output,
            carry if joined else None,
            sums,
            [2, 1],
            [0, 0],
            [1, 1],
            1,
            1e-3,
            ACTIVATIONS.index("relu"),
            True,
        ),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scaled": torch.zeros(2, 4, 3, 4)}, "belongs together"),
        ({"scaled": torch.zeros(2, 4, 3)}, "pass scaled"),
        ({"weight": torch.zeros(4, 5, 3, 3)}, "belongs together"),
        ({"output": torch.zeros(2, 6, 6, 5)}, "belongs together"),
        ({"output": torch.zeros(2, 6, 2, 5)}, "belongs together"),
        ({"groups": 3}, "belongs together"),
        ({"groups": 0}, "from 1 on"),
        ({"stride": (0, 1)}, "from 1 on"),
        ({"padding": (-1, 0)}, "from 0 on"),
        ({"dilation": (1,)}, "two numbers"),
        ({"weight": torch.zeros(4, 6, 3, 3).half()}, "one dtype"),
        ({"carry": torch.zeros(2, 6, 5, 1)}, "one shape"),
        ({"sums": torch.zeros(2, 2, 4)}, "signed and absolute"),
        ({"activation": "tanh"}, "choose one of"),
        ({"eps": -1.0}, "not negative"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {
        "scaled": torch.zeros(2, 4, 3, 3),
        "weight": torch.zeros(4, 6, 3, 3),
        "output": torch.zeros(2, 6, 5, 5),
    }
    with pytest.raises(PxpError, match=message):
        convolution_epsilon(**arguments | change)
