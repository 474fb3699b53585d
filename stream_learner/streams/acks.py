"""Reads the acks topic: the releases that followers use."""

import structlog

from stream_learner.config import AnySettings
from stream_learner.contract.acks import Ack, decode_ack
from stream_learner.contract.topics import Names
from stream_learner.errors import TopicsError
from stream_learner.streams.journal import read_committed
from stream_learner.streams.pins import MAX_WARNINGS
from stream_learner.streams.topics import id_for_reader

log = structlog.get_logger()

# Number of followers that are shown. Further names are ignored, because any program with the right may add names.
MAX_FOLLOWERS = 10_000


def read_acks(settings: AnySettings) -> list[Ack]:
    """Return the newest acknowledgement of each follower of the run, by name. Empty if the topic is missing.

    Raises KafkaUnavailableError.
    """
    topic = Names.under(settings.prefix).acks
    try:
        id_for_reader(settings, topic)
    except TopicsError:
        return []
    found: dict[bytes | None, Ack] = {}
    ignored = 0
    for record in read_committed(settings, topic, wait=False):
        if record.value is None and not record.unreadable:
            found.pop(record.key, None)
            continue
        try:
            ack = decode_ack(record.key, record.value or b"")
        except ValueError as error:
            ignored += 1
            if ignored <= MAX_WARNINGS:
                log.warning("a record of the acks topic is ignored", offset=record.offset, why=str(error))
            continue
        if ack.run_id == settings.run.id and (record.key in found or len(found) < MAX_FOLLOWERS):
            found[record.key] = ack
    return sorted(found.values(), key=lambda ack: ack.name)
