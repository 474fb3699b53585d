"""Figures of a process, from /proc."""

import os
import time
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Observation(NamedTuple):
    """Figures of a process at `at_s` (monotonic): records learned, CPU seconds, peak resident bytes.

    It also has the CPU seconds of the whole machine.
    """

    at_s: float
    records: float
    cpu_s: float
    peak_bytes: int
    machine_cpu_s: float


class Measurement(NamedTuple):
    """Figures of a process after its warm-up.

    `cores_elsewhere` is the number of cores that all other processes kept busy. With a worker, that is the broker. With
    other contenders, it should be 0.
    """

    records_per_s: float
    cpu_s_per_1000_records: float
    peak_memory_bytes: float
    cores_elsewhere: float


def observe(pid: int, records: float) -> Observation:
    """Read the figures of a process from /proc."""
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text().partition("VmHWM:")[2].split()
    user, nice, system, _idle, _iowait, *interrupts = Path("/proc/stat").read_text().split()[1:8]
    cpu_s = (int(times[11]) + int(times[12])) / TICKS_PER_S
    machine_cpu_s = sum(map(int, (user, nice, system, *interrupts))) / TICKS_PER_S
    return Observation(time.monotonic(), records, cpu_s, int(status[0]) * 1024, machine_cpu_s)


def between(first: Observation, last: Observation) -> Measurement:
    seconds, records, cpu_s = last.at_s - first.at_s, last.records - first.records, last.cpu_s - first.cpu_s
    elsewhere_s = last.machine_cpu_s - first.machine_cpu_s - cpu_s
    return Measurement(records / seconds, 1000 * cpu_s / records, last.peak_bytes, elsewhere_s / seconds)
