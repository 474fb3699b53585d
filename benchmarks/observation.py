"""Figures of a process, from /proc."""

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Observation(NamedTuple):
    """Figures of a process and its descendants at `at_s` (monotonic): records learned, CPU seconds, peak bytes.

    `elsewhere_cpu_s` are the CPU seconds of all processes except the observer and the processes that it started.
    """

    at_s: float
    records: float
    cpu_s: float
    peak_bytes: int
    elsewhere_cpu_s: float


class Measurement(NamedTuple):
    """Figures of a process after its warm-up.

    `cores_elsewhere` is the number of cores that other programs kept busy. It should be 0.
    """

    records_per_s: float
    cpu_s_per_1000_records: float
    peak_memory_bytes: float
    cores_elsewhere: float


def observe(pid: int, records: float) -> Observation:
    """Read the figures of a process and its descendants from /proc. The peak is the sum of their resident peaks."""
    user, nice, system, _idle, _iowait, *interrupts = Path("/proc/stat").read_text().split()[1:8]
    machine_cpu_s = sum(map(int, (user, nice, system, *interrupts))) / TICKS_PER_S
    ticks, peak_bytes = 0, 0
    for process, fields in _family(pid).items():
        with suppress(OSError):  # the process ended just now
            status = Path(f"/proc/{process}/status").read_text().partition("VmHWM:")[2].split()
            ticks += int(fields[11]) + int(fields[12])
            peak_bytes += int(status[0]) * 1024
    own_cpu_s = sum(sum(map(int, fields[11:15])) for fields in _family(os.getpid()).values()) / TICKS_PER_S
    return Observation(time.monotonic(), records, ticks / TICKS_PER_S, peak_bytes, machine_cpu_s - own_cpu_s)


def between(first: Observation, last: Observation) -> Measurement:
    seconds, records, cpu_s = last.at_s - first.at_s, last.records - first.records, last.cpu_s - first.cpu_s
    elsewhere_s = last.elsewhere_cpu_s - first.elsewhere_cpu_s
    return Measurement(records / seconds, 1000 * cpu_s / records, last.peak_bytes, elsewhere_s / seconds)


def _family(pid: int) -> dict[int, list[str]]:
    """Return the fields (see `_stat`) of a process and of its descendants, by process."""
    children: dict[int, list[int]] = {}
    found: dict[int, list[str]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process ended just now
            fields, process = _stat(file), int(file.parent.name)
            children.setdefault(int(fields[1]), []).append(process)
            found[process] = fields
    family, waiting = {}, [pid]
    while waiting:
        process = waiting.pop()
        if process in found:
            family[process] = found[process]
        waiting += children.get(process, [])
    return family


def _stat(file: Path) -> list[str]:
    """Return the fields of a process from the third on: the state, the parent and so on. See proc(5)."""
    return file.read_text().rpartition(")")[2].split()
