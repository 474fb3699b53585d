"""Writes predictions to the predictions topic."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime

from stream_learner.config import AnySettings
from stream_learner.contract.predictions import Prediction
from stream_learner.contract.topics import Names
from stream_learner.streams.writing import open_producer, write_failures

LINGER_MS = 20


class PredictionProducer:
    """Writes each prediction once (idempotent producer). All in-sync replicas confirm it."""

    def __init__(self, settings: AnySettings):
        """Connect. Raises TopicsError when the topic is missing, KafkaUnavailableError."""
        self._kafka = settings.kafka
        self._topic = Names.under(settings.prefix).predictions
        self._producer = open_producer(settings, self._topic, enable_idempotence=True, linger_ms=LINGER_MS)

    def send(self, prediction: Prediction, confirmed: Callable[[], None], failed: Callable[[Exception], None]) -> None:
        """Send a prediction. Another thread calls `confirmed` or `failed` later. Raises KafkaUnavailableError."""
        made_ms = int(datetime.fromisoformat(prediction.created_at).timestamp() * 1000)
        with self._failures():
            future = self._producer.send(self._topic, prediction.encode(), prediction.key, timestamp_ms=made_ms)
        future.add_callback(lambda _: confirmed())
        future.add_errback(failed)

    def flush(self, timeout_s: float) -> None:
        """Wait until all predictions are confirmed or failed. Raises KafkaUnavailableError after the time-out."""
        with self._failures():
            self._producer.flush(timeout_s)

    def close(self) -> None:
        """Close the connection. Predictions that are not confirmed yet fail."""
        self._producer.close(0)

    def _failures(self) -> AbstractContextManager[None]:
        return write_failures(self._kafka, self._topic)
