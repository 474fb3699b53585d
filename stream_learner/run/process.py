"""Process-wide settings: loading of torch, and memory allocation."""

import ctypes
import importlib.util
import sys
import threading
from contextlib import suppress
from pathlib import Path

# <malloc.h> of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
KEEP_BYTES = 512 * 1024 * 1024


def load_torch_libraries() -> None:
    """Load torch's shared libraries on a thread of its own, so that a later `import torch` is faster.

    Loading takes about 0.35 s and does not hold Python's global lock, so other modules are imported in the meantime. It
    does nothing if the library is in another place. The import then loads it.
    """
    threading.Thread(target=_load_torch_libraries, name="load torch", daemon=True).start()


def _load_torch_libraries() -> None:
    found = importlib.util.find_spec("torch")
    for folder in (found and found.submodule_search_locations) or ():
        with suppress(OSError):
            ctypes.CDLL(str(Path(folder, "lib", "libtorch_python.so")))


def keep_freed_memory() -> None:
    """Keep the memory of freed tensors in the process, instead of asking the kernel for it at every step.

    A convolution's activations exceed glibc's threshold for a mapping of their own. Mapping and clearing them at each
    step takes a quarter of a small network's step. Does nothing without glibc.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD):
            value = 64 * 1024 * 1024 if parameter == M_TOP_PAD else KEEP_BYTES
            if mallopt:
                mallopt(parameter, value)
