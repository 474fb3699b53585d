"""An observer of a busy process, in a module that imports fast."""

from benchmarks.observation import Measurement, between, observe

BUSY_S = 0.5


def beside(busy: int) -> Measurement:
    """Return the figures of a process that this one did not start, until it has used the CPU for BUSY_S."""
    first = last = observe(busy, 0)
    while last.cpu_s - first.cpu_s < BUSY_S:
        last = observe(busy, 1)
    return between(first, last)
