"""`mask_` zeroes what is not kept, whatever it held, and touches nothing else."""

import math

import pytest
import torch
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import mask_

OPERATOR = torch.ops.pxp_fast.mask_.default


def flags(*values, device="cpu"):
    return torch.tensor(values, dtype=torch.bool, device=device)


def check(parameter, keep, dim):
    """Compare with a walk over all elements, through Python numbers."""
    before = parameter.clone()
    mask_([parameter], [keep], [dim])
    kept = keep.tolist()
    for index in torch.cartesian_prod(*(torch.arange(size) for size in parameter.shape)).reshape(-1, parameter.dim()):
        at = tuple(index.tolist())
        if kept[at[dim]]:
            assert parameter[at].equal(before[at])
        else:
            assert parameter[at].item() == 0 and not torch.signbit(parameter[at])


@pytest.mark.parametrize(
    ("shape", "dim"), [((4,), 0), ((4, 3), 0), ((3, 4), 1), ((4, 3, 2, 2), 0), ((3, 4, 2, 2), 1), ((2, 3, 4), -1)]
)
def test_every_element(shape, dim, dtype, device):
    check(torch.randn(shape).to(device, dtype), flags(True, False, False, True, device=device), dim)


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t.T,
        lambda t: t[1:],
        lambda t: t[:, 2:],
        lambda t: t[::2, ::2],
        lambda t: t.view(6, 2, 4).permute(2, 0, 1),
        lambda t: t.view(2, 3, 2, 4).contiguous(memory_format=torch.channels_last),
    ],
)
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_views(view, dim, device):
    parameter = view(torch.randn(6, 8, device=device))
    check(parameter, torch.arange(parameter.shape[dim], device=device) % 3 == 1, dim)


def test_a_view_leaves_its_surroundings(device):
    whole = torch.randn(6, 8, device=device)
    before = whole.clone()
    mask_([whole[2:4, 1:5]], [flags(False, False, device=device)], [0])
    assert (whole[2:4, 1:5] == 0).all()
    whole[2:4, 1:5] = before[2:4, 1:5]
    assert torch.equal(whole, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_zero(value, dtype, device):
    parameter = torch.full((3, 4), value, dtype=dtype, device=device)
    mask_([parameter], [flags(False, True, False, device=device)], [0])
    assert (parameter[[0, 2]] == 0).all()
    assert not parameter[1].isfinite().any()


def test_all_layers_in_one_call(device):
    parameters = [torch.randn(5, 3).to(device, d) for d in (torch.float32, torch.float64, torch.float16)]
    parameters += [
        torch.randn(5, device=device),
        torch.randn(0, 5, device=device),
        torch.randn(2, 70000, device=device),
    ]
    keep = [torch.rand(5, device=device) > 0.5 for _ in range(5)] + [torch.rand(70000, device=device) > 0.5]
    dims = [0, 0, 0, 0, 1, 1]
    expected = [p.clone() for p in parameters]
    for p, k, d in zip(expected, keep, dims, strict=True):
        p.index_fill_(d, (~k).nonzero().flatten(), 0)
    mask_(parameters, keep, dims)
    assert all(torch.equal(p, e) for p, e in zip(parameters, expected, strict=True))


def test_many_layers(device):
    """More layers than one table of kernel arguments holds."""
    parameters = [torch.randn(4, 3, device=device) for _ in range(150)]
    keep = [torch.rand(4, device=device) > 0.5 for _ in parameters]
    expected = [p * k[:, None] for p, k in zip(parameters, keep, strict=True)]
    mask_(parameters, keep, [0] * 150)
    assert all(torch.equal(p, e) for p, e in zip(parameters, expected, strict=True))


def test_parameters_that_require_gradients(device):
    parameter = torch.nn.Parameter(torch.randn(3, 2, device=device))
    mask_([parameter], [flags(True, False, True, device=device)], [0])
    assert (parameter[1] == 0).all() and parameter.requires_grad and parameter.grad_fn is None


def test_nothing(device):
    mask_([], [], [])
    parameter = torch.ones(3, 2, device=device)
    mask_([parameter], [torch.ones(3, dtype=torch.bool, device=device)], [0])
    assert (parameter == 1).all()


def test_opcheck(dtype, device):
    parameters = [torch.randn(4, 3).to(device, dtype), torch.randn(3, 4).to(device, dtype).T]
    keep = [flags(True, False, True, True, device=device)] * 2
    opcheck(OPERATOR, (parameters, keep, [0, 0]))
    opcheck(OPERATOR, ([torch.randn(2, 0, device=device)], [flags(True, False, device=device)], [0]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([torch.zeros(2)], [], [0]), "as many"),
        (([torch.zeros(2)], [flags(True)], [0]), "needs bool"),
        (([torch.zeros(2)], [torch.zeros(2)], [0]), "needs bool"),
        (([torch.zeros(2)], [flags(True, True)], [1]), "no dimension 1"),
        (([torch.zeros(2, dtype=torch.int64)], [flags(True, True)], [0]), "floating-point"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(PxpError, match=message):
        mask_(*arguments)
