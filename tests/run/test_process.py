"""Settings of a whole process, each in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ALLOCATES = """
from pathlib import Path
import numpy as np
from stream_learner.run.process import keep_freed_memory

keep_freed_memory()
for _ in range(3):
    np.ones(48 * 1024 * 1024, np.uint8)
kept = np.ones(48 * 1024 * 1024, np.uint8)
print(next(line for line in Path("/proc/self/smaps_rollup").read_text().splitlines() if "AnonHugePages" in line))
"""
WAITS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
SHOWN = {"OMP_DISPLAY_ENV": "verbose"}
COMMAND = """
import sys
from stream_learner.cli import main

sys.argv = ["stream-learner", "--version"]
main()
import torch
"""


@pytest.mark.skipif(not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here")
def test_large_arrays_are_in_huge_pages():
    printed = subprocess.run([sys.executable, "-c", ALLOCATES], capture_output=True, text=True, check=True).stdout
    _, kilobytes, unit = printed.split()
    assert (unit, int(kilobytes) >= 32 * 1024) == ("kB", True)


@pytest.mark.parametrize(("environment", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "0")])
def test_threads_that_wait_for_each_other_soon_sleep(environment: dict[str, str], spins: str):
    shown = subprocess.run(
        [sys.executable, "-c", COMMAND],
        env={**{name: value for name, value in os.environ.items() if name not in WAITS}, **environment, **SHOWN},
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in shown
