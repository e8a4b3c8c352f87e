"""Keep freed memory in the process instead of handing it back to the system after every layer.

Every layer of a network allocates tensors of tens of megabytes and frees them again. By default the C allocator maps
the large ones afresh and returns what lies at the top of its heap, and then every page costs a fault and is cleared
before its next use: on a virtual machine that takes several times as long as the layer's own pass over memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Callable, Iterator

# mallopt's parameters, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
# Where glibc's own thresholds end up in a process that has freed large blocks; once set, it adapts them no more.
_LARGEST_MMAP_THRESHOLD, _LARGEST_TRIM_THRESHOLD = 32 << 20, 64 << 20

_lock = threading.Lock()
_keepers = 0
_for_good = False


def retain() -> bool:
    """Tell the C allocator to reuse large blocks, which it would return to the system when they are freed, for good.

    The price is that the process keeps the most memory it ever used until it ends. It holds for the whole process, so
    programs decide it, at their start, as the command does; what the library asks for is :func:`kept`.

    Returns
    -------
    bool
        Whether the allocator took it: False where the C library is not glibc (macOS, musl).
    """
    global _for_good
    with _lock:
        mallopt = _mallopt()
        _for_good = mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))
        return _for_good


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Reuse freed memory in blocks of up to 32 MiB for as long as this runs; then hand it back to the system.

    Larger blocks still go back at once: left lying about, they cost more memory than their page faults cost time. May
    be nested, and entered by several threads: the last one to leave gives the memory back. Nothing happens where
    the C library is not glibc, and nothing is given back after :func:`retain`.
    """
    global _keepers
    with _lock:
        _keepers += 1
        if _keepers == 1 and not _for_good and (mallopt := _mallopt()) is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
            mallopt(_M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if _keepers == 0 and not _for_good and (mallopt := _mallopt()) is not None:
                mallopt(_M_TRIM_THRESHOLD, _LARGEST_TRIM_THRESHOLD)
                ctypes.CDLL(None).malloc_trim(0)


@functools.cache
def _mallopt() -> Callable[[int, int], int] | None:
    """glibc's function; None where that is not the C library."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library.mallopt if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
