"""Keep freed memory in the process instead of handing it back to the system after every layer."""

from __future__ import annotations

import ctypes
import sys

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def retain() -> bool:
    """Tell the C allocator to reuse large blocks, which it would return to the system when they are freed.

    Every layer of a network allocates tensors of tens of megabytes and frees them again. By default each of them is
    mapped afresh, and every page of it costs a fault and is cleared before its first use: on a virtual machine that
    takes several times as long as the layer's own pass over memory. The price is that the process keeps the most
    memory it ever used until it ends, and that holes between blocks that live long stay. It holds for the whole
    process, so programs decide it, at their start; the library does not.

    Returns
    -------
    bool
        Whether the allocator took it: False where the C library is not glibc (macOS, musl).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
