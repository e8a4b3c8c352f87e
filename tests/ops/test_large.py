"""The operators beyond 2^31 elements, where an index of 32 bits would have lost its upper half.

On the CPU in memory that takes none (`sparse_memory`). `select` and dense results of that size would take it: their
kernels are looked at in tests/kernels/test_large.py, a few rows of many, and `select` has its shape alone.
"""

import pytest
import torch
from sparse_memory import BILLIONS, zeros

from pxp_fast.ops import accumulate_, epsilon, layer_norm, mask_
from pxp_fast.ops._library import native
from pxp_fast.ops.epsilon import reference as epsilon_reference
from pxp_fast.ops.layer_norm import reference as layer_norm_reference

HUGE = (3, 2**16, 2**15)  # elements: 3/2 of 2^32


def far(shape, strides, dtype, seed):
    """Random values in memory of billions of elements, `strides` apart."""
    elements = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    assert elements > BILLIONS
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return zeros(elements, dtype).as_strided(shape, strides).copy_(values)


def test_shapes_on_meta():
    """What a compiler asks for; strides of channels-last as well."""
    output = torch.empty(HUGE, dtype=torch.bfloat16, device="meta")
    scaled, sums = epsilon(output, output, unit_dim=-1, group=2**10)
    assert scaled.shape == HUGE and scaled.stride() == output.stride() and scaled.dtype == torch.bfloat16
    assert sums.shape == (2, 3, 2**5) and sums.dtype == torch.float32
    images = torch.empty((2**10, 64, 2**8, 2**8), device="meta", memory_format=torch.channels_last)
    scaled, sums = epsilon(images, images)
    assert scaled.numel() == 2 * BILLIONS and scaled.stride() == images.stride() and sums.shape == (2, 2**10, 64)

    rstd = torch.empty((*HUGE[:2], 1), device="meta")
    normed = layer_norm(output, output, rstd, residual=output)
    assert normed.shape == HUGE and normed.dtype == torch.bfloat16

    totals = torch.empty((4, BILLIONS + 1), dtype=torch.float64, device="meta")
    assert accumulate_(totals, torch.empty((2, 3, BILLIONS + 1), device="meta")) is None
    keep = torch.empty(HUGE[0], dtype=torch.bool, device="meta")
    assert mask_([output], [keep], [0]) is None
    chosen = torch.ops.pxp_fast.select(torch.empty(BILLIONS + 1, device="meta"), BILLIONS, False)
    assert chosen.shape == (BILLIONS + 1,) and chosen.dtype == torch.bool


@pytest.mark.parametrize("unit_dim", [1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_epsilon_far_apart(unit_dim, dtype):
    shape = (2, 3, 40)
    strides = (3 * 2**30, 2**30, 1)
    carry, output = far(shape, strides, dtype, 0), far(shape, strides, dtype, 1)
    arguments = (1e-2, "relu", unit_dim, 1)
    scaled, sums = epsilon(carry, output, eps=1e-2, activation="relu", unit_dim=unit_dim)
    expected_scaled, expected_sums = epsilon_reference(carry.clone(), output.clone(), *arguments)
    torch.testing.assert_close(scaled, expected_scaled)
    torch.testing.assert_close(sums, expected_sums, rtol=1e-5, atol=1e-4)


def test_layer_norm_far_apart():
    carry, output = (far((3, 40), (BILLIONS, 1), torch.float32, seed) for seed in range(2))
    rstd, weight = far((3, 1), (BILLIONS, 1), torch.float32, 2).abs_(), torch.randn(40)
    arguments = (rstd, weight, carry, 1e-2)
    dense = (rstd.clone(), weight, carry.clone(), 1e-2)
    torch.testing.assert_close(
        torch.ops.pxp_fast.layer_norm(carry, output, *arguments),
        layer_norm_reference(carry.clone(), output.clone(), *dense),
    )


@pytest.mark.skipif(native["CPU"] != "loaded", reason="the reference copies the sums in double precision: 16 GiB")
def test_accumulate_many():
    """2^31 sums and a few more; all but the last sample's are zero."""
    samples, units = 2**14 + 1, 2**16
    sums = zeros(2 * samples * units, torch.float32).view(2, samples, units)
    sums[:, -1] = torch.randn(2, units)
    totals = torch.ones(4, units, dtype=torch.float64)
    accumulate_(totals, sums)
    signed, absolute = sums[:, -1].double()
    assert torch.equal(totals, 1 + torch.stack([signed, signed.abs(), absolute, signed**2]))


def test_mask_far_apart():
    parameter = far((4, 3, 5), (2**30, 8, 1), torch.float32, 0)
    inside = far((3, 4), (1, 2**30), torch.bfloat16, 1)
    before = parameter.clone(), inside.clone()
    keep = [torch.tensor([True, False, True, False]), torch.tensor([False, True, True])]
    mask_([parameter, inside], keep, [0, 0])
    for masked, original, kept in zip((parameter, inside), before, keep, strict=True):
        assert torch.equal(masked[kept], original[kept]) and not masked[~kept].any()
