"""Memory of a training on the CPU, which its process keeps between layers and steps."""

import ctypes
import platform

# Of glibc's malloc.h: freed memory at the top of the heap that is given back, and allocations that are mapped on their own.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1  # of an int, in bytes


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed; True if it does, False with another C library.

    By default it gives large tensors back to Linux and asks for them again a layer later, page by page: on a CPU, the forward
    pass of a teacher took twice as long, and a step of distillation half as long again.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(M_TRIM_THRESHOLD, MOST)) and bool(mallopt(M_MMAP_THRESHOLD, 2**30))
