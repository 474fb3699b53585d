"""Publishes a share of the predictions that a server has made."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from fractions import Fraction
from queue import SimpleQueue
from typing import NamedTuple, Self

import numpy as np
import structlog
from prometheus_client import Counter

from stream_learner.config import FollowSettings
from stream_learner.contract.documents import time_text
from stream_learner.contract.predictions import MAX_PROBABILITIES, Prediction
from stream_learner.errors import StreamLearnerError
from stream_learner.follow.releases import Release
from stream_learner.follow.serving.metrics import NAMESPACE
from stream_learner.streams.predictions import PredictionProducer

log = structlog.get_logger()

# Predictions that are not confirmed. Further ones are lost, because answers never wait for Kafka.
MAX_PENDING = 10_000
FLUSH_S = 10.0
LOG_EVERY_S = 10.0


class _Predicted(NamedTuple):
    release: Release
    id: str | None
    probabilities: np.ndarray
    at: datetime


class Publisher:
    """Publishes exactly floor(`serve.publish_share` x n) of the first n predictions. A thread writes them.

    A prediction is lost, which is counted and logged, if Kafka does not confirm it, or if `MAX_PENDING` others wait.
    """

    def __init__(self, settings: FollowSettings):
        """Connect. Raises TopicsError, KafkaUnavailableError."""
        self._settings = settings
        self._share = Fraction(str(settings.serve.publish_share))
        self._served = self._chosen = 0
        self._producer: PredictionProducer | None = PredictionProducer(settings)
        self._has_failed = threading.Event()
        self._queue: SimpleQueue[_Predicted | None] = SimpleQueue()
        self._pending = 0
        self._lock = threading.Lock()
        self._silent_until = 0.0
        self._published = _counter("published_total", "Predictions published, in images.")
        self._lost = _counter("unpublished_total", "Predictions that should be published but are lost, in images.")
        self.counters = [self._published, self._lost]
        self._thread = threading.Thread(target=self._run, name="predictions", daemon=True)
        self._thread.start()

    def offer(self, release: Release, ids: Sequence[str | None], probabilities: np.ndarray) -> None:
        """Publish the share of these predictions, float32 [N, classes]. Return at once."""
        now = datetime.now(UTC)
        for image_id, row in zip(ids, probabilities, strict=True):
            self._served += 1
            if self._served * self._share.numerator // self._share.denominator == self._chosen:
                continue
            self._chosen += 1
            with self._lock:
                has_room = self._pending < MAX_PENDING
                self._pending += 1
            if has_room:
                self._queue.put(_Predicted(release, image_id, row.copy(), now))
            else:
                self._lose(f"{MAX_PENDING} predictions wait for Kafka")

    def close(self) -> None:
        """Publish what waits. Give up after `FLUSH_S` seconds."""
        self._queue.put(None)
        self._thread.join(2 * FLUSH_S)
        with self._lock:
            left = self._pending
        for _ in range(left):
            self._lose("the server stopped before Kafka had confirmed them")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self) -> None:
        while predicted := self._queue.get():
            try:
                self._open().send(_record(predicted), self._confirm, self._fail)
            except Exception as error:
                if not isinstance(error, StreamLearnerError):
                    log.exception("a prediction cannot be published")
                self._fail(error)
        if self._producer:
            with suppress(StreamLearnerError):
                self._producer.flush(FLUSH_S)
            self._producer.close()

    def _open(self) -> PredictionProducer:
        """Return the producer, a new one after a failure, because an idempotent producer may not recover."""
        if self._has_failed.is_set() and self._producer:
            self._producer.close()
            self._producer = None
        if self._producer is None:
            self._producer = PredictionProducer(self._settings)
            self._has_failed.clear()
        return self._producer

    def _confirm(self) -> None:
        self._published.inc()
        with self._lock:
            self._pending -= 1

    def _fail(self, error: Exception) -> None:
        self._has_failed.set()
        self._lose(str(error))

    def _lose(self, why: str) -> None:
        self._lost.inc()
        now = time.monotonic()
        with self._lock:
            self._pending -= 1
            is_silent = now < self._silent_until
            if not is_silent:
                self._silent_until = now + LOG_EVERY_S
        if not is_silent:
            log.warning("predictions are not published", why=why)


def _record(predicted: _Predicted) -> Prediction:
    release, row = predicted.release, predicted.probabilities
    largest = np.argsort(-row, kind="stable")[:MAX_PROBABILITIES].tolist()
    return Prediction(
        run_id=release.manifest.run_id,
        epoch=release.manifest.epoch,
        release=release.described.sequence,
        id=predicted.id,
        label=release.labels[int(row.argmax())],
        probabilities={str(release.labels[index]): min(1.0, float(row[index])) for index in largest},
        created_at=time_text(predicted.at),
    )


def _counter(name: str, meaning: str) -> Counter:
    return Counter(name, meaning, namespace=f"{NAMESPACE}_predictions", registry=None)
