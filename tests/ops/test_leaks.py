"""Calling an operator leaves no memory behind: even a few bytes per call pin the blocks around them, for ever."""

import ctypes
import gc
import sys

import pytest
import torch

from pxp_fast import ops

FIELDS = ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"]


class MallocInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


def in_use() -> int:
    """Bytes that the C allocator has handed out from its heap."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = MallocInfo
    gc.collect()
    return mallinfo().uordblks


def images() -> torch.Tensor:
    return torch.rand(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))


z, sums = images().contiguous(memory_format=torch.channels_last), torch.zeros(2, 2, 8)
tokens, rstd, labels = torch.rand(2, 5, 8), torch.ones(2, 5, 1), torch.zeros(2, dtype=torch.int64)
totals, scores, keep = torch.zeros(4, 8, dtype=torch.float64), torch.rand(50), [torch.ones(2, dtype=torch.bool)]
CALLS = {
    "epsilon": lambda: ops.epsilon(z, z, activation="gelu"),
    "epsilon_": lambda: ops.epsilon_(z.clone(), z, sums, activation="relu"),
    "epsilon_over_": lambda: ops.epsilon_over_(z, z.clone(), sums),
    "unit_sums_": lambda: ops.unit_sums_(sums, z, z, activation="silu"),
    "share_": lambda: ops.share_(z.clone(), z, z.clone(), form="gamma"),
    "add_relu": lambda: ops.add_relu(z, z),
    "max_pool": lambda: ops.max_pool(z, (2, 2)),
    "max_pool_epsilon": lambda: ops.max_pool_epsilon(z[:, :, :2, :2], z, None, sums, kernel=(2, 2), eps=1e-6),
    "layer_norm": lambda: ops.layer_norm(tokens, tokens, rstd, torch.ones(8)),
    "accumulate_": lambda: ops.accumulate_(totals, sums, labels),
    "mask_": lambda: ops.mask_([z], keep, [0]),
    "select": lambda: ops.select(scores, 20),
}


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="only glibc (2.33 and later) tells what it has handed out",
)
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_left_behind(name, threads):
    threads(1)
    call, count = CALLS[name], 1000
    for _ in range(50):
        call()
    before = in_use()
    for _ in range(count):
        call()
    assert in_use() - before < 4 * count
