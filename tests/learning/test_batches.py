import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_learner.config import BatchSettings
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Positions, Span, each, extend_all
from stream_learner.contract.vocabulary import Reason, Split
from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Place, Record, RejectError, RetryLaterError, Sample
from stream_learner.learning.parallel import Parallel
from stream_learner.run import batch as batch_of_records
from stream_learner.run import batches as batching
from stream_learner.run.arrivals import Arrival, Read
from stream_learner.run.batch import MAX_HELD_OUT_BYTES, Batch
from stream_learner.run.batches import OpenBatch

Polls = Sequence[Sequence[Record | Gap]]
EMPTY_POLL_S = 0.1
PIXELS_HWC = np.zeros((1, 1, 1), np.uint8)


class Stop:
    def __init__(self):
        self.asked = False

    def is_set(self) -> bool:
        return self.asked


@dataclass
class Script:
    """A source that gives what was written down, then asks to stop. Each poll, and each decoding, takes time."""

    polls: Polls
    now: float = 0.0
    poll_s: float = 0.0
    decode_s: float = 0.0
    stop: Stop = field(default_factory=Stop)
    took_s: list[float] = field(default_factory=list)

    def poll(self, timeout_s: float) -> list[Record | Gap]:
        if not self.polls:
            self.stop.asked = True
            return []
        polled, self.polls = list(self.polls[0]), self.polls[1:]
        self.now += self.poll_s if polled else min(EMPTY_POLL_S, timeout_s)
        return polled

    def read_ahead(self) -> None:
        pass

    def took(self, seconds: float, records: int = 1) -> None:
        assert records == 1
        self.took_s.append(seconds)

    def decode(self, record: Record) -> Sample | None:
        self.now += self.decode_s
        if record.value == b"marker":
            return None
        if record.value == b"bad":
            raise RejectError(Reason.UNDECODABLE_IMAGE, "bad")
        assert record.value
        split = Split(record.value.decode())
        return Sample(record.place, "label", PIXELS_HWC, record.value, record.timestamp_ms, split=split)


def batches(
    script: Script,
    decode: Read,
    positions: Positions,
    settings: BatchSettings,
    stop: Stop,
    clock: Callable[[], float] = time.monotonic,
    **rest,
) -> Iterator[Batch]:
    """Yield the batches of a single shard. An idle turn yields an empty batch."""
    shard = OpenBatch(script, decode, positions, settings, stop, clock, **rest)
    for closed in batching.batches([shard], Parallel(), settings, stop, clock):
        yield closed[0] if closed else Batch()


def record(offset: int, value: bytes = b"train", partition: int = 0) -> Record:
    return Record("images", partition, offset, 1000 + offset, None, value, [])


def read(script: Script, positions: Positions | None = None, **settings) -> list[Batch]:
    chosen = BatchSettings.model_validate({"linger_s": 1e6} | settings)
    return list(batches(script, script.decode, positions or {}, chosen, script.stop, lambda: script.now))


def spans(of: list[Batch]) -> list[dict[int, tuple[int, int]]]:
    return [{p: (span.start, span.end) for _, p, span in each(b.spans)} for b in of]


def test_a_batch_closes_when_it_is_full():
    script = Script([[record(i) for i in range(7)], [record(i) for i in range(7, 10)]])
    got = read(script, size=4)
    assert spans(got) == [{0: (0, 4)}, {0: (4, 8)}]  # the two left over were dropped with the stop
    assert [[r.offset for r in b.sources] for b in got] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_only_training_samples_fill_a_batch():
    values = [b"train", b"test", b"bad", b"validation", b"marker", b"train", b"test"]
    (got,) = read(Script([[record(i, value) for i, value in enumerate(values)]]), size=2)
    assert (got.records, got.training, len(got.samples), got.tombstones) == (6, 2, 4, 1)
    assert got.places == [Place("images", 0, offset) for offset in (0, 1, 2, 3, 5)]  # none for the deletion marker
    assert [(r.record.offset, r.reason, r.stage) for r in got.rejections] == [(2, Reason.UNDECODABLE_IMAGE, "decode")]
    assert spans([got]) == [{0: (0, 6)}]


def test_served_predictions_count_neither_as_records_nor_as_samples(monkeypatch: pytest.MonkeyPatch):
    script = Script([[record(i, b"train" if i % 3 == 2 else b"served") for i in range(9)]])
    decode, arrival = script.decode, Arrival(None, "", 0)
    monkeypatch.setattr(script, "decode", lambda r: arrival if r.value == b"served" else decode(r))
    (got,) = read(script, size=3, max_span=3)
    assert (got.records, got.training, got.rejections, len(got.places)) == (3, 3, [], 3)
    assert got.predictions == [(place, arrival) for place in (0, 0, 1, 1, 2, 2)]
    assert spans([got]) == [{0: (0, 9)}]
    monkeypatch.setattr(batch_of_records, "MAX_PREDICTIONS", 2)
    script = Script([[record(i, b"served") for i in range(5)]])
    monkeypatch.setattr(script, "decode", lambda _: arrival)
    assert spans(read(script, size=3)) == [{0: (0, 2)}, {0: (2, 4)}]


def test_a_batch_closes_after_max_span_records_even_if_none_is_for_training():
    got = read(Script([[record(i, b"test") for i in range(7)]]), size=2, max_span=3)
    assert spans(got) == [{0: (0, 3)}, {0: (3, 6)}]
    assert [b.training for b in got] == [0, 0]


def test_a_batch_closes_when_it_has_lingered():
    script = Script([[record(0)], *[[]] * 10, [record(1)], *[[]] * 30])
    got = read(script, size=4, linger_s=0.95)
    assert spans(got)[:2] == [{0: (0, 1)}, {0: (1, 2)}]
    assert spans(got)[2:] == [{}, {}]  # an idle loop keeps turning


def test_the_loop_turns_between_records_that_are_slow_to_decode():
    script = Script([[record(i, b"bad") for i in range(12)]], decode_s=0.3)
    stream = batches(script, script.decode, {}, BatchSettings(linger_s=1e6), script.stop, lambda: script.now)
    assert [script.now for _ in stream] == pytest.approx([1.2, 2.4, 3.6])


def test_a_stop_is_obeyed_within_one_record():
    script = Script([[record(i) for i in range(12)]], decode_s=0.3)

    def decode(record: Record) -> Sample | None:
        script.stop.asked = record.offset == 3
        return script.decode(record)

    settings = BatchSettings(size=1, linger_s=1e6)
    assert spans(list(batches(script, decode, {}, settings, script.stop, lambda: script.now))) == [
        {0: (i, i + 1)} for i in range(3)
    ]


def test_a_batch_closes_at_its_bytes_headers_counted():
    with_headers = record(0)._replace(headers=[("name", b"")] * 1000)
    script = Script([[with_headers._replace(offset=i) for i in range(12)]])
    settings = BatchSettings(size=1000, linger_s=1e6)
    got = list(batches(script, script.decode, {}, settings, script.stop, max_bytes=4 * with_headers.nbytes))
    assert spans(got) == [{0: (0, 4)}, {0: (4, 8)}, {0: (8, 12)}]


def test_a_batch_closes_at_its_held_out_pixels_but_not_before_it_could_hold_as_many_training_samples():
    half = np.broadcast_to(np.uint8(0), (MAX_HELD_OUT_BYTES // 2, 1, 1))
    script = Script([[record(i, b"test") for i in range(8)]])

    def decode(record: Record) -> Sample | None:
        sample = script.decode(record)
        return sample and sample._replace(pixels_HWC=half)

    def closed(size: int) -> list[dict[int, tuple[int, int]]]:
        script.polls, script.stop.asked = [[record(i, b"test") for i in range(8)]], False
        return spans(list(batches(script, decode, {}, BatchSettings(size=size, linger_s=1e6), script.stop)))

    assert closed(1) == [{0: (i, i + 2)} for i in (0, 2, 4, 6)]
    assert closed(3) == [{0: (0, 4)}, {0: (4, 8)}]


def test_a_record_that_is_to_be_alone_has_a_batch_of_its_own():
    script = Script([[record(i) for i in range(7)]])
    alone = {Place("images", 0, 2), Place("images", 0, 3)}
    got = list(batches(script, script.decode, {}, BatchSettings(size=3, linger_s=1e6), script.stop, alone=alone))
    assert spans(got) == [{0: (0, 2)}, {0: (2, 3)}, {0: (3, 4)}, {0: (4, 7)}]


def test_an_open_batch_waits_for_news_no_longer_than_it_may_linger():
    script = Script([[record(0)], []])
    assert spans(read(script, size=4, linger_s=0.04)) == [{0: (0, 1)}]
    assert script.now == pytest.approx(0.04)


def test_a_batch_lingers_from_its_own_opening():
    script = Script([*[[]] * 8, [record(0), record(1)], [record(2)], *[[]] * 3, [record(3)]])
    assert spans(read(script, size=2, linger_s=0.95)) == [{0: (0, 2)}, {0: (2, 4)}]


def test_a_slow_stream_closes_by_the_clock_too():
    script = Script([[record(i)] for i in range(9)], poll_s=0.4)
    got = [batch for batch in read(script, size=100, linger_s=1.0) if batch.spans]
    assert spans(got) == [{0: (0, 3)}, {0: (3, 6)}, {0: (6, 9)}]


def test_a_stop_between_batches_drops_what_was_polled():
    script = Script([[record(i) for i in range(10)]])
    got = []
    for b in batches(script, script.decode, {}, BatchSettings(size=3), script.stop, lambda: script.now):
        got.append(b)
        script.stop.asked = True
    assert spans(got) == [{0: (0, 3)}]


def test_a_stop_drops_the_open_batch_even_if_it_has_lingered():
    script = Script([[record(0)]], poll_s=5.0)
    script.stop.asked = True
    assert read(script, size=3, linger_s=1.0) == []


def test_gaps_belong_to_the_span_around_them():
    polls: Polls = [[record(3), Gap("images", 0, 6), record(8), Gap("images", 0, 10), record(10)]]
    got = read(Script(polls), {"images": {0: 0}}, size=2)
    assert spans(got) == [{0: (0, 9)}]
    got = read(Script([[record(3), Gap("images", 0, 6), record(8), record(9)]]), {"images": {0: 0}}, size=1)
    assert spans(got) == [{0: (0, 4)}, {0: (4, 9)}, {0: (9, 10)}]


def test_a_gap_alone_moves_the_position():
    got = read(Script([[Gap("images", 0, 5)], *[[]] * 10]), {"images": {0: 2}}, linger_s=0.95)
    assert (spans(got), got[0].records) == ([{0: (2, 5)}], 0)


def test_a_partition_seen_for_the_first_time_begins_at_zero():
    got = read(Script([[record(2, partition=1)]]), {"images": {0: 7}}, size=1)
    assert spans(got) == [{1: (0, 3)}]


def test_times_are_told():
    script = Script([[record(0), record(1, partition=1)], [record(1)]], poll_s=0.5, decode_s=0.25)
    (got,) = [batch for batch in read(script, size=3) if batch.records]
    assert (got.poll_s, got.decode_s) == (1.0, 0.75)
    assert script.took_s == [0.25, 0.25, 0.25]


def test_timestamps_of_the_future_and_those_that_are_no_time_are_counted():
    now_ms = int(time.time() * 1000)
    unknown = [-1, 0, now_ms // 1000, -6_816_000_000_000, 253_402_300_800_000, 2**63 - 1]
    future = [now_ms + 2 * 3_600_000, 4_070_908_800_000]
    good = [now_ms, now_ms + 60_000, now_ms - 10**11]
    batch = Batch()
    for offset, timestamp_ms in enumerate([*unknown, *future, *good]):
        batch.add(record(offset, b"bad")._replace(timestamp_ms=timestamp_ms), Script([]).decode)
    assert batch.odd_timestamps == {"unknown": len(unknown), "future": len(future)}


@st.composite
def polls(draw: st.DrawFn) -> Polls:
    """Draw the polls of three partitions: each in order, with gaps, in any interleaving."""
    ends = {0: 0, 1: 50, 2: 7}
    written: list[list[Record | Gap]] = []
    for turn in draw(st.lists(st.lists(st.tuples(st.sampled_from([0, 1, 2]), st.integers(0, 4)), max_size=8))):
        written.append([])
        for partition, kind in turn:
            offset = ends[partition]
            if kind == 0:
                ends[partition] += 3
                written[-1].append(Gap("images", partition, offset + 3))
            else:
                ends[partition] += 1
                value = [b"train", b"train", b"test", b"bad"][kind - 1]
                written[-1].append(record(offset, value, partition))
    return written


START: Positions = {"images": {0: 0, 1: 50, 2: 7}}


@given(polls(), st.integers(1, 5), st.integers(1, 9), st.sampled_from([0.25, 1e6]))
def test_batches_cover_what_was_read_once_in_order_and_without_a_hole(written, size, max_span, linger_s):
    items = [item for poll in written for item in poll]
    got = read(Script(written, poll_s=0.1), START, size=size, max_span=max_span, linger_s=linger_s)

    covered = {"images": {p: Span(start, start) for p, start in START["images"].items()}}
    for b in got:
        extend_all(covered, b.spans)  # raises unless each batch continues the one before

    def offsets(b: Batch) -> list[tuple[int, int]]:
        return sorted((r.partition, r.offset) for r in b.sources + [x.record for x in b.rejections])

    in_batches = sorted(place for b in got for place in offsets(b))
    ends = {p: span.end for _, p, span in each(covered)}
    records = [item for item in items if isinstance(item, Record)]
    assert in_batches == sorted((r.partition, r.offset) for r in records if r.offset < ends[r.partition])
    for b in got:
        assert b.records == len(offsets(b)) <= max_span
        assert b.training == sum(s.split is Split.TRAIN for s in b.samples) <= size
        assert all(b.spans["images"][p].start <= o < b.spans["images"][p].end for p, o in offsets(b))
        for _, run in groupby(sorted(b.sources, key=lambda r: r.partition), lambda r: r.partition):
            own = [r.offset for r in run]
            assert own == sorted(own)
    dropped = len(records) - len(in_batches)
    assert dropped < max_span
    assert sum(r.value == b"train" for r in records) - sum(b.training for b in got) < size


@pytest.mark.parametrize("size", [1, 3])
def test_where_it_stopped_it_goes_on(size):
    everything = [record(i) for i in range(10)]
    first = read(Script([everything[:5]]), size=size)
    end = first[-1].spans["images"][0].end
    then = read(Script([everything[end:]]), {"images": {0: end}}, size=size)
    assert spans(first + then) == [{0: (i, i + size)} for i in range(0, 10 - size + 1, size)]


def test_the_open_batch_is_learned_before_the_input_ends_in_an_error():
    class Lost(Script):
        def poll(self, timeout_s: float) -> list[Record | Gap]:
            if not self.polls:
                raise InputError("fallen off retention")
            return super().poll(timeout_s)

    script = Lost([[record(0), record(1)], []])
    stream = batches(script, script.decode, {}, BatchSettings(linger_s=1e6), script.stop, lambda: script.now)
    assert next(stream).records == 2
    with pytest.raises(InputError):
        next(stream)


class Outage:
    """An outage that asks to wait `tries` times before each record whose value is `later`. A wait takes four steps."""

    def __init__(self, script: Script, tries: int, step_s: float = 0.5, stop_at: float = 1e9):
        self.script, self.tries, self.step_s, self.stop_at = script, tries, step_s, stop_at
        self.left = tries
        self.waited: list[int] = []

    def decode(self, record: Record) -> Sample | None:
        if record.value == b"later":
            if self.left:
                self.left -= 1
                raise RetryLaterError("the registry does not answer")
            record = record._replace(value=b"train")
        return self.script.decode(record)

    def wait(self, record: Record, error: RetryLaterError) -> Iterator[None]:
        assert str(error) == "the registry does not answer"
        self.waited.append(record.offset)
        for _ in range(4):
            self.script.now += self.step_s
            self.script.stop.asked |= self.script.now >= self.stop_at
            if self.script.stop.asked:
                return
            yield

    def over(self) -> None:
        self.left = self.tries

    def batches(self, **settings) -> list[Batch]:
        chosen = BatchSettings.model_validate({"linger_s": 1e6} | settings)
        script = self.script
        return list(batches(script, self.decode, {}, chosen, script.stop, lambda: script.now, outage=self))


def test_a_record_that_cannot_be_read_now_keeps_its_place():
    script = Script([[record(0), record(1, b"later"), record(2), record(3, b"later"), record(0, partition=1)], []])
    outage = Outage(script, tries=2)
    got = [batch for batch in outage.batches(size=5) if batch.spans]
    assert [b.pieces for b in got] == [[Piece("images", 0, 4), Piece("images", 1, 1)]]
    assert [(r.partition, r.offset) for r in got[0].sources] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]
    assert (got[0].records, len(got[0].places), got[0].rejections) == (5, 5, [])
    assert outage.waited == [1, 1, 3, 3]


def test_the_loop_turns_and_the_open_batch_closes_while_a_record_cannot_be_read():
    script = Script([[record(0), record(1, b"later"), record(2)], []])
    got = Outage(script, tries=2).batches(size=2, linger_s=2.5)
    assert spans(got) == [{}, {}, {0: (0, 1)}, {}, {0: (1, 3)}]
    assert script.took_s == [0.0] * 3  # the partition is not charged for the wait


def test_a_stop_is_obeyed_while_a_record_cannot_be_read():
    script = Script([[record(i) for i in range(3)], [record(3), record(4, b"later"), record(5)]])
    outage = Outage(script, tries=100, stop_at=5.0)
    assert [s for s in spans(outage.batches(size=3)) if s] == [{0: (0, 3)}]
    assert script.now == 5.0


def test_an_image_that_is_not_the_records_counts_toward_the_bytes_of_a_batch():
    def decode(record: Record) -> Sample | None:
        return Sample(record.place, "label", PIXELS_HWC, b"x" * 1000, 0)

    batch = Batch()
    batch.add(record(0), decode)
    assert batch.bytes == record(0).nbytes + 1000


def test_the_loop_turns_while_a_batch_stays_open():
    script = Script([[record(0)], *[[]] * 25, [record(1)], []])
    assert spans(read(script, size=2)) == [{}, {}, {0: (0, 2)}]
