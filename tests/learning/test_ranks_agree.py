"""The ranks of a run agree on the batches that they close, and on the contents of a checkpoint."""

from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from ranks_in_threads import together
from test_batches import Script, record

from stream_learner.config import BatchSettings, Settings
from stream_learner.contract.ledger import Piece
from stream_learner.contract.spans import Span
from stream_learner.contract.vocabulary import Reason
from stream_learner.errors import InputError
from stream_learner.formats.record import Gap, Place, Record, Rejection
from stream_learner.learning.parallel import Parallel
from stream_learner.publishing.snapshot import Interval, Snapshot
from stream_learner.run.batch import Batch
from stream_learner.run.batches import OpenBatch, batches
from stream_learner.run.inputs import shard_of
from stream_learner.run.together import any_rank, from_ranks, gathered


def shards_of(scripts: list[Script], size: int) -> list[OpenBatch]:
    settings = BatchSettings(size=size, linger_s=1e6)
    return [OpenBatch(s, s.decode, {}, settings, s.stop, lambda s=s: s.now, shards=4) for s in scripts]


def closed(scripts: list[Script], parallel: Parallel, size: int) -> Iterator[list[Batch]]:
    settings = BatchSettings(size=size, linger_s=1e6)
    stop = scripts[0].stop
    return batches(shards_of(scripts, size), parallel, settings, stop, lambda: scripts[0].now)


def spans(closed: list[Batch]) -> list[dict[int, tuple[int, int]]]:
    return [{p: (span.start, span.end) for p, span in b.spans.get("images", {}).items()} for b in closed]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_all_shards_close_when_one_is_full_and_the_others_have_no_records(ranks: int) -> None:
    def read(parallel: Parallel) -> list[list[dict[int, tuple[int, int]]]]:
        polls: dict[int, list[list[Record | Gap]]] = {
            0: [[record(i) for i in range(4)], [], []],
            1: [[record(i, partition=1) for i in range(5)], [], []],
            2: [[record(0, partition=2)], [], []],
            3: [[], [], []],
        }
        scripts = [Script(polls[shard]) for shard in parallel.local]
        return [spans(step) for step in closed(scripts, parallel, size=8) if step]

    steps = [[shard for rank in step for shard in rank] for step in zip(*together(4, ranks, read), strict=True)]
    assert steps == [
        [{0: (0, 2)}, {1: (0, 2)}, {2: (0, 1)}, {}],
        [{0: (2, 4)}, {1: (2, 4)}, {}, {}],
    ]


class Lost(Script):
    """A source whose records were deleted before they were read."""

    def poll(self, timeout_s: float) -> list[Record | Gap]:
        if not self.polls:
            raise InputError("deleted by retention")
        return super().poll(timeout_s)


def test_an_error_of_one_rank_ends_all_after_their_open_batches() -> None:
    def read(parallel: Parallel) -> tuple[list[list[dict[int, tuple[int, int]]]], str | None]:
        polls: list[list[Record | Gap]] = [[record(0, partition=parallel.rank)], []]
        script = Lost(polls) if parallel.rank else Script([*polls, *polls, []])
        stream, steps = closed([script], parallel, size=8), []
        try:
            for step in stream:
                steps.append(spans(step))
        except InputError as error:
            return steps, str(error)
        return steps, None

    assert together(2, 2, read) == [([[{0: (0, 1)}]], None), ([[{1: (0, 1)}]], "deleted by retention")]


def test_an_idle_turn_is_the_same_on_all_ranks() -> None:
    """A rank whose polls take long must not part from the others."""

    def turns(parallel: Parallel) -> int:
        script = Script([[]] * 40)
        # The first rank waits for a second in each poll, the other one hardly at all.
        script.now, wait_s = 0.0, 1.0 if parallel.rank == 0 else 0.01
        poll = script.poll

        def slow(timeout_s: float) -> list[Record | Gap]:
            script.now += wait_s
            return poll(timeout_s)

        script.poll = slow  # pyright: ignore[reportAttributeAccessIssue]
        return sum(not step for step in closed([script], parallel, size=8))

    first, second = together(2, 2, turns)
    assert first == second > 10


def test_records_that_must_be_alone_are_each_the_only_one_of_their_rank() -> None:
    polls: list[list[list[Record | Gap]]] = [
        [[record(i) for i in range(3)], [], []],
        [[record(i, partition=1) for i in range(3)], [], []],
    ]
    scripts = [Script(each) for each in polls]
    settings = BatchSettings(size=8, linger_s=1e6)
    alone = {Place("images", 0, 1), Place("images", 1, 1)}
    shards = [OpenBatch(s, s.decode, {}, settings, s.stop, lambda s=s: s.now, shards=2, alone=alone) for s in scripts]
    steps = batches(shards, Parallel(2), settings, scripts[0].stop, lambda: scripts[0].now)
    found = [spans(step) for step in steps if step]
    assert found[:3] == [[{0: (0, 1)}, {1: (0, 1)}], [{0: (1, 2)}, {}], [{}, {1: (1, 2)}]]


def test_an_error_beside_a_record_that_must_be_alone_loses_no_open_batch() -> None:
    def read(parallel: Parallel) -> list[list[dict[int, tuple[int, int]]]]:
        settings = BatchSettings(size=16, linger_s=1e6)
        scripts = [Lost([]) if s == 2 else Script([[record(0, partition=s)], []]) for s in parallel.local]
        alone = {Place("images", 1, 0)}
        shards = [
            OpenBatch(s, s.decode, {}, settings, s.stop, lambda s=s: s.now, shards=4, alone=alone) for s in scripts
        ]
        steps = []
        with suppress(InputError):
            for step in batches(shards, parallel, settings, scripts[0].stop, lambda: 0.0):
                steps.append(spans(step))
        return steps

    steps = [[shard for rank in step for shard in rank] for step in zip(*together(4, 2, read), strict=True)]
    assert steps == [[{}, {1: (0, 1)}, {}, {}], [{0: (0, 1)}, {}, {}, {}]]


def test_a_checkpoint_has_what_all_ranks_read() -> None:
    def save(parallel: Parallel) -> tuple[Snapshot, dict]:
        rank = parallel.rank
        interval = Interval()
        interval.tally.read.spans = {"images": {rank: Span(0, 10 + rank)}}
        interval.tally.read.records = 10 + rank
        interval.tally.read.splits = {"train": 9, "test": 1 + rank}
        interval.batches = [[Piece("images", rank, 10 * step + shard)] for step in (1, 2) for shard in parallel.local]
        letter = Record("images", rank, 3, 0, b"key", b"\x00", [("label", None)])
        interval.dead_letters = [Rejection(letter, Reason.NO_LABEL, "decode", "no label")]
        snapshot = Snapshot(
            tensors={"x": np.zeros(1)},
            document={"may_discard_from": [("images", rank, 0)]},
            shards=[],
            parts={},
            positions={"images": {rank: 10 + rank}},
            rows={"images": {rank: 3}} if rank else {},
            interval=interval,
            recent=None,
            arithmetic=None,  # pyright: ignore[reportArgumentType]
            candidate=None,
            decision=None,
            discarded={"images": {rank: Span(0, 1)}},
        )
        return gathered(parallel, snapshot, {"images": {rank: 5}})

    (snapshot, lag), (own, own_lag) = together(4, 2, save)
    assert (own.positions, own_lag) == ({"images": {1: 11}}, {"images": {1: 5}})
    read = snapshot.interval.tally.read
    assert (read.records, read.splits) == (21, {"train": 18, "test": 3})
    assert read.spans == {"images": {0: Span(0, 10), 1: Span(0, 11)}}
    assert snapshot.positions == {"images": {0: 10, 1: 11}}
    assert snapshot.rows == {"images": {1: 3}}
    assert snapshot.discarded == {"images": {0: Span(0, 1), 1: Span(0, 1)}}
    assert [pieces[0].end for pieces in snapshot.interval.batches] == [10, 11, 12, 13, 20, 21, 22, 23]
    assert [letter.record.partition for letter in snapshot.interval.dead_letters] == [0, 1]
    assert snapshot.interval.dead_letters[0].record.headers == [("label", None)]
    assert snapshot.document == {"may_discard_from": [("images", 0, 0), ("images", 1, 0)]}
    assert lag == {"images": {0: 5, 1: 5}}


def test_flags_and_values_of_all_ranks() -> None:
    assert together(4, 2, lambda parallel: any_rank(parallel, parallel.rank == 1, False)) == [[True, False]] * 2
    assert together(4, 2, lambda parallel: from_ranks(parallel, parallel.rank)) == [[0, 1]] * 2


def test_the_partitions_of_each_topic_go_to_the_shards_in_turn() -> None:
    settings = Settings.model_validate({"run": {"id": "r", "shards": 4}, "input": {"topics": ["a", "b"]}})
    assert [shard_of(settings, "a", p) for p in range(5)] == [0, 1, 2, 3, 0]
    assert [shard_of(settings, "b", p) for p in range(5)] == [1, 2, 3, 0, 1]
