"""The learner in memory, with its stages switched on one after the other."""

from collections.abc import Iterable, Iterator
from functools import partial
from threading import Event
from typing import Any

from benchmarks.observation import Measurement
from benchmarks.performance.apart import measure_apart
from benchmarks.performance.inputs import CLASSES
from benchmarks.performance.rounds import TOPIC, Sides, Subject
from stream_learner import config
from stream_learner.config import Settings
from stream_learner.formats.record import Gap, Record
from stream_learner.local.datasets import Example

POLLED = 500
# Learning as a plain loop does it.
PLAIN = {
    "learning.augment": "[]",
    "learning.strategy": "finetune",
    "split.validation": "0",
    "split.test": "0",
    "learning.average_decay": "0",
    "learning.optimizer": "adam",
    "learning.learning_rate": "0.001",
}
# Which of these each stage gives back to the worker's defaults.
STAGES = {
    "step": (),
    "decode": (),
    "predict": (),
    "augment": ("learning.augment",),
    "memory": ("learning.strategy",),
    "held-out": ("split.validation", "split.test"),
    "average": ("learning.average_decay",),
    "drift": (),
    "Muon": ("learning.optimizer", "learning.learning_rate"),
}


def plain() -> list[str]:
    return [f"{name}={value}" for name, value in PLAIN.items()]


def sides(subject: Subject, examples: list[Example]) -> Sides:
    """Return a side for each stage, in which all stages before it are also switched on."""
    return {stage: partial(measure_stage, subject, stage, examples) for stage in STAGES}


def measure_stage(subject: Subject, stage: str, examples: list[Example]) -> Measurement:
    names = list(STAGES)
    defaults = {name for earlier in names[: names.index(stage) + 1] for name in STAGES[earlier]}
    overrides = [f"{name}={value}" for name, value in PLAIN.items() if name not in defaults]
    turns = {"step": _steps, "decode": _decoded_steps}.get(stage, _learner)
    return measure_apart(turns, subject.overrides(*overrides), examples, names.index(stage) >= names.index("drift"))


def measure(subject: Subject, overrides: list[str], examples: list[Example]) -> Measurement:
    """Measure the whole learner in memory."""
    return measure_apart(_learner, subject.overrides(*overrides), examples, True)


class Source:
    """The records of a topic, in the form in which a consumer returns them, without end."""

    def __init__(self, examples: Iterable[Example]):
        self._messages = [
            (e.id.encode(), e.image, [("label", e.label.encode()), ("id", e.id.encode())]) for e in examples
        ]
        self._offset = 0

    def poll(self, timeout_s: float) -> list[Record | Gap]:
        del timeout_s
        begin, self._offset = self._offset, self._offset + POLLED
        messages = self._messages
        return [Record(TOPIC, 0, i, 0, *messages[i % len(messages)]) for i in range(begin, self._offset)]

    def read_ahead(self) -> None:
        pass

    def took(self, seconds: float, records: int = 1) -> None:
        """Do nothing: there is one partition, so no other one waits."""


class NoDrift:
    """Stands in for the drift monitor, and monitors nothing."""

    def observe(self, *_: object) -> list[Any]:
        return []

    def learning_rate_factor(self, _: int) -> float:
        return 1.0

    replay_factor = learning_rate_factor


def _learner(overrides: list[str], examples: list[Example], drift: bool) -> Iterator[int]:
    """Learn with `Driver` as the worker does. Yield the records of each batch."""
    from benchmarks.single_shard import single_shard
    from stream_learner.formats.decoder import Decoder
    from stream_learner.learning.learner import Learner
    from stream_learner.run.driver import Driver
    from stream_learner.run.progress import Progress

    settings = _set_up(overrides)
    driver = Driver(Learner(settings), Progress({TOPIC: {0: 0}}))
    if not drift:
        driver.learner.drift = NoDrift()  # pyright: ignore
    decode = Decoder.from_settings(settings)
    for batch in single_shard(Source(examples), decode, driver.progress.positions, settings.batch, Event()):
        yield driver.learn(batch).records


def _decoded_steps(overrides: list[str], examples: list[Example], _: bool) -> Iterator[int]:
    """Decode batches, and take only a step with each. Yield the records of each batch."""
    import numpy as np
    import torch

    from benchmarks.single_shard import single_shard
    from stream_learner.formats.decoder import Decoder

    settings = _set_up(overrides)
    step, decode = _step(settings), Decoder.from_settings(settings)
    for batch in single_shard(Source(examples), decode, {TOPIC: {0: 0}}, settings.batch, Event()):
        images_NHWC = torch.from_numpy(np.stack([sample.pixels_HWC for sample in batch.samples]))
        step(images_NHWC, torch.tensor([int(sample.label) % CLASSES for sample in batch.samples]))
        yield batch.records


def _steps(overrides: list[str], examples: list[Example], _: bool) -> Iterator[int]:
    """Take the learner's step on one batch in memory. Yield the size of the batch."""
    import torch

    del examples
    settings = _set_up(overrides)
    step, model = _step(settings), settings.model
    size = settings.batch.size, model.height, model.width, model.channels
    images_NHWC, labels = torch.randint(256, size, dtype=torch.uint8), torch.randint(CLASSES, size[:1])
    while True:
        step(images_NHWC, labels)
        yield settings.batch.size


def _step(settings: Settings) -> Any:
    """Return a function that takes the trainer's step on images uint8 [N, H, W, C] and labels int64 [N]."""
    import torch

    from stream_learner import networks
    from stream_learner.learning.parallel import Parallel
    from stream_learner.learning.placement import place
    from stream_learner.learning.strategies import Minibatch
    from stream_learner.learning.trainers import Portion, TrainingBatch, trainer_for

    placement = place(settings.learning, networks.factory(settings.model.name))
    trainer = trainer_for(settings, placement, Parallel())
    trainer.set_classes(CLASSES, {})

    def step(images_NHWC: torch.Tensor, labels: torch.Tensor) -> None:
        stream = Minibatch(*(t.to(placement.device) for t in (images_NHWC, labels, torch.ones(len(labels)))))
        portion = Portion(stream, lambda: trainer.predict(stream.images_NHWC)[0], lambda: stream)
        trainer.learn(TrainingBatch([portion], 1.0))

    return step


def _set_up(overrides: list[str]) -> Settings:
    from stream_learner.learning.process import set_up_torch

    settings = config.load(None, overrides)
    set_up_torch(settings)
    return settings
