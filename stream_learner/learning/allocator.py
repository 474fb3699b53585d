"""How the C library gives memory back."""

import ctypes
import sys

# <malloc.h> of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEEP_BYTES = 512 * 1024 * 1024


def keep_freed_memory() -> None:
    """Lets the process keep the memory of tensors it frees, instead of asking the kernel for it at every step.

    A convolution's activations are over glibc's threshold for a mapping of their own; mapping and clearing them anew
    takes a quarter of a small network's step. Does nothing where there is no glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD):
            value = 64 * 1024 * 1024 if parameter == M_TOP_PAD else KEEP_BYTES
            if mallopt:
                mallopt(parameter, value)
