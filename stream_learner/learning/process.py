"""Settings of torch for the whole process. The program makes these settings once. Learners do not change them."""

from contextlib import suppress
from pathlib import Path

import torch

from stream_learner import networks
from stream_learner.config import Settings

CGROUP = Path("/sys/fs/cgroup")


def set_up_torch(settings: Settings) -> None:
    """Set up torch for learning: `learning.threads`, denormal numbers, cuDNN.

    With `learning.threads = 0`, a network that more threads do not make faster (`uses_threads` is false) gets one
    thread. Others get one per core, and at most the CPU limit of the container: the kernel stops a container that
    exceeds it for the rest of the period. While another process keeps a core busy, one thread is also faster than one
    per core for small networks, because several threads wait for each other. In this thread, and in threads that it
    starts later, denormal numbers count as 0. In the whole process, cuDNN's convolutions are deterministic. Two
    processes with the same setup learn the same bytes. Raises UsageError when the model does not exist.
    """
    # The momentum of a parameter without gradients shrinks to denormal numbers. These make processors ten times slower.
    # First, because the import of a user's model may start threads.
    torch.set_flush_denormal(True)
    torch.backends.cudnn.deterministic = True
    threads, model = settings.learning.threads, networks.factory(settings.model.name)
    # With several shards, the number of threads must not depend on the number of processes that share the cores.
    if not threads and (settings.run.shards > 1 or not getattr(model, "uses_threads", True)):
        threads = 1
    if not threads and (limit := cpu_limit(CGROUP)):
        threads = min(max(1, int(limit)), torch.get_num_threads())
    if threads:
        torch.set_num_threads(threads)


def cpu_limit(cgroup: Path) -> float | None:
    """Return how many CPUs a container may use at the same time, or None without a limit.

    `cgroup` is the folder where the kernel's control groups are mounted, of version 2 or 1.
    """
    with suppress(OSError, ValueError):
        quota, period = (cgroup / "cpu.max").read_text().split()
        return int(quota) / int(period)  # without a limit, the quota is `max`
    with suppress(OSError, ValueError):
        quota, period = (int((cgroup / "cpu" / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        return quota / period if quota > 0 else None
    return None
