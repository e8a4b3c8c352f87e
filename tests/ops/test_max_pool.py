"""`max_pool` and `max_pool_epsilon` against their definition, written as loops over windows, and against autograd."""

import math

import pytest
import torch
from torch.library import opcheck

from pxp_fast.errors import PxpError
from pxp_fast.ops import epsilon, max_pool, max_pool_epsilon

FORWARD = torch.ops.pxp_fast.max_pool.default
BACKWARD = torch.ops.pxp_fast.max_pool_epsilon.default
IN_PLACE = torch.ops.pxp_fast.max_pool_epsilon_.default
EPS = 1e-2
LAYOUTS = [torch.contiguous_format, torch.channels_last]

# kernel, stride, padding, dilation, ceil_mode
WINDOWS = {
    "VGG": ((2, 2), (2, 2), (0, 0), (1, 1), False),
    "ResNet": ((3, 3), (2, 2), (1, 1), (1, 1), False),
    "ceil": ((3, 3), (2, 2), (0, 0), (1, 1), True),
    "ceil and padding": ((2, 3), (3, 2), (1, 1), (1, 1), True),
    "every position": ((5, 3), (1, 1), (2, 1), (1, 1), False),
    "dilated": ((3, 2), (1, 2), (1, 1), (2, 3), False),
    "gaps": ((1, 2), (3, 3), (0, 0), (1, 1), False),
    "dilated and ceil": ((2, 3), (3, 2), (1, 0), (4, 2), True),
    "whole image": ((7, 9), (7, 9), (0, 0), (1, 1), False),
}
windows = pytest.mark.parametrize("window", WINDOWS.values(), ids=WINDOWS)
layouts = pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels-last"])


def named(window):
    return dict(zip(("kernel", "stride", "padding", "dilation", "ceil_mode"), window, strict=True))


def whole(shape, dtype, device, seed=0):
    """Whole numbers around 0, so that windows are full of ties, also of zeros of both signs."""
    values = (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 1.5).round()
    values[values == 0] *= torch.where(torch.arange(int((values == 0).sum())) % 2 == 0, 1.0, -1.0)
    return values.to(device, dtype)


def normal(shape, dtype, device, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)


def pooled_shape(shape, window):
    return torch.max_pool2d(torch.zeros(shape), *window).shape


def winners(image, window):
    """For each window of an image (a list of rows) in turn, the position that wins it."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw), _ = window
    height, width = len(image), len(image[0])
    rows, columns = pooled_shape((1, 1, height, width), window)[2:]
    for row in range(rows):
        for column in range(columns):
            best, at = -math.inf, None
            for i in range(kh):
                for j in range(kw):
                    y, x = row * sh - ph + i * dh, column * sw - pw + j * dw
                    if not (0 <= y < height and 0 <= x < width):
                        continue
                    value = image[y][x]
                    if at is None or value > best or math.isnan(value):
                        best, at = value, (y, x)
            yield (row, column), at


def by_definition(carry, value, rest, window, eps):
    """``s`` and the sums, in double precision."""
    z = value.double().cpu()
    total = torch.zeros_like(z) if rest is None else rest.double().cpu().clone()
    for n in range(z.shape[0]):
        for c in range(z.shape[1]):
            for (row, column), at in winners(z[n, c].tolist(), window):
                total[n, c, at[0], at[1]] += carry[n, c, row, column].item()
    relevance = total * z
    sums = torch.stack([relevance.sum((2, 3)), relevance.abs().sum((2, 3))])
    if eps is not None:
        total = total * torch.where(z == 0, 0, z.abs() / (z.abs() + eps))
    return total, sums


def check(value, window, eps=EPS, rest=None, in_place=False, summed=True):
    carry = normal(pooled_shape(value.shape, window), value.dtype, value.device, 1)
    wide = torch.float64 if value.dtype == torch.float64 else torch.float32
    table = normal((2, value.shape[0], value.shape[1] + 5), wide, value.device, 3)
    before = table.clone()
    sums = table[:, :, 2:-3] if summed else None
    expected, expected_sums = by_definition(carry, value, rest, window, eps)
    source, given = value.clone(memory_format=torch.preserve_format), carry.clone()
    found = max_pool_epsilon(carry, source, rest, sums, **named(window), eps=eps, in_place=in_place)
    if in_place:
        assert found is source
    else:
        assert torch.equal(source, value) and found.stride() == value.stride()
    assert torch.equal(carry, given)
    unit = torch.finfo(value.dtype).eps
    bound = 32 * unit if unit < 1e-10 else max(unit, 32 * torch.finfo(torch.float32).eps)
    torch.testing.assert_close(found.double().cpu(), expected, rtol=bound, atol=bound)
    if summed:
        before[:, :, 2:-3] += expected_sums.to(before)
        torch.testing.assert_close(table, before, rtol=1e-5 if wide == torch.float32 else 1e-12, atol=1e-5)
    return found


@windows
@layouts
def test_the_forward_is_pytorchs(window, layout, dtype, device):
    for channels in (1, 5, 33, 70):
        value = whole((2, channels, 7, 9), dtype, device).contiguous(memory_format=layout)
        found, expected = max_pool(value, *window), torch.max_pool2d(value, *window)
        assert torch.equal(found, expected) and found.dtype == dtype
        assert found.is_contiguous(memory_format=layout)


@windows
@layouts
def test_definition(window, layout, dtype, device):
    value = whole((2, 3, 7, 9), dtype, device).contiguous(memory_format=layout)
    rest = normal(value.shape, dtype, device, 2)
    check(value, window)
    check(value, window, rest=rest, in_place=True)
    check(value, window, eps=None, summed=False)


@pytest.mark.parametrize("eps", [None, 0.0, 0.5])
@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("in_place", [False, True])
@layouts
def test_every_choice(eps, summed, joined, in_place, layout, device):
    value = whole((2, 3, 6, 5), torch.float32, device).contiguous(memory_format=layout)
    rest = normal(value.shape, torch.float32, device, 2) if joined else None
    check(value, WINDOWS["ResNet"], eps, rest, in_place, summed)


@windows
@pytest.mark.parametrize("channels", [32, 37, 64, 150])
def test_autograd_and_epsilon(window, channels, device):
    """Many channels: whole registers of them and a rest."""
    value = whole((2, channels, 7, 9), torch.float64, device).contiguous(memory_format=torch.channels_last)
    leaf = value.clone(memory_format=torch.preserve_format).requires_grad_()
    out = torch.max_pool2d(leaf, *window)
    carry = normal(out.shape, torch.float64, device, 1)
    (expected,) = torch.autograd.grad(out, leaf, carry)
    torch.testing.assert_close(max_pool_epsilon(carry, value, **named(window)), expected)
    scaled, sums = epsilon(expected, value, eps=EPS)
    found_sums = torch.zeros_like(sums)
    found = max_pool_epsilon(carry, value, None, found_sums, **named(window), eps=EPS)
    torch.testing.assert_close(found, scaled)
    torch.testing.assert_close(found_sums, sums)


@layouts
def test_channels_in_several_tiles(layout, dtype, device):
    value = whole((1, 1100, 3, 3), dtype, device).contiguous(memory_format=layout)
    check(value, WINDOWS["ResNet"], rest=normal(value.shape, dtype, device, 2))


@layouts
def test_the_first_of_equals_wins(layout, dtype, device):
    """-0 and 0 are equal too."""
    value = torch.tensor([[[[0.0, -0.0, 2.0, 2.0], [-0.0, 0.0, 2.0, 3.0]]]]).repeat(1, 40, 1, 1).to(device, dtype)
    value = value.contiguous(memory_format=layout)
    carry = torch.full((1, 40, 1, 2), 5.0, dtype=dtype, device=device)
    found = max_pool_epsilon(carry, value, **named(WINDOWS["VGG"]))
    assert torch.equal(found[0, 0].cpu().double(), torch.tensor([[5, 0, 0, 0], [0, 0, 0, 5]]).double())
    assert torch.equal(found, found[:, :1].expand_as(found))


@windows
@layouts
def test_nan_and_infinities(window, layout, dtype, device):
    value = whole((1, 40, 7, 9), dtype, device)
    flat = value.view(-1)
    flat[::5], flat[1::7], flat[2::11], flat[3::13] = -math.inf, math.inf, math.nan, -math.nan
    value = value.contiguous(memory_format=layout)
    found, expected = max_pool(value, *window), torch.max_pool2d(value, *window)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    carry = normal(expected.shape, dtype, device, 1)
    total, _ = by_definition(carry, value, None, window, None)
    bound = torch.finfo(dtype).eps
    torch.testing.assert_close(
        max_pool_epsilon(carry, value, **named(window)).double().cpu(), total, rtol=bound, atol=1e-5
    )


def test_a_carry_that_is_not_finite_reaches_the_winner_alone(dtype, device):
    value = whole((1, 40, 4, 4), dtype, device).contiguous(memory_format=torch.channels_last)
    carry = torch.full((1, 40, 2, 2), math.nan, dtype=dtype, device=device)
    found = max_pool_epsilon(carry, value, **named(WINDOWS["VGG"]))
    assert (found.isnan().sum((2, 3)) == 4).all() and found.nan_to_num(0).count_nonzero() == 0


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, 1:],
        lambda t: t[:, :, ::2],
        lambda t: t[..., 1:-1],
        lambda t: t.transpose(2, 3),
        lambda t: t.contiguous(memory_format=torch.channels_last)[:, 2:],
        lambda t: t.contiguous(memory_format=torch.channels_last)[:, :, 1:],
    ],
)
@pytest.mark.parametrize("in_place", [False, True])
def test_views(view, in_place, device):
    """Written through the view, and nothing beside it."""
    window = WINDOWS["ResNet"]
    base = whole((2, 6, 8, 9), torch.float32, device)
    value = view(base)
    dense = value.contiguous()
    assert torch.equal(max_pool(value, *window), torch.max_pool2d(dense, *window))
    carry = normal(pooled_shape(value.shape, window), torch.float32, device, 1)
    expected = max_pool_epsilon(carry, dense, **named(window), eps=EPS)
    storage = value.new_empty(0).set_(value.untyped_storage())
    places = torch.arange(storage.numel(), device=device).as_strided(
        value.shape, value.stride(), value.storage_offset()
    )
    untouched = torch.ones(storage.numel(), dtype=torch.bool, device=device)
    untouched[places.flatten()] = False
    before = storage.clone()
    found = max_pool_epsilon(carry, value, **named(window), eps=EPS, in_place=in_place)
    assert torch.equal(found, expected)
    assert torch.equal(storage[untouched], before[untouched])
    assert in_place or torch.equal(storage, before)


def test_a_carry_and_a_rest_of_other_layouts(device):
    window = WINDOWS["ResNet"]
    value = whole((2, 5, 6, 7), torch.float32, device)
    carry, rest = (normal(s, torch.float32, device, 1) for s in (pooled_shape(value.shape, window), value.shape))
    expected = max_pool_epsilon(carry, value, rest, **named(window), eps=EPS)
    for layout in LAYOUTS:
        other = carry.contiguous(memory_format=layout)
        found = max_pool_epsilon(
            other, value, rest.transpose(2, 3).contiguous().transpose(2, 3), **named(window), eps=EPS
        )
        assert torch.equal(found, expected)
        last = value.contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(max_pool_epsilon(other, last, rest, **named(window), eps=EPS), expected)


@pytest.mark.parametrize("channels", [1, 40, 600])
@layouts
def test_the_same_bits_for_any_number_of_threads(channels, layout, threads):
    value = normal((3, channels, 21, 22), torch.float32, "cpu", 0).contiguous(memory_format=layout)
    carry, rest = normal((3, channels, 11, 11), torch.float32, "cpu", 1), normal(value.shape, torch.float32, "cpu", 2)
    results = []
    for count in (1, 2, 5):
        threads(count)
        sums = torch.zeros(2, 3, channels)
        found = max_pool_epsilon(carry, value, rest, sums, **named(WINDOWS["ResNet"]), eps=EPS)
        over = value.clone(memory_format=torch.preserve_format)
        over_sums = torch.zeros(2, 3, channels)
        max_pool_epsilon(carry, over, rest, over_sums, **named(WINDOWS["ResNet"]), eps=EPS, in_place=True)
        assert torch.equal(over, found) and torch.equal(over_sums, sums)
        results.append((found, sums))
    for found, sums in results[1:]:
        assert torch.equal(found, results[0][0]) and torch.equal(sums, results[0][1])


def test_nothing_is_allocated_in_place(device):
    if device == "cpu":
        pytest.skip("only CUDA counts what is allocated")
    value = normal((4, 64, 32, 32), torch.bfloat16, device, 0).contiguous(memory_format=torch.channels_last)
    carry = max_pool(value, (2, 2))
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    max_pool_epsilon(carry, value, kernel=(2, 2), eps=EPS, in_place=True)
    assert torch.cuda.max_memory_allocated() - before <= 2 * carry.numel() + 512  # the winners' numbers


def test_no_samples(device):
    value = torch.zeros(0, 3, 4, 4, device=device)
    assert max_pool(value, (2, 2)).shape == (0, 3, 2, 2)
    assert max_pool_epsilon(torch.zeros(0, 3, 2, 2, device=device), value, kernel=(2, 2)).shape == value.shape


@layouts
def test_opcheck(layout, dtype, device):
    window = WINDOWS["ResNet"]
    value = whole((2, 3, 5, 6), dtype, device).contiguous(memory_format=layout)
    carry = torch.max_pool2d(value, *window)
    sums = torch.zeros(2, 2, 3, dtype=torch.float64 if dtype == torch.float64 else torch.float32, device=device)
    opcheck(FORWARD, (value, *window))
    opcheck(BACKWARD, (carry, value, value, sums, *window, EPS))
    opcheck(BACKWARD, (carry, value, None, None, *window, None))
    opcheck(IN_PLACE, (value.clone(), carry, value, sums, *window, EPS))


V = torch.zeros(2, 3, 4, 4)
C = torch.zeros(2, 3, 2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((V[0], (2, 2)), r"value is torch.float32 \(3, 4, 4\)"),
        ((V.int(), (2, 2)), "floating-point"),
        ((V, (2,)), "kernel is"),
        ((V, (2, 2), (0, 1)), r"stride is \(0, 1\)"),
        ((V, (2, 2), None, (-1, 0)), "padding is"),
        ((V, (2, 2), None, (0, 2)), "in a padding of 2"),
        ((V, (2, 2), None, (1, 0), (5, 1)), "5 apart"),
        ((V, (2, 2), None, (0, 0), (0, 1)), "dilation is"),
        ((V, (5, 2)), "nothing is left of 4"),
        ((V, (200, 200)), "too large"),
    ],
)
def test_wrong_windows(arguments, message):
    with pytest.raises(PxpError, match=message):
        max_pool(*arguments)


@pytest.mark.parametrize(
    ("carry", "value", "options", "message"),
    [
        (C[:1], V, {}, r"pass torch.float32 \(2, 3, 2, 2\)"),
        (C.double(), V, {}, "carry is torch.float64"),
        (C, V, {"rest": C}, "rest is"),
        (C, V, {"sums": torch.zeros(2, 2, 4)}, "sums is"),
        (C, V, {"sums": torch.zeros(2, 3, 2).transpose(1, 2)}, "last stride"),
        (C, V, {"sums": torch.zeros(1, 2, 3).expand(2, 2, 3)}, "share memory"),
        (C, V, {"eps": -1.0}, "eps is -1.0"),
        (C, V[:1].expand(2, 3, 4, 4), {"in_place": True}, "share memory"),
    ],
)
def test_wrong_arguments(carry, value, options, message):
    with pytest.raises(PxpError, match=message):
        max_pool_epsilon(carry, value, kernel=(2, 2), **options)
