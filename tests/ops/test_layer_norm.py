"""`layer_norm` against its definition, computed row by row in double precision."""

import math

import pytest
import torch
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import layer_norm, layer_norm_
from pxp_fast.ops.layer_norm import reference

OPERATOR = torch.ops.pxp_fast.layer_norm.default
IN_PLACE = torch.ops.pxp_fast.layer_norm_.default


def factor(value, eps):
    return value / (value + math.copysign(eps, value)) if value else 0.0


def by_definition(carry, output, rstd, weight, residual, eps, join=None):
    width = carry.shape[-1]
    rows = [t.double().cpu().reshape(-1, width).tolist() for t in (carry, output)]
    deviations = rstd.double().cpu().flatten().tolist()
    scales = [1.0] * width if weight is None else weight.double().cpu().tolist()
    result = []
    for c, y, deviation in zip(*rows, deviations, strict=True):
        t = [c[i] * factor(y[i], eps) * scales[i] * deviation for i in range(width)]
        mean = math.fsum(t) / width
        result.append([value - mean for value in t])
    result = torch.tensor(result, dtype=torch.float64).reshape(carry.shape)
    if residual is not None:
        result = result + residual.double().cpu()
    if join is not None:
        factors = torch.tensor([factor(x, eps) for x in join.flatten().tolist()], dtype=torch.float64)
        result = result * factors.reshape(carry.shape)
    return result


def inputs(shape, dtype, device, weighted=True, residual=True):
    generator = torch.Generator().manual_seed(0)
    carry, output, rest = (torch.randn(shape, generator=generator).to(device, dtype) for _ in range(3))
    output.view(-1)[::5] = 0
    rstd = torch.rand(*shape[:-1], 1, generator=generator).to(device) + 0.5
    if dtype == torch.float64:
        rstd = rstd.double()
    weight = torch.randn(shape[-1], generator=generator).to(device, dtype) if weighted else None
    return carry, output, rstd, weight, rest if residual else None


def join_of(carry):
    """A residual sum, with zeros of both signs in it."""
    join = torch.randn(carry.shape, generator=torch.Generator().manual_seed(9)).to(carry)
    join.view(-1)[::7], join.view(-1)[3::7] = 0.0, -0.0
    return join


def check(carry, output, rstd, weight, residual, eps=1e-2):
    unit = torch.finfo(carry.dtype).eps
    bound = 32 * unit if unit < 1e-10 else max(unit, 32 * torch.finfo(torch.float32).eps)
    for join in (None, join_of(carry), join_of(carry.mT).mT if carry.dim() > 1 else None):
        result = layer_norm(carry, output, rstd, weight, residual, join, eps=eps)
        expected = by_definition(carry, output, rstd, weight, residual, eps, join)
        torch.testing.assert_close(result.cpu().double(), expected, rtol=bound, atol=bound)
        assert result.dtype == carry.dtype and result.is_contiguous()
        if residual is None:
            continue
        before = residual.clone()
        assert layer_norm_(carry, output, rstd, weight, residual, join, eps=eps) is residual
        assert torch.equal(residual, result)
        residual.copy_(before)


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


def test_around_a_sliced_residual_nothing_changes(dtype, device):
    carry, output, rstd, weight, residual = inputs((4, 6, 8), dtype, device)
    expected = residual.clone()
    inside = (slice(1, 3), slice(None, None, 2))
    part = (carry[inside], output[inside], rstd[inside], weight)
    expected[inside] = layer_norm(*part, residual[inside], carry[inside])
    layer_norm_(*part, residual[inside], carry[inside])
    assert torch.equal(residual, expected)


def test_threads_do_not_change_a_bit(threads, device):
    tensors = inputs((300, 190), torch.float32, device)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(layer_norm(*tensors, join_of(tensors[0])))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_equals_the_reference(dtype, device):
    tensors = inputs((50, 190), dtype, device)
    unit = torch.finfo(dtype).eps
    bound = 1e-14 if unit < 1e-10 else max(unit, 2e-6)
    for join in (None, join_of(tensors[0])):
        expected = reference(*tensors, 1e-6, join)
        torch.testing.assert_close(layer_norm(*tensors, join), expected, rtol=bound, atol=bound)


@pytest.mark.parametrize("weighted", [True, False])
def test_opcheck(weighted, dtype, device):
    tensors = inputs((2, 3, 8), dtype, device, weighted, not weighted)
    opcheck(OPERATOR, (*tensors, 1e-3))
    opcheck(OPERATOR, (*tensors, 1e-3, join_of(tensors[0])))
    tensors = inputs((2, 3, 8), dtype, device, weighted)
    opcheck(IN_PLACE, (*tensors, 1e-3))
    opcheck(IN_PLACE, (*tensors, 1e-3, join_of(tensors[0])))


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
        ({"join": torch.zeros(3)}, "join"),
        ({"eps": -1.0}, "not negative"),
    ],
)
def test_wrong_arguments(change, message):
    arguments = {"carry": torch.zeros(2, 3), "output": torch.zeros(2, 3), "rstd": torch.zeros(2, 1)} | change
    with pytest.raises(PxpError, match=message):
        layer_norm(**arguments)


def test_a_residual_that_overlaps_itself():
    z, rstd = torch.zeros(2, 3), torch.zeros(2, 1)
    with pytest.raises(PxpError, match="layer_norm_: residual .* expanded"):
        layer_norm_(z, z, rstd, None, torch.zeros(1, 3).expand(2, 3))
