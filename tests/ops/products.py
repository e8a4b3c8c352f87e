"""The epsilon products by definition: one output position and one tap at a time, in double precision."""

import pytest
import torch
import torch.nn.functional as F

# Element types, and whether float32 factors may be rounded for the tensor cores.
PRECISIONS = [
    pytest.param(torch.float64, False, id="float64"),
    pytest.param(torch.float32, False, id="float32"),
    pytest.param(torch.float32, True, id="tf32"),
    pytest.param(torch.bfloat16, False, id="bfloat16"),
    pytest.param(torch.float16, False, id="float16"),
]
# Of these, what tensor cores multiply.
TENSOR_CORES = PRECISIONS[2:]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="tiles of tensor cores need a GPU")

FUNCTIONS = {
    "identity": lambda z: z.clone(),
    "relu": F.relu,
    "relu6": F.relu6,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def normal(shape, dtype, device="cpu", seed=0, layout=torch.contiguous_format):
    """Normal values, with zeros of both signs among them."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    flat = values.view(-1)
    flat[::11], flat[5::13] = 0.0, -0.0
    return values.to(device, dtype).contiguous(memory_format=layout)


def gain(activation, z):
    """act(z) / z, at zero the derivative, which is its limit."""
    z = z.clone().requires_grad_()
    value = FUNCTIONS[activation](z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    return torch.where(z == 0, slope, value / z).detach()


def linear_carry(scaled, weight):
    return torch.einsum("...o,oi->...i", scaled.double(), weight.double())


def convolution_carry(scaled, weight, shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """Every element above sends its value back through every tap to the pixel that the tap had looked at."""
    samples, channels, height, width = shape
    carry = torch.zeros(samples, groups, channels // groups, height, width, dtype=torch.float64)
    above = scaled.double().cpu().unflatten(1, (groups, -1))
    taps = weight.double().cpu().unflatten(0, (groups, -1))
    for r in range(weight.shape[2]):
        for s in range(weight.shape[3]):
            sent = torch.einsum("ngkij,gkc->ngcij", above, taps[..., r, s])
            for i in range(scaled.shape[2]):
                for j in range(scaled.shape[3]):
                    h = i * stride[0] - padding[0] + r * dilation[0]
                    w = j * stride[1] - padding[1] + s * dilation[1]
                    if 0 <= h < height and 0 <= w < width:
                        carry[..., h, w] += sent[..., i, j]
    return carry.flatten(1, 2)


def transposed_carry(scaled, weight, shape, stride=(1, 1), padding=(0, 0), dilation=(1, 1), groups=1):
    """The same as one product of matrices whose columns are added where they belong: fast enough for large layers."""
    taps = weight.double().unflatten(0, (groups, -1)).flatten(2)
    above = scaled.double().unflatten(1, (groups, -1)).flatten(3)
    columns = torch.einsum("gkt,ngkp->ngtp", taps, above).flatten(1, 2)
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    return F.fold(columns, shape[2:], weight.shape[2:], **options)


def finish(carry, output, eps, activation, unit_dim, group=1, stabilized=False):
    """The scaled carry, and the sums over positions of its units' relevance."""
    z = output.double().cpu()
    passed = carry.cpu() * gain(activation, z)
    result = torch.where(z == 0, 0.0, passed * z / (z + torch.copysign(torch.full_like(z, eps), z)))
    relevance = ((result if stabilized else passed) * z).movedim(unit_dim, -1)
    sums = torch.zeros(2, z.shape[0], z.shape[unit_dim] // group, dtype=torch.float64)
    for n in range(z.shape[0]):
        rows = relevance[n].reshape(-1, sums.shape[2], group).sum(-1)
        sums[0, n], sums[1, n] = rows.sum(0), rows.abs().sum(0)
    return result, sums


def table(samples, units, dtype, device):
    """A slice of a larger table, as the sums of one layer are; what surrounds it must stay as it is."""
    whole = normal((2, samples + 1, units + 9), torch.float64, seed=9).to(device, dtype)
    return whole, whole[:, :samples, 4 : 4 + units]


def check(
    operation, output, carry, magnitude, joined, unit_dim, eps, activation, group=1, stabilized=False, tf32=False
):
    """Compare `operation(sums)` with the definition; `magnitude` is the carry of the factors' absolute values."""
    dtype = output.dtype
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    if joined is not None:
        carry, magnitude = carry.cpu() + joined.double().cpu(), magnitude.cpu() + joined.double().cpu().abs()
    true, true_sums = finish(carry, output, eps, activation, unit_dim, group, stabilized)
    bound, bound_sums = finish(magnitude, output.abs(), 0.0, "identity", unit_dim, group)
    whole, sums = table(output.shape[0], output.shape[unit_dim] // group, compute, output.device)
    before, surroundings = sums.clone(), whole.clone()
    result = operation(sums)

    # A sum's error is measured by what was added; a result narrower than float32 is rounded once more, at the end.
    work = 1.05 * 2.0**-10 if tf32 else 32 * torch.finfo(compute).eps
    unit = torch.finfo(dtype).eps
    error = (result.cpu().double() - true).abs()
    assert (error <= unit * true.abs() + work * bound + torch.finfo(dtype).tiny).all(), error.max()
    assert result.dtype == dtype and result.stride() == torch.empty_like(output).stride()
    error = (sums.cpu().double() - before.cpu().double() - true_sums).abs()
    assert (error <= work * (bound_sums[1] + before.cpu().abs())).all(), error.max()
    surroundings[:, : output.shape[0], 4 : 4 + sums.shape[2]] = sums
    assert torch.equal(whole, surroundings), "written beside the slice of sums"

    assert torch.equal(operation(None), result)
    again = before.clone()
    assert torch.equal(operation(again), result)
    assert torch.equal(again, sums), "the same input gave other bits"
