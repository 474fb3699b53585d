"""The memory of tensors, in a process of its own because the allocator's settings hold for the whole process."""

import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
PROGRAM = """
from pathlib import Path
import numpy as np
from stream_learner.run.process import keep_freed_memory

keep_freed_memory()
for _ in range(3):
    np.ones(48 * 1024 * 1024, np.uint8)
kept = np.ones(48 * 1024 * 1024, np.uint8)
print(next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in line))
"""


@pytest.mark.skipif(not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here")
def test_large_arrays_are_in_huge_pages():
    printed = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    _, kilobytes, unit = printed.split()
    assert (unit, int(kilobytes) >= 32 * 1024) == ("kB", True)
