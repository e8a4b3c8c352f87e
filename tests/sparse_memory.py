"""Tensors of billions of elements that take no memory but where they are written."""

import mmap

import pytest
import torch

BILLIONS = 2**31
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python's mmap does not name before 3.13


def zeros(elements: int, dtype: torch.dtype) -> torch.Tensor:
    """A flat tensor of zeros. An index that has lost its upper bits still meets memory: before it and behind it lie
    2^31 elements more, so that such an error is a wrong result and not the end of the process."""
    size = torch.empty((), dtype=dtype).element_size()
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    try:
        memory = mmap.mmap(-1, (elements + 2 * BILLIONS) * size, flags=flags)
        memory.madvise(mmap.MADV_HUGEPAGE)  # one huge page of zeros serves all that is only read
    except OSError as error:
        pytest.skip(f"this machine does not give out {elements * size / 2**30:.0f} GiB of addresses alone: {error}")
    return torch.frombuffer(memory, dtype=dtype)[BILLIONS : BILLIONS + elements]
