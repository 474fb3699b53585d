"""The input: every partition of the input topics, from where the model stands, in the order of production."""

import time
from collections.abc import Callable, Iterator

import structlog
from kafka.errors import LogTruncationError, OffsetOutOfRangeError
from kafka.structs import TopicPartition

from stream_learner.config import MIB, InputSettings, KafkaSettings
from stream_learner.contract.spans import Positions
from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Record
from stream_learner.streams.connection import kafka_failures, reader
from stream_learner.streams.merge import Item, Merge
from stream_learner.streams.reader import MAX_POLL_BYTES, Damaged, Reader, to_record

PARTITION_CHECK_S = 5.0
MAX_POLL_RECORDS = 5000
# How long the brokers may keep a request until there is news. Each request costs something for each partition.
NEWS_S = 2.0
# Of the records of a partition that are read ahead. Those of all partitions take MAX_POLL_BYTES at most.
MAX_AHEAD_BYTES = 8 * MIB
# How long records are given before more are read.
HAND_S = 0.1

log = structlog.get_logger()


class Source:
    """Reads ahead in every partition and gives the records in the order in which they were produced.

    It remembers, per partition, which offset it reads next. What was learned stands in the learner's positions.
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
        self._merge = Merge(clock)
        self._newest_ms: dict[TopicPartition, int] = {}
        self._stopped: set[TopicPartition] = set()  # an InputError stands behind what was read of them
        self._next = {TopicPartition(t, p): offset for t, ps in positions.items() for p, offset in ps.items()}
        with kafka_failures(kafka, "opening the input"):
            self._consumer: Reader = reader(
                kafka,
                max_poll_records=MAX_POLL_RECORDS,
                # As in `reader`, answers must come before `kafka.request_timeout_s` has passed.
                fetch_max_wait_ms=int(min(NEWS_S, kafka.request_timeout_s / 3) * 1000),
                heard=heard,
            )
            self._consumer.budget.of = self._room
            for topic in settings.topics:
                self._consumer.partitions_for_topic(topic)  # waits until they are known
            self._assign()

    def poll(self, timeout_s: float) -> Iterator[Record | Gap]:
        """Return the next records in order, to be used for HAND_S; none when none came in time or Kafka is away.

        Raises InputError when the next record is not there any more or its batch is damaged, and `input.on_lost` is
        `stop`, or never was there; KafkaUnavailableError.
        """
        if self._clock() >= self._check_partitions_at:
            self._assign()
        self._resume()
        with kafka_failures(self._kafka, "reading the input", "Read"):
            try:
                self._read(0 if self._merge.ready else timeout_s)
            except OffsetOutOfRangeError as error:
                self._lost(error)
            except LogTruncationError as error:
                raise InputError(
                    f"the topic was truncated ({error}): the offset that comes next means other records now. What was "
                    "learned is safe; choose a new run.id to learn from what is there"
                ) from error
        return self._merged()

    def _merged(self) -> Iterator[Record | Gap]:
        until = self._clock() + HAND_S
        while (item := self._merge.take()) is not None:
            if isinstance(item, Record):
                self._newest_ms[TopicPartition(item.topic, item.partition)] = item.timestamp_ms
            yield item
            if self._clock() >= until:
                return

    def took(self, seconds: float) -> None:
        """Say how long it took to decode the record that came last: others get as much time."""
        self._merge.took(seconds)

    def _lost(self, error: OffsetOutOfRangeError) -> None:
        """Put gaps where records have fallen off retention; reading continues behind them."""
        places = [place for place in self._next if place not in self._stopped]
        first, end = self._consumer.beginning_offsets(places), self._consumer.end_offsets(places)
        for place in places:
            offset = self._next[place]
            where = f"{place.topic}[{place.partition}]"
            if offset > end[place]:
                raise InputError(
                    f"{where} ends at offset {end[place]}, before {offset}, which comes next: the topic lost records, "
                    "or is another one. What was learned is safe; choose a new run.id to learn from what is there"
                ) from error
            if offset < first[place]:
                lost = f"records of {where} from offset {offset} to {first[place]} have fallen off retention"
                if self._settings.on_lost == "stop":
                    stop = InputError(
                        f"{lost} before they were learned. What was learned is safe: give the topic a longer "
                        "retention, and go on behind them with input.on_lost = continue"
                    )
                    self._merge.add(place, [stop])
                    self._stop(place)
                else:
                    log.warning(lost)
                    self._merge.add(place, [Gap(place.topic, place.partition, first[place], lost=True)])
                    self._next[place] = first[place]
        for place, offset in self._next.items():  # all of them: the error may have come in the middle of a poll
            self._consumer.seek(place, offset)

    def _read(self, timeout_s: float) -> None:
        """Read ahead."""
        consumer, merge = self._consumer, self._merge
        consumer.budget.limit = MAX_POLL_BYTES - merge.nbytes
        for place, messages in consumer.poll(timeout_ms=int(timeout_s * 1000)).items():
            items: list[Item] = []
            for message in messages:
                if isinstance(message, Damaged):
                    items.append(self._passed_over(message))
                    if isinstance(items[-1], InputError):
                        self._stop(place)
                        break
                    self._next[place] = message.end
                else:
                    items.append(to_record(message))
                    self._next[place] = message.offset + 1
            merge.add(place, items)
        for place in consumer.moved - self._stopped:
            position = consumer.at(place)
            if position > self._next[place]:  # control records, compacted offsets
                merge.add(place, [Gap(place.topic, place.partition, position)])
                self._next[place] = position
            if not consumer.behind(place):
                merge.expect_no_more(place)
            else:
                merge.expect(place, asked_for=place not in consumer.full)
        merge.full = merge.nbytes >= MAX_POLL_BYTES or consumer.choked

    def _passed_over(self, damaged: Damaged) -> Gap | InputError:
        """Return what stands in the place of a damaged batch."""
        where = f"{damaged.topic}[{damaged.partition}]"
        what = f"the batch of {where} that holds offset {damaged.offset} is damaged on the broker (wrong checksum)"
        if self._settings.on_lost == "continue":
            log.warning(f"{what}; offsets {damaged.offset} to {damaged.end} are lost")
            return Gap(damaged.topic, damaged.partition, damaged.end, lost=True)
        return InputError(
            f"{what}. What was read before it is saved: repair the topic (another replica may be intact), or pass over "
            f"offsets {damaged.offset} to {damaged.end} with input.on_lost = continue"
        )

    def _stop(self, place: TopicPartition) -> None:
        """Read no further in a partition: an InputError stands behind what was read."""
        self._stopped.add(place)
        self._consumer.pause(place)

    def _resume(self) -> None:
        """Read on where half of what may be read ahead is used."""
        for place in self._consumer.full - self._stopped:
            ahead_bytes = self._merge.bytes_of(place)
            if not ahead_bytes or 2 * ahead_bytes < self._most_ahead(MAX_POLL_BYTES - self._merge.nbytes):
                self._consumer.resume(place)
                if self._consumer.behind(place):
                    self._merge.expect(place, asked_for=True)

    def _room(self, place: TopicPartition) -> float:
        """Return how many bytes more may be read of a partition now."""
        return self._most_ahead(self._consumer.budget.left) - self._merge.bytes_of(place)

    def _most_ahead(self, left_bytes: float) -> float:
        """Return how many bytes may be read ahead of a partition.

        Half of MAX_POLL_BYTES is shared out equally, so that none has to wait until others are read. Of the other half,
        a partition may have half of what is left, so that some is left for others (Choudhury and Hahne 1998).
        """
        common = MAX_POLL_BYTES / 2
        return max(common / len(self._next), min(MAX_AHEAD_BYTES, (left_bytes - common) / 2))

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

    def oldest_ms(self, topic: str, partition: int) -> int | None:
        """Timestamp of the oldest record that was not given, or of the last one that was if none is here."""
        place = TopicPartition(topic, partition)
        waiting = self._merge.next_record(place)
        return waiting.timestamp_ms if waiting else self._newest_ms.get(place)

    @property
    def unanswered(self) -> tuple[str, float]:
        """The partition whose records the brokers have been asked for longest without an answer, and for how many
        seconds; 0 if none waits. A partition without a leader waits too."""
        asked_at = self._consumer.asked_at
        if not asked_at:
            return "", 0.0
        place = min(asked_at, key=lambda place: asked_at[place])
        return f"{place.topic}[{place.partition}]", time.monotonic() - asked_at[place]

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
        self._consumer.pause(*self._consumer.full | self._stopped)
        for place in places:
            self._consumer.seek(place, self._next[place])
            # Brokers say nothing more of a partition that was at its end before.
            if place not in self._consumer.full | self._stopped and self._consumer.behind(place):
                self._merge.expect(place, asked_for=True)
