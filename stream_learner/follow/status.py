"""Read the status of a run from Kafka alone, whether its worker runs or not."""

from dataclasses import dataclass

from stream_learner.config import Settings
from stream_learner.contract.acks import Ack
from stream_learner.contract.manifest import Manifest
from stream_learner.contract.spans import Positions
from stream_learner.contract.topics import Names
from stream_learner.contract.window import Window
from stream_learner.errors import StateError
from stream_learner.streams import offsets, topics
from stream_learner.streams.acks import read_acks
from stream_learner.streams.manifests import advice, no_manifest, read_newest
from stream_learner.streams.rights import Role
from stream_learner.streams.windows import read_windows

# Number of offsets to read at the end of the metrics topic: enough to include a window even after many aborted
# transactions.
METRICS_TAIL = 1000


@dataclass(frozen=True)
class Status:
    """The newest manifest, the newest metrics window, and the position and lag of each input partition.

    `manifest` and `window` are None until the first one is published. A position is the next offset to learn. The lag
    is the number of offsets from the position to the partition's end.
    """

    manifest: Manifest | None
    window: Window | None
    positions: Positions
    lag: dict[str, dict[int, int]]
    followers: list[Ack]
    """The release that each follower with a name uses."""


def read_status(settings: Settings) -> Status:
    """Read the status of the run.

    Raises TopicsError, KafkaUnavailableError, StateError when a topic has records but no valid manifest or window of
    the run.
    """
    topics.check(settings, role=Role.STATUS)
    names = Names.under(settings.prefix)
    topic_id = topics.topic_ids(settings, [names.checkpoints])[names.checkpoints]
    newest = read_newest(settings, topic_id, mirrored={}, wait=False)
    if newest.found is None and newest.foreign:
        raise no_manifest(settings, newest)
    manifest = newest.found.manifest if newest.found else None
    window = _newest_window(settings, names.metrics)
    first, end = offsets.bounds(settings.kafka, settings.input.topics)
    positions = {
        t: {p: _position(manifest, t, p, at) for p, at in sorted(partitions.items())} for t, partitions in first.items()
    }
    lag = {t: {p: end[t][p] - at for p, at in partitions.items()} for t, partitions in positions.items()}
    return Status(manifest, window, positions, lag, read_acks(settings))


def _newest_window(settings: Settings, topic: str) -> Window | None:
    """Return the run's last window and skip other records.

    Raises StateError when the topic holds only other records.
    """
    newest: Window | None = None
    refusals: list[object] = []
    for window in read_windows(settings, METRICS_TAIL, refusals.append):
        if window.run_id == settings.run.id and (newest is None or window.order >= newest.order):
            newest = window
        elif not refusals:
            refusals.append(f"a window of run {window.run_id!r}")
    if newest is None and refusals:
        raise StateError(
            f"topic {topic} holds no window of run {settings.run.id!r} ({refusals[-1]}); {advice(settings)}"
        )
    return newest


def _position(manifest: Manifest | None, topic: str, partition: int, first: int) -> int:
    return manifest.positions.get(topic, {}).get(partition, first) if manifest else first
