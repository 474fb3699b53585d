"""Offsets that the brokers hold: ends of topics, and the run's mirrored positions."""

from kafka import KafkaAdminClient
from kafka.admin import OffsetSpec
from kafka.structs import TopicPartition

from stream_learner.config import KafkaSettings, Settings
from stream_learner.contract.spans import Positions, RowPositions
from stream_learner.streams.connection import ask, describe


def bounds(kafka: KafkaSettings, topics: list[str]) -> tuple[Positions, Positions]:
    """Return the first and end offset of every partition of the topics. Raises KafkaUnavailableError, TopicsError."""

    def question(client: KafkaAdminClient) -> tuple[Positions, Positions]:
        places = [
            TopicPartition(topic["name"], partition["partition_index"])
            for topic in describe(client, topics)
            for partition in topic["partitions"]
        ]
        first, end = (
            client.list_partition_offsets(dict.fromkeys(places, spec))
            for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
        )
        return _nested(first), _nested(end)

    return ask(kafka, "looking up offsets", question)


def mirrored_positions(settings: Settings) -> RowPositions:
    """Return the positions in the run's offsets group, which may be empty. Raises KafkaUnavailableError.

    The number of rows that were read of the message at a position is the text beside its offset.
    """
    group = settings.transactional_id

    def question(client: KafkaAdminClient) -> RowPositions:
        positions: RowPositions = {}
        for place, found in client.list_group_offsets(group)[group].items():
            rows = int(found.metadata) if (found.metadata or "").isdecimal() else 0  # empty if another tool wrote it
            positions.setdefault(place.topic, {})[place.partition] = found.offset, rows
        return positions

    return ask(settings.kafka, "looking up the run's offsets", question)


def _nested(offsets) -> Positions:
    positions: Positions = {}
    for place, found in offsets.items():
        positions.setdefault(place.topic, {})[place.partition] = found.offset
    return positions
