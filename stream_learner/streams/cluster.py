"""Read-only requests of a run to the brokers: topic ids, offsets and manifests."""

from stream_learner.config import Settings
from stream_learner.contract.pins import Chosen
from stream_learner.contract.spans import Positions, RowPositions
from stream_learner.streams import offsets, topics
from stream_learner.streams.history import History
from stream_learner.streams.manifests import Newest, read_newest
from stream_learner.streams.pins import read_pins
from stream_learner.streams.replay import Replay
from stream_learner.streams.rights import Role


class Cluster:
    """A run's topics, offsets and manifests, as the brokers have them now.

    Every method raises KafkaUnavailableError.
    """

    def __init__(self, settings: Settings):
        self._settings = settings

    def cluster_id(self) -> str:
        """Return the id that the brokers gave the cluster."""
        return topics.cluster_id(self._settings)

    def check_topics(self, role: Role) -> None:
        """Raise TopicsError when a topic is missing or its settings differ."""
        topics.check(self._settings, role=role)

    def topic_ids(self, names: list[str]) -> dict[str, str]:
        """Return Kafka's id of each topic. Raises TopicsError when a topic is missing."""
        return topics.topic_ids(self._settings, names)

    def dead_letter_limit(self) -> int:
        """Return the size of the largest dead letter that the topic accepts, in bytes."""
        return topics.dead_letter_limit(self._settings)

    def input_bounds(self) -> tuple[Positions, Positions]:
        """Return the first and end offset of each partition that is read. Raises TopicsError if a topic is missing."""
        return offsets.bounds(self._settings.kafka, self._settings.topics_read)

    def mirrored_positions(self) -> RowPositions:
        """Return the positions in the run's offsets group, which may be empty."""
        return offsets.mirrored_positions(self._settings)

    def newest_manifest(self, checkpoints_topic_id: str, mirrored: RowPositions, wait: bool) -> Newest:
        """Return the run's newest manifest; see `manifests.read_newest`."""
        return read_newest(self._settings, checkpoints_topic_id, mirrored, wait)

    def pinned_release(self) -> Chosen | None:
        """Return the release that followers must use, None if no release is pinned or the topic is missing."""
        pins = read_pins(self._settings)
        return None if pins.pinned in pins.withdrawn else pins.pinned

    def history(self) -> History:
        """Open the history topic."""
        return History(self._settings)

    def replay(self, topic: str, partition: int, offset: int) -> Replay:
        """Open an input partition at an offset."""
        return Replay(self._settings.kafka, topic, partition, offset)
