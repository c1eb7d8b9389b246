"""The C library's memory allocator, told to keep what was freed."""

import ctypes
import functools

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
KEPT = (1 << 31) - 1  # bytes: the most that mallopt takes


@functools.cache
def keep_memory() -> None:
    """Memory of freed tensors stays with this process, for the next ones. Changes no number; nothing but for glibc.

    By default large tensors go back to the kernel and come again page by page: 4,000 to 5,500 page faults in a
    training step of CNN-4 of width 8, a tenth of its time.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(TRIM_THRESHOLD, KEPT)
        library.mallopt(MMAP_THRESHOLD, KEPT // 2) or library.mallopt(MMAP_THRESHOLD, 32 << 20)  # newer: older
