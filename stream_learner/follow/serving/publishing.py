"""Publishes a share of the predictions that a server has made."""

import asyncio
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

# Predictions that are not confirmed. With more, requests wait until Kafka confirms some.
MAX_PENDING = 10_000
# Requests do not wait if Kafka has confirmed nothing for this time, because they must be answered without Kafka too.
SILENCE_S = 2.0
POLL_S = 0.005
FLUSH_S = 10.0
LOG_EVERY_S = 10.0


class _Predicted(NamedTuple):
    release: Release
    id: str | None
    probabilities: np.ndarray
    at: datetime


class Publisher:
    """Publishes exactly floor(`serve.publish_share` x n) of the first n predictions. A thread writes them.

    A prediction is lost, which is counted and logged, if Kafka does not confirm it. It is also lost if `MAX_PENDING`
    others wait and Kafka does not confirm enough of them in time.
    """

    def __init__(self, settings: FollowSettings):
        """Connect. Raises TopicsError, KafkaUnavailableError."""
        self._settings = settings
        self._share = Fraction(str(settings.serve.publish_share))
        self._wait_s = settings.serve.timeout_s / 2
        self._served = self._chosen = 0
        self._producer: PredictionProducer | None = PredictionProducer(settings)
        self._has_failed = threading.Event()
        self._queue: SimpleQueue[_Predicted | None] = SimpleQueue()
        self._pending = 0
        self._confirmed_at = 0.0  # or when the first of the pending predictions was made
        self._lock = threading.Lock()
        self._turn = asyncio.Lock()  # requests wait in their order
        self._silent_until = 0.0
        self._published = _counter("published_total", "Predictions published, in images.")
        self._lost = _counter("unpublished_total", "Predictions that should be published but are lost, in images.")
        self.counters = [self._published, self._lost]
        self._thread = threading.Thread(target=self._run, name="predictions", daemon=True)
        self._thread.start()

    async def offer(self, release: Release, ids: Sequence[str | None], probabilities: np.ndarray) -> None:
        """Publish the share of these predictions, float32 [N, classes]. If `MAX_PENDING` wait, wait for Kafka first."""
        now = datetime.now(UTC)
        if self._wanted(len(ids)) > self._chosen:
            await self._wait_for_room()
        has_room = self._pending < MAX_PENDING
        for image_id, row in zip(ids, probabilities, strict=True):
            wanted = self._wanted(1)
            self._served += 1
            if wanted == self._chosen:
                continue
            self._chosen = wanted
            with self._lock:
                if not self._pending:
                    self._confirmed_at = time.monotonic()
                self._pending += 1
            if has_room:
                self._queue.put(_Predicted(release, image_id, row.copy(), now))
            else:
                self._lose(f"{MAX_PENDING} predictions wait for Kafka")

    def _wanted(self, more: int) -> int:
        """Return how many predictions are to be published once `more` are served."""
        return (self._served + more) * self._share.numerator // self._share.denominator

    async def _wait_for_room(self) -> None:
        """Wait while too many predictions are pending and Kafka confirms some, at most half of `serve.timeout_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s), self._turn:
                while self._pending >= MAX_PENDING and self._confirms():
                    await asyncio.sleep(POLL_S)

    def _confirms(self) -> bool:
        return not self._has_failed.is_set() and time.monotonic() - self._confirmed_at < SILENCE_S

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
            self._confirmed_at = time.monotonic()
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
