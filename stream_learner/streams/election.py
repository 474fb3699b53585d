"""Election of the active worker of a run, through Kafka's group membership."""

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer
from kafka.admin import MemberToRemove
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor
from kafka.errors import InvalidSessionTimeoutError, KafkaConnectionError, KafkaError
from kafka.structs import TopicPartition

from stream_learner.config import Settings
from stream_learner.contract.topics import Names
from stream_learner.errors import FencedError, KafkaUnavailableError, StateError, UsageError
from stream_learner.streams.connection import ask, kafka_failures, opening

HEARTBEAT_S = 0.3
REBALANCE_S = 0.1
STEP_MS = 50
JOIN_MS = 100
CLOSE_MS = 1000
# Higher than any generation that a group reaches.
LAST_GENERATION = 2**31 - 1


class Election:
    """Membership in the group `Settings.standby_group`. Use it from one thread.

    The members are the workers that share output topics. The group assigns the checkpoints topic's only partition to
    one member. This member is elected. Nothing is read or committed.

    Two workers may both believe that they are elected: a worker that is cut off or frozen does not notice that it was
    replaced until the brokers answer. Fencing by the transactional producer ensures that only one worker publishes.
    """

    def __init__(
        self,
        settings: Settings,
        heard: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Connect. The first `poll` joins the group. `heard` is passed to Reader. Raises KafkaUnavailableError."""
        self._settings = settings
        self._clock = clock
        self._group = settings.standby_group
        self._place = TopicPartition(Names.under(settings.prefix).checkpoints, 0)
        self._assignor = _Assignor(self._place)
        session_s = settings.run.session_timeout_s
        with opening(
            settings.kafka,
            "opening the election",
            heard=heard,
            client_id=f"{settings.kafka.client_id}/{settings.run.id}",  # shows the run to other members
            group_id=self._group,
            session_timeout_ms=int(session_s * 1000),
            # Members learn of a change at their next heartbeat. The interval is short, so that a long session does not
            # delay the change by a third of its length.
            heartbeat_interval_ms=int(min(session_s / 3, HEARTBEAT_S) * 1000),
            partition_assignment_strategy=[self._assignor],
        ) as self._consumer:
            self._seat = _Seat(self._consumer, self._place)
            self._refused = threading.Event()  # set when a heartbeat is refused, as when an election begins
            coordinator = self._consumer._coordinator
            self._handle = coordinator._handle_heartbeat_response
            coordinator._handle_heartbeat_response = self._answered
            self._consumer.subscribe([self._place.topic], listener=self._seat)
            # Wait for the topic's metadata. The group's leader must know the partition to assign it.
            self._consumer.partitions_for_topic(self._place.topic)

    @property
    def elected(self) -> bool | None:
        """Whether this worker won the last completed election that it took part in; None before that."""
        return self._seat.elected

    def poll(self, timeout_s: float = 0.0) -> None:
        """Keep the membership alive and update `elected`. Call it about once a second, at least every five minutes.

        Wait up to `timeout_s` for the next election to complete, and at least REBALANCE_S if one is under way. Do not
        wait longer while Kafka is unavailable. Raises KafkaUnavailableError, UsageError.
        """
        started, elections, seat = self._clock(), self._seat.elections, self._seat
        self._poll(0)
        while (
            seat.elections == elections
            and (left_s := started + max(timeout_s, REBALANCE_S if seat.vacant else 0.0) - self._clock()) > 0
        ):
            if not seat.vacant:
                self._refused.wait(left_s)
                self._refused.clear()
            # A member that is joining sends no heartbeats until a poll has completed the join.
            self._poll(STEP_MS if seat.vacant else 0)

    def take_over(self) -> None:
        """Remove all other members from the group, dead or alive, and return once elected.

        The removed workers may join again. They then learn that they are not elected.
        Raises StateError when a worker of another run is in the group, or starts at the same time and is elected.
        Raises KafkaUnavailableError after `recovery.timeout_s`, UsageError.
        """
        self.check_members()  # first, because joining disturbs the active worker
        deadline, patience_s = self._clock() + self._settings.recovery.timeout_s, HEARTBEAT_S
        # Join, then look: of two workers that start at the same time, the worker that joins later sees the other
        # worker.
        while not self.elected and self._member_id() not in self._member_ids():
            self._check_deadline(deadline)
            self._poll(JOIN_MS)
        self._outlast_other_runs(deadline)
        self._assignor.claims = True
        while not self.elected:
            self._check_deadline(deadline)
            self._poll(JOIN_MS)
            if not self.elected:
                ask(self._settings.kafka, "taking over the run", self._put_others_out)
                # Wait longer than the others' heartbeats. Increase the wait, so that two workers that take over at the
                # same time do not remove each other again and again.
                patience_s *= 2
                self.poll(patience_s)
                self._outlast_other_runs(deadline)
        self._assignor.claims = False

    def check_members(self) -> None:
        """Raise StateError when a worker of another run is in the group: topics belong to one run.

        Raises KafkaUnavailableError.
        """
        if others := self._other_runs():
            raise self._shared_with(others)

    def confirm(self) -> None:
        """Ask the brokers whether this worker is still elected. A worker that was frozen may only believe that it is.

        Raises FencedError when this worker is not elected or is no longer in the group, KafkaUnavailableError.
        """
        if not self.elected or self._member_id() not in self._member_ids():
            raise FencedError(
                "another worker of this run was elected before this worker took over. Nothing was published; restart "
                "to stand by or to recover"
            )

    def close(self) -> None:
        """Leave the group, so that a standby is elected at once."""
        self._consumer.close(autocommit=False, timeout_ms=CLOSE_MS)

    def _answered(self, response: Any, sent_at: float) -> None:
        """Handle the answer to a heartbeat. Called on the client's IO thread."""
        try:
            self._handle(response, sent_at)
        except KafkaError:
            self._refused.set()
            raise

    def _poll(self, timeout_ms: int) -> None:
        with kafka_failures(self._settings.kafka, "taking part in the election"):
            coordinator = self._consumer._coordinator
            try:
                if coordinator.need_rejoin() or coordinator.coordinator_unknown():
                    self._consumer.poll(timeout_ms=timeout_ms)
                else:
                    coordinator.poll_heartbeat()  # a poll would also start two tasks, which would find nothing to do
            except InvalidSessionTimeoutError as error:
                raise UsageError(
                    f"the brokers refuse run.session_timeout_s = {self._settings.run.session_timeout_s:g}; set it "
                    "between their group.min.session.timeout.ms and group.max.session.timeout.ms"
                ) from error
            except KafkaConnectionError:
                # kafka-python 3.0.12 waits for brokers that are away, except when its request for new metadata fails.
                time.sleep(timeout_ms / 1000)

    def _outlast_other_runs(self, deadline: float) -> None:
        """Return once no worker of another run is in the group.

        If workers of several runs start at the same time, the elected worker stays and the other workers end. Raises
        StateError when another worker is elected, KafkaUnavailableError.
        """
        while others := self._other_runs():
            if self.elected is False and not self._seat.vacant:
                raise self._shared_with(others)
            self._check_deadline(deadline)
            self.poll(HEARTBEAT_S)

    def _check_deadline(self, deadline: float) -> None:
        if self._clock() > deadline:
            raise KafkaUnavailableError(
                "this worker did not become the active one of its run within recovery.timeout_s = "
                f"{self._settings.recovery.timeout_s:g}; check whether other workers try to take over the run at the "
                "same time"
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


class _Assignor(StickyPartitionAssignor):
    """Assignor whose member, while `claims` is true, claims the partition in every join, whoever holds it."""

    def __init__(self, place: TopicPartition):
        super().__init__()
        self._place = place
        self.claims = False

    def metadata(self, topics: Collection[str]) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        # Every completed join overwrites the claim. If two members claim the partition, the sticky assignor prefers the
        # higher generation (KIP-54).
        if self.claims:
            self.member_assignment, self.generation = [self._place], LAST_GENERATION
        return super().metadata(topics)


class _Seat(ConsumerRebalanceListener):
    """Listener that knows whether this member holds the partition. Called on the client's IO thread."""

    def __init__(self, consumer: KafkaConsumer, place: TopicPartition):
        self._consumer = consumer
        self._place = place
        self.elected: bool | None = None
        self.vacant = True  # while an election is under way
        self.elections = 0

    def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:  # noqa: ARG002
        # Every election begins with this call, also if the partition stays where it is or this member was removed.
        self.vacant = True
        # kafka-python 3.0.12 forgets a join that it began because of new metadata, unless one poll completes it.
        self._consumer._coordinator.request_rejoin()

    def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        for place in assigned:
            self._consumer.seek(place, 0)  # otherwise the consumer would look for a committed offset
            self._consumer.pause(place)
        self.elected = self._place in assigned
        self.vacant = False
        self.elections += 1
