"""What the C library does with freed memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory(limit: int) -> None:
    """Keep up to `limit` freed bytes for the next allocation instead of returning them to the kernel, and reuse blocks
    of up to a quarter of that; to be called once, at a program's start.

    By default glibc returns every chunk of a transfer, and the kernel clears each page again for the next: half of the
    cost of sending or receiving it. And all threads share what is kept: by default each has a store of its own, and the
    more threads have worked on a model, the more copies of it stay. With another C library nothing happens.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, 1)
        libc.mallopt(_M_TRIM_THRESHOLD, limit)
        libc.mallopt(_M_MMAP_THRESHOLD, limit // 4)
