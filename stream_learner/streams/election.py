"""Which worker of a run is the active one: Kafka's group membership elects it."""

import time
from collections.abc import Callable, Collection
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import InvalidSessionTimeoutError
from kafka.structs import TopicPartition

from stream_learner.config import Settings
from stream_learner.contract.topics import Names
from stream_learner.errors import FencedError, KafkaUnavailableError, StateError, UsageError
from stream_learner.streams.connection import ask, kafka_failures, reader

HEARTBEAT_S = 0.3
REBALANCE_S = 0.1
STEP_MS = 50
JOIN_MS = 100
CLOSE_MS = 1000
# Later than any that a group reaches.
LAST_GENERATION = 2**31 - 1


class Election:
    """Membership in the group `Settings.standby_group`, in which the workers that share output topics share the one
    partition of the checkpoints topic: whoever is assigned it is elected. Nothing is read or committed. To be used from
    one thread.

    It is advice: one who is cut off, or frozen, believes itself elected until it hears otherwise. The judge is the
    transaction, which fences.
    """

    def __init__(
        self,
        settings: Settings,
        heard: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Connect; the first `poll` joins. `heard` is that of Reader. Raises KafkaUnavailableError."""
        self._settings = settings
        self._clock = clock
        self._group = settings.standby_group
        self._place = TopicPartition(Names.under(settings.prefix).checkpoints, 0)
        self._assignor = StickyPartitionAssignor()
        session_s = settings.run.session_timeout_s
        with kafka_failures(settings.kafka, "opening the election"):
            self._consumer: KafkaConsumer = reader(
                settings.kafka,
                heard=heard,
                client_id=f"{settings.kafka.client_id}/{settings.run.id}",  # shows other members the run
                group_id=self._group,
                session_timeout_ms=int(session_s * 1000),
                # Others hear of a change with their next heartbeat: one a second, so that a long session is not made
                # longer by a third of it.
                heartbeat_interval_ms=int(min(session_s / 3, HEARTBEAT_S) * 1000),
                partition_assignment_strategy=[self._assignor],
            )
            self._seat = _Seat(self._consumer, self._place)
            self._consumer.subscribe([self._place.topic], listener=self._seat)
            # Waits for the topic's metadata: the member that assigns for all must know the partition by then.
            self._consumer.partitions_for_topic(self._place.topic)

    @property
    def elected(self) -> bool | None:
        """What the last election in which this worker took part, once complete, said; None before the first."""
        return self._seat.elected

    def poll(self, timeout_s: float = 0.0) -> None:
        """Keeps the membership alive and `elected` up to date; to be called about once a second, and by no means less
        often than every five minutes.

        Returns at once, also while Kafka is away; but waits up to `timeout_s` for the next election to be complete, and
        up to a second for one that is under way. Raises KafkaUnavailableError, UsageError.
        """
        started, elections = self._clock(), self._seat.elections
        self._poll(0)
        # A member that is joining sends no heartbeats until a poll has seen it through.
        while self._seat.elections == elections and self._clock() - started < max(
            timeout_s, REBALANCE_S if self._seat.vacant else 0.0
        ):
            self._poll(STEP_MS)

    def take_over(self) -> None:
        """Returns once elected: puts all other members, dead or alive, out of the group. They may come back, and hear
        that they are not elected.

        Raises StateError when a worker of another run is in the group, or begins at the same time and is elected;
        KafkaUnavailableError after `recovery.timeout_s`, UsageError.
        """
        self.check_members()  # first: whoever joins disturbs the active worker
        deadline, patience_s = self._clock() + self._settings.recovery.timeout_s, HEARTBEAT_S
        # Join, then look: of two workers that begin at the same time, the one that joins later sees the other.
        while not self.elected and self._member_id() not in self._member_ids():
            self._check_deadline(deadline)
            self._poll(JOIN_MS)
        self._outlast_other_runs(deadline)
        while not self.elected:
            self._check_deadline(deadline)
            # Of two who say that the partition is theirs, the sticky assignor believes the later generation (KIP-54).
            self._assignor.member_assignment = [self._place]
            self._assignor.generation = LAST_GENERATION
            self._poll(JOIN_MS)
            if not self.elected:
                ask(self._settings.kafka, "taking over the run", self._put_others_out)
                patience_s *= 2  # enough for the others' heartbeats; others who take over must not keep pace for ever
                self.poll(patience_s)
                self._outlast_other_runs(deadline)

    def check_members(self) -> None:
        """Raise StateError when a worker of another run is in the group: topics belong to one run.

        Raises KafkaUnavailableError.
        """
        if others := self._other_runs():
            raise self._shared_with(others)

    def confirm(self) -> None:
        """Asks the brokers: a worker that was frozen still believes itself elected when it wakes up.

        Raises FencedError when it is not in the group any more, KafkaUnavailableError.
        """
        if not self.elected or self._member_id() not in self._member_ids():
            raise FencedError(
                "another worker of this run was elected before this one had taken over; nothing is published, and a "
                "restart stands by or recovers"
            )

    def close(self) -> None:
        """Leaves the group, so that a standby is elected at once."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_MS)

    def _poll(self, timeout_ms: int) -> None:
        with kafka_failures(self._settings.kafka, "taking part in the election"):
            try:
                self._consumer.poll(timeout_ms=timeout_ms)
            except InvalidSessionTimeoutError as error:
                raise UsageError(
                    f"the brokers refuse run.session_timeout_s = {self._settings.run.session_timeout_s:g}; it must be "
                    "within their group.min.session.timeout.ms and group.max.session.timeout.ms"
                ) from error

    def _outlast_other_runs(self, deadline: float) -> None:
        """Return once no worker of another run is in the group: of those that begin at the same time, the elected one
        stays and the others end. Raises StateError when another one is elected, KafkaUnavailableError."""
        while others := self._other_runs():
            if self.elected is False and not self._seat.vacant:
                raise self._shared_with(others)
            self._check_deadline(deadline)
            self.poll(HEARTBEAT_S)

    def _check_deadline(self, deadline: float) -> None:
        if self._clock() > deadline:
            raise KafkaUnavailableError(
                "this worker did not become the active one of its run within recovery.timeout_s = "
                f"{self._settings.recovery.timeout_s:g}; see whether others try to take it over at the same time"
            )

    def _put_others_out(self, client: KafkaAdminClient) -> None:
        others = {member["member_id"] for member in self._members(client)} - {self._member_id()}
        client.remove_group_members(self._group, [MemberToRemove(member) for member in others])

    def _members(self, client: KafkaAdminClient) -> list[dict[str, Any]]:
        return client.describe_groups([self._group])[self._group]["members"]

    def _ask_members(self) -> list[dict[str, Any]]:
        return ask(self._settings.kafka, "looking up the workers of the run", self._members)

    def _member_id(self) -> str:
        return self._consumer.group_metadata().member_id

    def _member_ids(self) -> set[str]:
        return {member["member_id"] for member in self._ask_members()}

    def _other_runs(self) -> list[str]:
        """Return the ids of other runs whose workers are in the group."""
        return sorted(
            {member["client_id"].rpartition("/")[2] for member in self._ask_members()} - {self._settings.run.id}
        )

    def _shared_with(self, others: list[str]) -> StateError:
        return StateError(
            f"a worker of run {', '.join(map(repr, others))} uses the prefix {self._settings.prefix!r}, and topics "
            f"belong to one run. Nothing was written; set topics.prefix or run.id of run {self._settings.run.id!r} "
            "so that each run has a prefix of its own"
        )


class _Seat(ConsumerRebalanceListener):
    """Whether this member holds the partition. Called on the client's IO thread."""

    def __init__(self, consumer: KafkaConsumer, place: TopicPartition):
        self._consumer = consumer
        self._place = place
        self.elected: bool | None = None
        self.vacant = True  # while an election is under way
        self.elections = 0

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:  # noqa: ARG002
        # Every election begins with this, also one that leaves the partition where it is, or of one who was put out.
        self.vacant = True
        # kafka-python 3.0.12 forgets a join that it began because of new metadata, unless one poll sees it through.
        self._consumer._coordinator.request_rejoin()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        for place in assigned:
            self._consumer.seek(place, 0)  # or it would look for a committed offset
            self._consumer.pause(place)
        self.elected = self._place in assigned
        self.vacant = False
        self.elections += 1
