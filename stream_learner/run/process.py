"""Process-wide settings: loading of torch, and memory allocation."""

import ctypes
import importlib.util
import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

# <malloc.h> of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MADV_HUGEPAGE = 14  # <sys/mman.h> of Linux
KEEP_BYTES = 512 * 1024 * 1024
HUGE_PAGE_BYTES = 2 * 1024 * 1024
SPINS = 1_000


def spin_briefly() -> None:
    """Let the threads of an operator sleep soon when they wait for each other. Call this before torch is loaded.

    By default, OpenMP's threads (libgomp) first spin for several milliseconds. If another process needs a core, a
    thread then spins while the thread that it waits for does not run: with one busy process beside, the steps of a
    small network took five times as long. Does nothing if the environment already says how to wait.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def load_torch_libraries() -> None:
    """Load torch's shared libraries on a separate thread, so that a later `import torch` is faster.

    Loading takes about 0.35 s and does not hold Python's global lock, so other modules are imported in the meantime. If
    the library is not in the usual place, this function does nothing, and `import torch` loads the library.
    """
    threading.Thread(target=_load_torch_libraries, name="load torch", daemon=True).start()


def _load_torch_libraries() -> None:
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        with suppress(OSError):
            ctypes.CDLL(str(Path(folder, "lib", "libtorch_python.so")))


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in the process, instead of asking the kernel for memory at every step.

    By default, glibc maps new memory for each large tensor, such as a convolution's activations. Mapping and clearing
    this memory takes a quarter of a small network's step. The memory is in huge pages if the kernel allows them: a
    step reads and writes all parameters, and looking up small pages takes a twentieth of its time. Does nothing without
    glibc.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD):
            libc.mallopt(parameter, 64 * 1024 * 1024 if parameter == M_TOP_PAD else KEEP_BYTES)
        _use_huge_pages(libc, KEEP_BYTES // 2)


def _use_huge_pages(libc: ctypes.CDLL, size_bytes: int) -> None:
    """Extend the heap by `size_bytes`, and let the kernel use huge pages there. No page is touched yet."""
    libc.malloc.argtypes, libc.malloc.restype = (ctypes.c_size_t,), ctypes.c_void_p
    libc.free.argtypes = (ctypes.c_void_p,)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    start = libc.malloc(size_bytes)
    if start:
        first_page = -(-start // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        libc.madvise(first_page, size_bytes - HUGE_PAGE_BYTES, MADV_HUGEPAGE)
        libc.free(start)  # the heap keeps the memory, because it is less than the trim threshold
