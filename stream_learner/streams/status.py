"""What Kafka alone tells of a run, whether its worker is up or not."""

from dataclasses import dataclass

from stream_learner.config import Settings
from stream_learner.errors import StateError
from stream_learner.records.manifest import Manifest, decode_manifest
from stream_learner.records.spans import Positions
from stream_learner.records.window import Window, decode_window
from stream_learner.streams import offsets, topics
from stream_learner.streams.journal import read_newest
from stream_learner.streams.rights import Role
from stream_learner.streams.topics import Names

# Offsets: enough that a committed window is among them, whatever was aborted since.
METRICS_TAIL = 1000


@dataclass(frozen=True)
class Status:
    """The newest manifest and window, None before the first; `lag` is records behind each partition's end."""

    manifest: Manifest | None
    window: Window | None
    positions: Positions
    lag: dict[str, dict[int, int]]


def read_status(settings: Settings) -> Status:
    """Raises TopicsError, KafkaUnavailableError, StateError when a record is not what it should be."""
    topics.check(settings, role=Role.STATUS)
    names = Names.of(settings)
    checkpoint = read_newest(settings, names.checkpoints, wait=False)
    metrics = read_newest(settings, names.metrics, METRICS_TAIL, wait=False)
    try:
        manifest = decode_manifest(checkpoint) if checkpoint else None
        window = decode_window(metrics) if metrics else None
    except ValueError as error:
        raise StateError(
            f"the newest record of {names.checkpoints} or {names.metrics} was written by something else: {error}; "
            "topics belong to one run, so set topics.prefix or run.id"
        ) from None
    first, end = offsets.bounds(settings.kafka, settings.input.topics)
    positions = {
        t: {p: _position(manifest, t, p, at) for p, at in sorted(partitions.items())} for t, partitions in first.items()
    }
    lag = {t: {p: end[t][p] - at for p, at in partitions.items()} for t, partitions in positions.items()}
    return Status(manifest, window, positions, lag)


def _position(manifest: Manifest | None, topic: str, partition: int, first: int) -> int:
    return manifest.positions.get(topic, {}).get(partition, first) if manifest else first
