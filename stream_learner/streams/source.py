"""The input: every partition of the input topics, read in offset order from where the model stands."""

import time
from collections.abc import Callable

import structlog
from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import InputSettings, KafkaSettings
from stream_learner.errors import InputError
from stream_learner.records.record import Gap, Record
from stream_learner.records.spans import Positions
from stream_learner.streams.connection import kafka_failures, reader
from stream_learner.streams.reader import Damaged, Reader, to_record

PARTITION_CHECK_S = 5.0
MAX_POLL_RECORDS = 5000

log = structlog.get_logger()


class Source:
    """Reads records in order and remembers, per partition, which offset it hands out next.

    That is where *reading* stands; what was learned stands in the learner's positions.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: InputSettings,
        positions: Positions,
        heard: Callable[[str], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Begins at `positions`; a partition that is missing there, or added later, begins at offset 0.

        `heard` is that of Reader. Raises KafkaUnavailableError.
        """
        self._kafka = kafka
        self._settings = settings
        self._clock = clock
        self._ends_with: InputError | None = None
        self._next = {TopicPartition(t, p): offset for t, ps in positions.items() for p, offset in ps.items()}
        with kafka_failures(kafka, "opening the input"):
            self._consumer: Reader = reader(
                kafka,
                max_poll_records=MAX_POLL_RECORDS,
                heard=heard,
            )
            for topic in settings.topics:
                self._consumer.partitions_for_topic(topic)  # waits until they are known
            self._assign()

    def poll(self, timeout_s: float) -> list[Record | Gap]:
        """Return the next records in order; none when none came in time or Kafka is away.

        Raises InputError when the next record is not there any more or its batch is damaged, and `input.on_lost` is
        `stop`, or never was there; KafkaUnavailableError.
        """
        if self._ends_with:
            raise self._ends_with
        if self._clock() >= self._check_partitions_at:
            self._assign()
        with kafka_failures(self._kafka, "reading the input", "Read"):
            try:
                return self._poll(timeout_s)
            except OffsetOutOfRangeError as error:
                return self._lost(error)
            except LogTruncationError as error:
                raise InputError(
                    f"the topic was truncated ({error}): the offset that comes next means other records now. What was "
                    "learned is safe; choose a new run.id to learn from what is there"
                ) from error

    def _lost(self, error: OffsetOutOfRangeError) -> list[Record | Gap]:
        """What has fallen off retention, as gaps; reading goes on behind them."""
        places = list(self._next)
        first, end = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        gaps: list[Record | Gap] = []
        for place, offset in self._next.items():
            where = f"{place.topic}[{place.partition}]"
            if offset > end[place]:
                raise InputError(
                    f"{where} ends at offset {end[place]}, before {offset}, which comes next: the topic lost records, "
                    "or is another one. What was learned is safe; choose a new run.id to learn from what is there"
                ) from error
            if offset < first[place]:
                lost = f"records of {where} from offset {offset} to {first[place]} have fallen off retention"
                if self._settings.on_lost == "stop":
                    raise InputError(
                        f"{lost} before they were learned. What was learned is safe: give the topic a longer "
                        "retention, and go on behind them with input.on_lost = continue"
                    ) from error
                log.warning(lost)
                gaps.append(Gap(place.topic, place.partition, first[place], lost=True))
                self._next[place] = first[place]
        for place, offset in self._next.items():  # all of them: the error may have come in the middle of a poll
            self._consumer.seek(place, offset)
        return gaps

    def _poll(self, timeout_s: float) -> list[Record | Gap]:
        polled = self._consumer.poll(timeout_ms=int(timeout_s * 1000))
        items: list[Record | Gap] = []
        for place, messages in polled.items():
            for message in messages:
                if isinstance(message, Damaged):
                    if not self._pass_over(message):
                        return items
                    items.append(Gap(place.topic, place.partition, message.end, lost=True))
                    self._next[place] = message.end
                else:
                    items.append(to_record(message))
                    self._next[place] = message.offset + 1
        for place, offset in self._next.items():
            position = self._consumer.position(place, timeout_ms=0)
            if position is not None and position > offset:  # control records, compacted offsets
                items.append(Gap(place.topic, place.partition, position))
                self._next[place] = position
        return items

    def _pass_over(self, damaged: Damaged) -> bool:
        """Return whether reading continues behind a damaged batch; if not, the next poll raises InputError."""
        where = f"{damaged.topic}[{damaged.partition}]"
        what = f"the batch of {where} that holds offset {damaged.offset} is damaged on the broker (wrong checksum)"
        if self._settings.on_lost == "continue":
            log.warning(f"{what}; offsets {damaged.offset} to {damaged.end} are lost")
            return True
        self._ends_with = InputError(
            f"{what}. What was read before it is saved: repair the topic (another replica may be intact), or pass over "
            f"offsets {damaged.offset} to {damaged.end} with input.on_lost = continue"
        )
        return False

    @property
    def positions(self) -> Positions:
        """Offset that is handed out next, of every partition."""
        positions: Positions = {}
        for place, offset in self._next.items():
            positions.setdefault(place.topic, {})[place.partition] = offset
        return positions

    def starts(self) -> Positions:
        """Oldest offset of each partition that the brokers keep, as of its last fetch."""
        starts: Positions = {}
        for place, offset in self._consumer.log_starts.items():
            starts.setdefault(place.topic, {})[place.partition] = offset
        return starts

    def ends(self) -> Positions:
        """End offset of each partition as far as its last fetch told."""
        ends: Positions = {}
        for place in self._next:
            end = self._consumer.highwater(place)
            if end is not None:
                ends.setdefault(place.topic, {})[place.partition] = end
        return ends

    def close(self) -> None:
        self._consumer.close()

    def _assign(self) -> None:
        """Takes all partitions; one that is new begins at offset 0, explicitly."""
        self._check_partitions_at = self._clock() + PARTITION_CHECK_S
        # Not the client's own method: for a topic that was deleted it waits, without a time-out.
        cluster = self._consumer._cluster
        places = {
            TopicPartition(topic, partition)
            for topic in self._settings.topics
            for partition in cluster.partitions_for_topic(topic) or ()
        } | set(self._next)
        if places == self._consumer.assignment():
            return
        # Not the first offset that is there: what has fallen off a partition that was added is lost like any other.
        self._next |= dict.fromkeys(places - self._next.keys(), 0)
        self._consumer.assign(sorted(places))
        for place in places:
            self._consumer.seek(place, self._next[place])
