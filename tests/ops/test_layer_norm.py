"""`layer_norm` against its definition, computed row by row in double precision."""

import math

import pytest
import torch
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import layer_norm
from pxp_fast.ops.layer_norm import reference

OPERATOR = torch.ops.pxp_fast.layer_norm.default


def by_definition(carry, output, rstd, weight, residual, eps):
    width = carry.shape[-1]
    rows = [t.double().cpu().reshape(-1, width).tolist() for t in (carry, output)]
    deviations = rstd.double().cpu().flatten().tolist()
    scales = [1.0] * width if weight is None else weight.double().cpu().tolist()
    result = []
    for c, y, deviation in zip(*rows, deviations, strict=True):
        t = [
            c[i] * (y[i] / (y[i] + math.copysign(eps, y[i])) if y[i] else 0.0) * scales[i] * deviation
            for i in range(width)
        ]
        mean = math.fsum(t) / width
        result.append([value - mean for value in t])
    result = torch.tensor(result, dtype=torch.float64).reshape(carry.shape)
    return result if residual is None else result + residual.double().cpu()


def inputs(shape, dtype, device, weighted=True, residual=True):
    generator = torch.Generator().manual_seed(0)
    carry, output, rest = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    output.view(-1)[::5] = 0
    rstd = torch.rand(*shape[:-1], 1, generator=generator).to(device) + 0.5
    if dtype == torch.float64:
        rstd = rstd.double()
    weight = torch.randn(shape[-1], generator=generator).to(device, dtype) if weighted else None
    return carry, output, rstd, weight, rest if residual else None


def check(carry, output, rstd, weight, residual, eps=1e-2):
    result = layer_norm(carry, output, rstd, weight, residual, eps=eps)
    unit = torch.finfo(carry.dtype).eps
    bound = 32 * unit if unit < 1e-10 else max(unit, 32 * torch.finfo(torch.float32).eps)
    torch.testing.assert_close(
        result.cpu().double(), by_definition(carry, output, rstd, weight, residual, eps), rtol=bound, atol=bound
    )
    assert result.dtype == carry.dtype and result.is_contiguous()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("residual", [True, False])
def test_definition(weighted, residual, dtype, device):
    check(*inputs((3, 5, 24), dtype, device, weighted, residual))


@pytest.mark.parametrize("shape", [(7,), (1, 1), (4, 1025), (2, 3, 4, 5), (1, 3000)])
def test_definition_shapes(shape, device):
    check(*inputs(shape, torch.float32, device))


@pytest.mark.parametrize("eps", [0.0, 1e-6, 1.0])
def test_definition_eps(eps, device):
    check(*inputs((3, 8), torch.float32, device), eps=eps)


def test_definition_strides(device):
    carry, output, rstd, weight, residual = inputs((4, 6, 8), torch.float32, device)
    check(carry[:, 1:], output[:, 1:], rstd[:, 1:], weight, residual[:, 1:])
    check(carry[:, :1], output[:, :1], rstd[:, :1], weight, None)
    check(carry.transpose(0, 1), output.transpose(0, 1), rstd.transpose(0, 1), weight, residual.transpose(0, 1))
    check(carry[:, :1].expand(4, 6, 8), output, rstd, weight.repeat_interleave(2)[::2], residual)
    check(carry[..., ::2], output[..., ::2], rstd, weight[:4], residual[..., ::2])


def test_narrow_rstd(device):
    carry, output, rstd, weight, residual = inputs((3, 16), torch.bfloat16, device)
    check(carry, output, rstd.bfloat16(), weight.float(), residual)


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (2, 0, 4)])
def test_empty(shape, device):
    assert layer_norm(*inputs(shape, torch.float32, device)).shape == shape


def test_nan_stays_in_its_row(device):
    carry, output, rstd, weight, residual = inputs((4, 16), torch.float32, device)
    output[2, 3] = math.nan
    result = layer_norm(carry, output, rstd, weight, residual).cpu()
    assert result[2].isnan().all() and result[[0, 1, 3]].isfinite().all()


def test_threads_do_not_change_a_bit(threads, device):
    tensors = inputs((300, 190), torch.float32, device)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(layer_norm(*tensors))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_equals_the_reference(dtype, device):
    tensors = inputs((50, 190), dtype, device)
    unit = torch.finfo(dtype).eps
    bound = 1e-14 if unit < 1e-10 else max(unit, 2e-6)
    torch.testing.assert_close(layer_norm(*tensors), reference(*tensors, 1e-6), rtol=bound, atol=bound)


@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck(weighted, dtype, device):
    opcheck(OPERATOR, (*inputs((2, 3, 8), dtype, device, weighted, not weighted), 1e-3))


def test_opcheck_strides(device):
    carry, output, rstd, weight, _ = inputs((4, 6, 8), torch.float32, device)
    opcheck(OPERATOR, (carry[:, ::2], output[:, ::2], rstd[:, ::2], weight, None, 1e-3))
    opcheck(OPERATOR, (carry[:0], output[:0], rstd[:0], weight, None, 1e-3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"output": torch.zeros(2, 4)}, "one shape"),
        ({"rstd": torch.zeros(2)}, "rstd"),
        ({"rstd": torch.zeros(2, 1).half()}, "rstd"),
        ({"weight": torch.zeros(4)}, "weight"),
        ({"residual": torch.zeros(2, 3).double()}, "residual"),
        ({"eps": -1.0}, "not negative"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"carry": torch.zeros(2, 3), "output": torch.zeros(2, 3), "rstd": torch.zeros(2, 1)} | change
    with pytest.raises(PxpError, match=message):
        layer_norm(**arguments)
