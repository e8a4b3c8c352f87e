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
from collections.abc import Iterator

# mallopt's parameters and their defaults, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _TRIM_THRESHOLD = -1, 128 * 1024
_M_MMAP_MAX, _MMAP_MAX = -4, 65536

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
        _for_good = _reuse()
        return _for_good


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """:func:`retain` for as long as the block runs; afterwards freed memory goes back to the system.

    May be nested, and entered by several threads: the last one to leave gives the memory back. Nothing happens where
    the C library is not glibc, and nothing is given back after :func:`retain`.
    """
    global _keepers
    with _lock:
        _keepers += 1
        if _keepers == 1 and not _for_good:
            _reuse()
    try:
        yield
    finally:
        with _lock:
            _keepers -= 1
            if _keepers == 0 and not _for_good:
                _give_back()


def _reuse() -> bool:
    mallopt = getattr(_libc(), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, -1))


def _give_back() -> None:
    libc = _libc()
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


@functools.cache
def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
