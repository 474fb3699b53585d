"""The worker's loop with stand-ins for its collaborators: when it saves, when it waits, and how it ends."""

import inspect
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, cast

import pytest
from ranks_in_threads import together
from structlog.testing import capture_logs
from worker_loop import ALWAYS, BEFORE_MS, NEVER, NOW_MS, Loop, batch, stream

from stream_learner.config import Settings
from stream_learner.contract.ledger import Piece
from stream_learner.contract.vocabulary import Split
from stream_learner.errors import (
    DivergedError,
    ExitCode,
    FencedError,
    InputError,
    KafkaUnavailableError,
    RejectsError,
    StreamLearnerError,
    UsageError,
)
from stream_learner.learning.parallel import Parallel
from stream_learner.run import saves, worker
from stream_learner.run.batch import Batch


def test_what_is_left_is_saved_at_the_end():
    loop = Loop(stream(3))
    with capture_logs() as logs:
        assert loop.run() == ["learn", "learn", "learn", "save"]
    assert loop.saved == [30]
    assert loop.driver.progress.empty
    assert [(entry["event"], entry["unsaved_records"]) for entry in logs] == [("stopping after a last save", 30)]


def test_nothing_learned_is_nothing_to_save():
    assert Loop([]).run() == []
    assert Loop([[], []], every_s=ALWAYS).run() == []


def test_a_release_falls_on_its_batch_and_the_save_follows():
    loop = Loop(stream(5), release_every=20)
    assert loop.run() == ["learn", "learn", "decide", "save", "learn", "learn", "decide", "save", "learn", "save"]
    assert loop.saved == [20, 20, 10]


def test_a_release_waits_for_the_publisher():
    loop = Loop(stream(2), release_every=10, busy=True)
    assert loop.run() == ["learn", "decide", "save", "learn", "wait", "decide", "save", "wait"]


def test_a_held_out_set_of_few_groups_is_warned_of_once_until_it_changes():
    loop = Loop(stream(5), release_every=10)
    loop.learner.few = [{Split.TEST: 0.9}, {Split.TEST: 0.8}, {}, {Split.TEST: 0.7, Split.VALIDATION: 0.6}]
    with capture_logs() as logs:
        loop.run()
    warnings = [(entry["split"], entry["share"]) for entry in logs if entry["log_level"] == "warning"]
    assert warnings == [("test", 0.9), ("test", 0.7), ("validation", 0.6)]


def test_saves_by_count():
    assert Loop(stream(5), every_records=20).run() == ["learn", "learn", "save"] * 2 + ["learn", "save"]


def test_saves_by_the_clock():
    loop = Loop([[batch(0)], [], [batch(10)]], every_s=ALWAYS)
    assert loop.run() == ["learn", "save", "learn", "save"]


def test_training_goes_on_while_a_save_is_published():
    loop = Loop(stream(5), busy=True, every_s=ALWAYS, every_records=10)
    assert loop.run() == ["learn", "save", "learn", "learn", "learn", "learn", "wait", "save", "wait"]
    assert loop.saved == [10, 40]


def test_it_stops_reading_rather_than_outrun_what_can_be_saved():
    loop = Loop(stream(6), busy=True, every_records=10, max_unsaved_records=40)
    assert loop.run() == [
        *("learn", "save"),
        *("learn", "learn", "learn", "wait", "save"),  # 10 in flight and 30 open
        *("learn", "wait", "save"),
        *("learn", "wait", "save", "wait"),
    ]


def test_records_are_unsaved_on_every_rank_until_rank_0_has_committed_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(saves, "gathered", lambda _, snapshot, lag: (snapshot, lag))

    def work(parallel: Parallel) -> list[int]:
        loop, unsaved = Loop([], busy=parallel.rank == 0, every_records=40, parallel=parallel), []

        def turns() -> Iterable[list[Batch]]:
            for turn, closed in enumerate([*stream(3), []]):
                yield closed
                unsaved.append(loop.worker.saves.unsaved_records)
                loop.publisher.idle |= turn == 2

        loop.worker.stream = turns()
        loop.run()
        return unsaved

    assert together(2, 2, work) == [[10, 20, 30, 10]] * 2


def test_dead_letters_that_grow_too_many_force_a_save():
    loop = Loop(stream(4, rejected=1, value=bytes(3000)), busy=True, every_records=10, max_pending_bytes=8000)
    assert loop.run() == ["learn", "save", "learn", "learn", "wait", "save", "learn", "wait", "save", "wait"]
    assert [len(closed.dead_letters) for closed in loop.publisher.published] == [1, 2, 1]


def test_a_ledger_that_grows_too_long_forces_a_save(monkeypatch):
    monkeypatch.setattr(saves, "MAX_ENTRIES", 25)
    loop = Loop([[replace(b, pieces=[Piece("images", 0, 1)] * 10)] for (b,) in stream(6)], busy=True)
    assert loop.run() == ["learn", "learn", "learn", "save", "learn", "learn", "learn", "wait", "save", "wait"]


def test_too_many_rejects_are_saved_before_they_stop_it():
    loop = Loop(stream(9, rejected=6), busy=True)
    with pytest.raises(RejectsError, match=r"60% of the last records were rejected, over rejects\.max_share = 50%"):
        loop.run()
    assert loop.events == ["learn", "learn", "save", "wait"]
    assert len(loop.publisher.published[0].dead_letters) == 12
    assert RejectsError.code is ExitCode.REJECTS


def test_accepted_rejects_do_not_stop_it():
    assert Loop(stream(4, rejected=10), accept_rejects=True).run() == ["learn"] * 4 + ["save"]


def test_a_divergence_is_saved_before_it_stops_it():
    loop = Loop(stream(9), busy=True)

    def diverging() -> Iterable[list[Batch]]:
        for i, b in enumerate(stream(9)):
            loop.learner.diverged = i == 2
            yield b

    loop.worker.stream = diverging()
    with pytest.raises(DivergedError, match="three batches in a row"):
        loop.run()
    assert loop.events == ["learn", "learn", "learn", "save", "wait"]


def lost() -> Iterable[list[Batch]]:
    yield from stream(2)
    raise InputError("deleted by retention")


@pytest.mark.parametrize(
    ("ending", "error", "message"),
    [
        (lost, InputError, "rank 1 of the run: deleted by retention"),
        (lambda: stream(2, rejected=6), RejectsError, "rank 1 of the run: 60% of the last records were rejected"),
    ],
)
def test_a_rank_that_fails_ends_all_ranks_with_its_code_after_a_save(
    ending: Callable[[], Iterable[list[Batch]]],
    error: type[StreamLearnerError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(saves, "gathered", lambda _, snapshot, lag: (snapshot, lag))
    events: list[list[str]] = []

    def work(parallel: Parallel) -> None:
        loop = Loop(ending() if parallel.rank else stream(2), parallel=parallel)
        loop.worker.leave = lambda: loop.events.append("leave")
        with pytest.raises(error, match=message):
            loop.run()
        events.append(loop.events)

    together(2, 2, work)
    assert events == [["learn", "learn", "save", "leave"]] * 2


def test_an_error_while_learning_saves_nothing():
    loop = Loop([[batch(0)], [batch(20)]])
    with pytest.raises(ValueError, match="offset 10 comes next"):
        loop.run()
    assert loop.events == ["learn", "learn"]


def test_a_device_that_fails_ends_a_worker_before_it_takes_part(monkeypatch):
    def busy(*_: Any) -> None:
        raise UsageError("learning.device = 'cuda' cannot be used: busy")

    monkeypatch.setattr(worker, "place", busy)
    monkeypatch.setattr(worker, "join", lambda *_: pytest.fail("other ranks were disturbed"))
    monkeypatch.setattr(worker, "lead_in", lambda *_: pytest.fail("another worker was disturbed"))
    nothing = cast(Any, None)
    settings = Settings.model_validate({"run": {"id": "digits"}, "input": {"topics": ["images"]}})
    arguments = inspect.signature(worker.run).parameters
    given: dict[str, Any] = dict.fromkeys(
        [name for name, p in arguments.items() if p.kind is not p.KEYWORD_ONLY], nothing
    )
    with pytest.raises(UsageError, match="busy"):
        cast(Any, worker.run)(**(given | {"settings": settings}))


def test_a_worker_that_was_replaced_learns_and_saves_no_more():
    loop = Loop([])

    def replaced() -> Iterable[list[Batch]]:
        yield [batch(0)]
        loop.election.elected = False
        loop.upkeep.tended_at = -NEVER  # a second later
        yield [batch(10)]
        raise AssertionError

    loop.worker.stream = replaced()
    with pytest.raises(FencedError, match="another worker was elected"):
        loop.run()
    assert loop.events == ["learn", "learn"]
    assert loop.election.polls == 2


def test_a_worker_that_hears_nothing_from_kafka_gives_up():
    loop = Loop([])

    def cut_off() -> Iterable[list[Batch]]:
        yield [batch(0)]
        for silence_s, expected in ((600, None), (601, "kafka.give_up_s = 600")):
            loop.clock.now = silence_s
            loop.upkeep.tended_at = -NEVER  # a second later
            if expected:
                with pytest.raises(KafkaUnavailableError, match=expected):
                    loop.upkeep.tend(0)
            else:
                loop.upkeep.tend(0)
        loop.health.heard("metadata")

    loop.worker.stream = cut_off()
    assert loop.run() == ["learn", "save"]


def test_every_turn_and_every_wait_is_a_heartbeat():
    loop = Loop([])

    def slow() -> Iterable[list[Batch]]:
        for b in [[batch(0)], [], [batch(10)]]:
            loop.clock.now += 10
            yield b
            assert loop.health.why_not_live() is None
        loop.clock.now += 1000

    loop.worker.stream = slow()
    loop.run()
    assert loop.health.why_not_live() is None  # the last save was waited for


def test_lag_and_memory_are_told():
    loop = Loop(stream(1))
    loop.run()
    assert loop.publisher.lag == {"images": {0: 90, 1: 7}}

    def value(name: str, **labels: str) -> float | None:
        return loop.registry.get_sample_value(f"stream_learner_{name}", labels)

    assert value("lag_records", topic="images", partition="0") == 90
    assert value("lag_records", topic="images", partition="1") == 7
    assert value("lag_seconds", topic="images", partition="0") == pytest.approx(time.time() - NOW_MS / 1000, abs=60)
    assert value("lag_seconds", topic="images", partition="1") == pytest.approx(time.time() - BEFORE_MS / 1000, abs=60)
    assert value("memory_items", label="cat") == 3
    assert value("memory_items", label="dog") is None  # held out alone
    assert value("memory_bytes") == 12
    assert value("records_in_total") == 10


def test_the_lag_is_that_of_the_moment_at_which_it_is_read():
    loop, place = Loop(stream(1)), {"topic": "images", "partition": "1"}
    loop.run()
    for end in (7, 9):
        loop.ends["images"][1] = end
        assert loop.registry.get_sample_value("stream_learner_lag_records", place) == end


@pytest.mark.parametrize("oldest_ms", [None, -1, 0, 2**62, 2 * NOW_MS])
def test_a_lag_whose_time_is_not_known_is_not_zero(oldest_ms: int | None):
    loop = Loop(stream(1))
    loop.oldest_ms[1] = oldest_ms
    loop.run()
    lag_s = loop.registry.get_sample_value("stream_learner_lag_seconds", {"topic": "images", "partition": "1"})
    assert lag_s is not None
    assert math.isnan(lag_s)


def test_a_partition_that_was_read_to_its_end_has_no_lag():
    loop = Loop(stream(11))
    loop.run()
    assert loop.upkeep.lag() == {"images": {0: 0, 1: 7}}
