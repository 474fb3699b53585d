"""The limit: a bare training step on one batch that stays in memory, at several settings."""

import os
from collections.abc import Iterator
from functools import partial
from itertools import accumulate
from typing import NamedTuple

from benchmarks.observation import Measurement
from benchmarks.performance.apart import measure_apart
from benchmarks.performance.rounds import Sides, Subject, fastest, finished
from stream_learner import config
from stream_learner.errors import UsageError

CLASSES = 10
COMPILED = "compile"


class Setting(NamedTuple):
    """Settings of a bare step.

    Without any of them, it is what PyTorch does by default, except that threads that wait for each other soon sleep, as
    the worker's do.
    """

    threads: int
    fused: bool = False
    keep_freed: bool = False
    channels_last: bool = False
    bf16: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        on = {"fused": self.fused, "malloc": self.keep_freed, "NHWC": self.channels_last, "bf16": self.bf16}
        words = [word for word, chosen in (on | {COMPILED: self.compiled}).items() if chosen]
        return f"{self.threads} thread{'s' if self.threads > 1 else ''}, {' + '.join(words) or 'plain'}"


def settings(compiled: bool) -> list[Setting]:
    """Return the settings to try: one more switched on at a time with a thread for each core, some with one."""
    switches = ["fused", "keep_freed", "channels_last", "bf16", *(["compiled"] if compiled else [])]
    ladder = list(accumulate(switches, lambda on, switch: on | {switch: True}, initial={}))
    cores = os.cpu_count() or 1
    one = [Setting(1, **on) for on in ladder[2::2]] if cores > 1 else []
    return [*(Setting(cores, **on) for on in ladder), *one]


def sides(subject: Subject, compiled: bool) -> Sides:
    """Return a side for each setting."""
    return {setting.name: partial(measure, subject, setting) for setting in settings(compiled)}


def best(subject: Subject) -> Setting:
    """Return the setting that was fastest in the finished rounds of the part `limit`. Raises UsageError without any."""
    rounds = finished("limit").get(subject._replace(part="limit"))
    if not rounds:
        raise UsageError(f"the limit of {subject.model} on {subject.data} is not known yet; run the part `limit` first")
    return next(setting for setting in settings(compiled=True) if setting.name == fastest(rounds))


def measure(subject: Subject, setting: Setting) -> Measurement:
    return measure_apart(_steps, subject, setting, keep_freed=setting.keep_freed)


def _steps(subject: Subject, setting: Setting) -> Iterator[int]:
    """Train on one batch forever, and yield its size."""
    import torch
    from torch.nn import functional as F

    from stream_learner import networks
    from stream_learner.learning.spec import spec_of

    torch.set_num_threads(setting.threads)
    torch.set_flush_denormal(True)
    model = networks.build(spec_of(config.load(None, subject.overrides()).model, CLASSES))
    if setting.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.Adam(model.parameters(), fused=setting.fused)
    forward = torch.compile(model) if setting.compiled else model
    images_NHWC = torch.randint(256, (subject.batch, *subject.size), dtype=torch.uint8)
    labels = torch.randint(CLASSES, (subject.batch,))
    while True:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=setting.bf16):
            loss = F.cross_entropy(forward(images_NHWC).float(), labels)
        loss.backward()
        optimizer.step()
        yield subject.batch
