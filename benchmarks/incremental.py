"""The product's learner on a stream in memory, with its accuracy along the way."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

import torch

from benchmarks.data import Data, decoded
from benchmarks.exam import Exam
from benchmarks.outcome import Moment, Outcome
from benchmarks.scenarios import Stream, corrupted
from benchmarks.single_shard import single_shard
from stream_learner.config import Settings
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import DataError, DivergedError
from stream_learner.formats import images
from stream_learner.formats.decoder import Decoder
from stream_learner.formats.record import Gap, Record
from stream_learner.learning.learner import Learner
from stream_learner.learning.process import set_up_torch
from stream_learner.networks import ImageClassifier
from stream_learner.run.driver import Driver
from stream_learner.run.process import keep_freed_memory
from stream_learner.run.progress import Progress

TOPIC = "images"
POLLED = 500
EVERY_STEPS = 475
LAST_STEPS = 100
LAST_EVERY = 10


@dataclass
class Count:
    """Number of images that went through a network: `views` forward and backward, `forwards` without gradients."""

    views: int = 0
    forwards: int = 0


@contextmanager
def counted() -> Iterator[Count]:
    """Count at the networks themselves, so that no strategy can leave out any image."""
    count, features = Count(), ImageClassifier.features

    def counting(self: ImageClassifier, images_NHWC: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            count.views += len(images_NHWC)
        else:
            count.forwards += len(images_NHWC)
        return features(self, images_NHWC)

    ImageClassifier.features = counting
    try:
        yield count
    finally:
        ImageClassifier.features = features


class Source:
    """A stream's records, in the form in which a consumer returns them."""

    def __init__(self, stream: Stream, data: Data, settings: Settings):
        self._stream = stream
        self._data = data
        self._settings = settings
        self._offset = 0

    def poll(self, timeout_s: float) -> list[Record | Gap]:
        del timeout_s
        begin, self._offset = self._offset, min(self._offset + POLLED, len(self._stream))
        return [self._record(offset) for offset in range(begin, self._offset)]

    def read_ahead(self) -> None:
        pass

    def took(self, seconds: float, records: int = 1) -> None:
        """Do nothing: there is one partition, so no other one waits."""

    def _record(self, offset: int) -> Record:
        index = int(self._stream.indices[offset])
        image = self._data.train.images[index]
        if offset >= self._stream.changes_at:
            image = images.png(corrupted(decoded([image], self._settings.model), offset)[0])
        headers = [
            ("label", self._data.labels[self._stream.labels[offset]].encode()),
            ("weight", str(self._stream.weights[offset]).encode()),
            ("split", b"train"),
        ]
        return Record(TOPIC, 0, offset, offset, str(index).encode(), image, headers)


def learn(
    settings: Settings, stream: Stream, data: Data, exams: tuple[Exam, Exam], on_progress: Callable[[int], None]
) -> Outcome:
    """Learn as much of the stream as fills batches.

    `exams` are the exams on the original images, and on the images from `stream.changes_at` on.
    """
    keep_freed_memory()
    set_up_torch(settings)
    driver = Driver(Learner(settings), Progress({TOPIC: {0: 0}}))
    learner = driver.learner
    device = next(learner.network.parameters()).device
    size = settings.batch.size
    last = len(stream) // size * size
    # No batch crosses an end: the classes after it are not in the exam of the classes seen so far.
    whole = {end // size * size for end in stream.ends} - {0}
    sampled = set(range(size * EVERY_STEPS, last, size * EVERY_STEPS)) - whole
    last_steps = {last - size * steps for steps in range(0, LAST_STEPS, LAST_EVERY)}
    source, decoder = Source(stream, data, settings), Decoder.from_settings(settings)
    outcome, records, prequential_views = Outcome(), 0, 0
    with counted() as count:
        began = time.monotonic()
        # The clock stands still, so that a batch closes only when it is full.
        positions = driver.progress.positions
        for batch in single_shard(source, decoder, positions, settings.batch, Event(), clock=lambda: 0.0):
            report = driver.learn(batch)
            # For example, more classes than allowed. The learner survives a single step that is not finite.
            if refused := [r for r in report.rejections if r.reason is not Reason.NON_FINITE_STEP]:
                raise DataError(f"{refused[0].message}; a benchmark learns every record of its stream")
            if learner.diverged:
                raise DivergedError(
                    f"three batches in a row gave a loss or gradient that is not finite, at {records} records; "
                    "lower learning.learning_rate"
                )
            if learner.release_due:
                driver.decide()  # nothing is held out, so every model is released, for `novelty`
            records += batch.records
            prequential_views += sum(seen for _, seen in report.figures.prequential.values())
            outcome.steps += report.figures.steps
            on_progress(records)
            if records in whole | sampled | last_steps:
                paused, forwards = time.monotonic(), count.forwards
                exam = exams[records > stream.changes_at]
                classes = [data.labels.index(str(label)) for label in learner.labels]
                if records in whole | sampled:
                    point = exam.take(learner.network, device, classes, sample=records in sampled)
                    outcome.moments.append(Moment(records, count.views, paused - began, point))
                if records in last_steps:
                    outcome.last_steps.append(exam.take(learner.network, device, classes, sample=True))
                outcome.evaluation_views += count.forwards - forwards
                began += time.monotonic() - paused
            if records == last:
                break
        outcome.seconds = time.monotonic() - began
    outcome.views = count.views
    outcome.teacher_views = count.forwards - outcome.evaluation_views - prequential_views
    return outcome
