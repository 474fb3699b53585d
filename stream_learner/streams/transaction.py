"""The run's transactional producer. Everything that is published goes through it."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from kafka import KafkaProducer
from kafka import errors as kafka_errors
from kafka.structs import OffsetAndMetadata, TopicPartition

from stream_learner.config import MIB, Settings
from stream_learner.contract.spans import RowPositions, each
from stream_learner.errors import FencedError, KafkaUnavailableError, PublishError, UsageError
from stream_learner.streams.bootstrap import REFUSALS, connect
from stream_learner.streams.connection import client_config, kafka_failures
from stream_learner.streams.nulls import NULL
from stream_learner.streams.rights import missing_right
from stream_learner.streams.topics import dead_letter_bytes

FENCED = (
    kafka_errors.ProducerFencedError,
    kafka_errors.InvalidProducerEpochError,
    kafka_errors.TransactionCoordinatorFencedError,
)
Headers = list[tuple[str, bytes | None]]


class Transaction:
    """A transaction: begin, send, confirm, offsets, commit. After any error the process must end.

    The outcome is then unknown, and the producer must not be used again. After a failed record, kafka-python 3.0.12 can
    return from `commit_transaction()` with nothing committed. Therefore every record is confirmed, with a deadline,
    before the commit, and the manifest is read back after the commit. `publishing/checkpoint_writer.py` calls these
    methods in the order of its numbered effects.
    """

    def __init__(self, settings: Settings):
        self._kafka = settings.kafka
        self._id = settings.transactional_id
        self._timeout_s = settings.transaction_timeout_s
        timeout_ms = int(self._timeout_s * 1000)
        shared = client_config(settings.kafka)
        config = shared | {
            "transactional_id": self._id,
            # Leaves time for a second attempt. kafka-python requires that the delivery time-out is longer than this.
            "request_timeout_ms": min(shared["request_timeout_ms"], timeout_ms // 2),
            "transaction_timeout_ms": timeout_ms,
            "delivery_timeout_ms": timeout_ms,
            # If the answer to the fencing request is lost, kafka-python can wait forever. A restart asks again.
            "max_block_ms": min(timeout_ms, 2 * shared["request_timeout_ms"]),
            "acks": "all",
            "max_request_size": max(dead_letter_bytes(settings), 4 * MIB),
            # No batch may be larger than a topic accepts: kafka-python would split the batch, and flush() would fail.
            "batch_size": min(512 * 1024, dead_letter_bytes(settings)),
            "linger_ms": 5,
            "metrics_enabled": False,
        }
        with kafka_failures(settings.kafka, "opening the producer"):
            self._producer: KafkaProducer = connect(KafkaProducer, config)
        # When its epoch is refused, kafka-python would ask for the next epoch (KIP-360). The brokers may answer with
        # the epoch of the producer that fenced this producer. Then both producers could publish.
        self._manager: Any = self._producer._transaction_manager
        self._manager._supports_epoch_bump = lambda: False

    def fence(self) -> None:
        """Fence any other worker of this run, and abort its open transaction (KIP-98).

        Raises UsageError when the brokers refuse the transaction's time-out, KafkaUnavailableError.
        """
        with kafka_failures(self._kafka, f"taking over the transactional id {self._id}", name=self._id):
            try:
                self._producer.init_transactions()
            except kafka_errors.KafkaError as error:
                # kafka-python 3.0.12 raises a general error. Its text holds the name of the specific error.
                if kafka_errors.InvalidTransactionTimeoutError.__name__ not in str(error):
                    raise
                raise UsageError(
                    f"the brokers refuse transactions of {self._timeout_s:g} s, which exceeds their "
                    "transaction.max.timeout.ms. The time is checkpoint.timeout_s, and one second for each MiB of "
                    "checkpoint.max_pending_bytes and of release.inline_max_bytes: lower these settings, or raise the "
                    "brokers' limit"
                ) from error

    def begin(self) -> None:
        self._call("begin", self._producer.begin_transaction)

    def send(self, topic: str, value: bytes | None, key: bytes | None, headers: Headers | None = None) -> Any:
        """Send a record and return a future of its metadata, for `confirm`."""
        key = NULL if key is value is None else key
        known = [(name, NULL if content is None else content) for name, content in headers or []]
        return self._call(f"a record to {topic}", lambda: self._producer.send(topic, value, key, headers=known))

    def confirm(self, futures: Iterable[Any], deadline: float) -> list[tuple[str, int, int]]:
        """Wait until every record is written, and return (topic, partition, offset) of each record.

        `deadline` is in monotonic seconds.
        """
        self._call("the records", lambda: self._producer.flush(timeout=max(0.0, deadline - time.monotonic())))
        written = []
        for future in futures:
            metadata = self._call("a record", lambda f=future: f.get(timeout=max(0.0, deadline - time.monotonic())))
            written.append((metadata.topic, metadata.partition, metadata.offset))
        return written

    def offsets(self, positions: RowPositions) -> None:
        """Mirror the positions to a consumer group without members, so that lag tools show them."""
        offsets = {
            TopicPartition(topic, partition): OffsetAndMetadata(offset, str(rows) if rows else "", -1)
            for topic, partition, (offset, rows) in each(positions)
        }
        self._call("the offsets", lambda: self._producer.send_offsets_to_transaction(offsets, self._id), "Read")

    def commit(self) -> None:
        self._call("the commit", self._producer.commit_transaction)

    def _call(self, what: str, action: Callable[[], Any], operation: str = "Write") -> Any:
        try:
            return action()
        except (kafka_errors.KafkaError, OSError) as error:
            # The cause is the raised error itself, one of its arguments, or the transaction manager's last error.
            causes = (error, *error.args, self._manager.last_error)
            fenced = next((cause for cause in causes if isinstance(cause, FENCED)), None)
            if fenced:
                raise FencedError(
                    f"another worker of this run took over, or a transaction exceeded its time-out ({what}: "
                    f"{type(fenced).__name__}). Nothing more is published; restart to recover"
                ) from error
            refused = next((cause for cause in causes if isinstance(cause, REFUSALS)), None)
            if refused:
                why = (
                    missing_right(self._kafka, refused, operation, self._id)
                    if isinstance(refused, kafka_errors.AuthorizationError)
                    else f"{type(refused).__name__}: {refused}; check the credentials in [kafka]"
                )
                raise KafkaUnavailableError(
                    f"Kafka refused {what}: {why}. Nothing is lost. Repair this, then restart to resume from the "
                    "last committed checkpoint"
                ) from error
            raise PublishError(
                f"publishing failed at {what} ({type(error).__name__}: {error}), so the process ends; restart to "
                "resume from the last committed checkpoint"
            ) from error
