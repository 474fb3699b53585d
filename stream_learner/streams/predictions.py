"""Writes predictions to the predictions topic."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime

from kafka import KafkaProducer

from stream_learner.config import AnySettings
from stream_learner.contract.predictions import Prediction
from stream_learner.contract.topics import Names
from stream_learner.streams.bootstrap import connect
from stream_learner.streams.connection import client_config, kafka_failures
from stream_learner.streams.topics import topic_ids

LINGER_MS = 20


class PredictionProducer:
    """Writes each prediction once (idempotent producer). All in-sync replicas confirm it."""

    def __init__(self, settings: AnySettings):
        """Connect. Raises TopicsError when the topic is missing, KafkaUnavailableError."""
        self._kafka = settings.kafka
        self._topic = Names.under(settings.prefix).predictions
        topic_ids(settings, [self._topic])  # the producer would wait for a missing topic
        delivery_ms = int(2000 * settings.kafka.request_timeout_s)
        config = client_config(settings.kafka) | {
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": LINGER_MS,
            "delivery_timeout_ms": delivery_ms,
            "max_block_ms": delivery_ms,
            "metrics_enabled": False,
        }
        with self._failures():
            self._producer: KafkaProducer = connect(KafkaProducer, config)

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
        return kafka_failures(self._kafka, f"writing to topic {self._topic}", "Write")
