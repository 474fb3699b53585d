"""Reads a run's own topics to their true end."""

import time
from collections.abc import Callable, Iterator

from kafka import KafkaAdminClient, KafkaConsumer
from kafka.admin import OffsetSpec
from kafka.errors import AuthorizationError, KafkaError
from kafka.structs import TopicPartition

from stream_learner.config import AnySettings, Settings
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError, PublishError
from stream_learner.formats.record import Record
from stream_learner.streams.connection import ask, describe, kafka_failures, reader
from stream_learner.streams.rights import missing_right

UNKNOWN = "so the outcome is unknown; restart to recover"


def read_committed(
    settings: AnySettings,
    topic: str,
    tail: int | None = None,
    wait: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Record]:
    """Yield all committed records of a one-partition topic, to its true end. A record that cannot be read has no value.

    With `tail`, read only the last `tail` offsets. Without `wait`, leave out records that an open transaction hides.

    The true end is the high watermark, which only a read_uncommitted client can ask for. A read_committed client gets
    the last stable offset as the end. An open transaction of any producer holds this offset back, and so hides
    committed records at higher offsets. Raises KafkaUnavailableError, also when an open transaction hides the end for
    longer than `recovery.timeout_s`. The error names that transaction.
    """
    place = TopicPartition(topic, 0)
    deadline = clock() + settings.recovery.timeout_s
    with kafka_failures(settings.kafka, f"reading topic {topic}", "Read"), reader(settings.kafka) as consumer:
        end = _true_end(settings, place) if wait else consumer.end_offsets([place])[place]
        consumer.assign([place])
        first = consumer.beginning_offsets([place])[place]
        consumer.seek(place, max(first, end - tail) if tail else first)
        while (consumer.position(place) or 0) < end:
            for records in consumer.poll(timeout_ms=200).values():
                yield from records
            if clock() > deadline:
                raise KafkaUnavailableError(
                    f"topic {topic} could not be read to its end, offset {end}, within recovery.timeout_s = "
                    f"{settings.recovery.timeout_s:g}: {_open_transactions(settings, place)}"
                )


class ReadBack:
    """Reads this process's own manifests back, as a downstream reader sees them."""

    def __init__(self, settings: Settings):
        self._kafka = settings.kafka
        self._place = TopicPartition(Names.under(settings.prefix).checkpoints, 0)
        with kafka_failures(settings.kafka, "opening the checkpoints topic"):
            self._consumer: KafkaConsumer = reader(settings.kafka)

    def verify(self, offset: int, value: bytes, deadline: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Return once the record at `offset` is committed and equals `value`. Raises PublishError otherwise."""
        manifest = f"the manifest at offset {offset} of {self._place.topic}"
        try:
            # Do not assign in `__init__`: the consumer would log a missing topic before the checks at the start say
            # what to do.
            self._consumer.assign([self._place])
            self._consumer.seek(self._place, offset)
            while clock() < deadline:
                for messages in self._consumer.poll(timeout_ms=200).values():
                    if messages[0].offset == offset and messages[0].value == value:
                        return
                    raise PublishError(
                        f"{manifest} is missing after its commit, so the process ends; restart to resume from the last "
                        "committed checkpoint"
                    )
        except AuthorizationError as error:
            why = missing_right(self._kafka, error, "Read")
            raise PublishError(f"{manifest} could not be read back ({why}), {UNKNOWN}") from error
        except (KafkaError, OSError) as error:
            raise PublishError(f"{manifest} could not be read back ({error}), {UNKNOWN}") from error
        raise PublishError(f"{manifest} could not be read back in time, {UNKNOWN}")


def _true_end(settings: AnySettings, place: TopicPartition) -> int:
    def question(client: KafkaAdminClient) -> int:
        describe(client, [place.topic])  # fails with a clear error if the user may not see the topic
        return client.list_partition_offsets({place: OffsetSpec.LATEST})[place].offset

    return ask(settings.kafka, "looking up the end of a topic", question)


def _open_transactions(settings: AnySettings, place: TopicPartition) -> str:
    """Describe the open transactions that hold the topic's end back, and how to end them."""

    def question(client: KafkaAdminClient) -> tuple[set[int], list[str]]:
        producers = client.describe_producers([place])[place].active_producers
        holders = {p.producer_id for p in producers if p.current_transaction_start_offset >= 0}
        listed = client.list_transactions(producer_id_filters=list(holders))
        return holders, [found.transactional_id for broker in listed.values() for found in broker]

    holders, names = ask(settings.kafka, "looking for open transactions", question)
    if not holders:
        return "no open transaction was found; try again"
    return (
        f"an open transaction holds the end back (transactional id {', '.join(names) or 'unknown'}, producer id "
        f"{', '.join(map(str, sorted(holders)))}); stop its producer, or abort it with kafka-transactions.sh"
    )
