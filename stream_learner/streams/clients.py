"""The Kafka clients of a worker."""

from collections.abc import Callable

from stream_learner.config import Settings
from stream_learner.streams import topics
from stream_learner.streams.cluster import Cluster
from stream_learner.streams.election import Election
from stream_learner.streams.journal import ReadBack
from stream_learner.streams.rights import Role
from stream_learner.streams.transaction import Transaction


class Clients:
    """Kafka clients that a worker uses from its start to its end. `cluster` sends read-only requests.

    Opening the clients changes nothing in Kafka.
    """

    def __init__(self, settings: Settings, heard: Callable[[str], None]):
        """Check the topics, then connect. `heard` is passed to Reader. Raises TopicsError, KafkaUnavailableError."""
        self.cluster = Cluster(settings)
        # Check first: the clients below would only log a missing topic, or wait for a missing internal topic.
        self.cluster.check_topics(Role.WORKER)
        topics.check_internal(settings)
        self.transaction = Transaction(settings)
        self.read_back = ReadBack(settings)
        self.election = Election(settings, heard)

    def close(self) -> None:
        """Leave the election, so that a standby is elected at once. The other clients end with the process."""
        self.election.close()
