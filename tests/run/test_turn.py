"""The take-over of a run by several ranks: the other ranks fetch what rank 0 sees, before and after the take-over."""

import copy
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_run import FakeRun
from ranks_in_threads import together

from stream_learner.contract.objects import Object
from stream_learner.errors import RankLostError, StateError, StoreError, StreamLearnerError, UsageError
from stream_learner.learning.parallel import Parallel
from stream_learner.publishing import ownership
from stream_learner.publishing.recover import Recovered
from stream_learner.run import turn, worker
from stream_learner.run.gang import Gang, Rank
from stream_learner.run.turn import Lead, follow, lead_in

DEADLINE_S = 60.0


class Standby:
    """An election that is won after the other rank has fetched the second checkpoint. Then a third one is there.

    `fetched` is the number of checkpoints that the other rank has fetched.
    """

    def __init__(self, run: FakeRun):
        self.elected: bool | None = None
        self.polled = threading.Event()
        self.fetched = 0
        self._run = run
        self._writer = run.writer()
        self.publish()

    def publish(self) -> None:
        self._run.publish(self._writer, self._run.snapshot())

    def poll(self, timeout_s: float = 0.0) -> None:
        del timeout_s
        self.polled.set()
        if self.elected is None and self.fetched == 1:
            self.elected = False
            self.publish()
        elif not self.elected and self.fetched == 2:
            self.publish()
            self.elected = True

    def check_members(self) -> None: ...

    def confirm(self) -> None: ...


@pytest.mark.parametrize("fails", [{}, {0: StoreError("away")}, {0: StateError("deleted")}, {1: StoreError("away")}])
def test_other_ranks_fetch_while_rank_0_stands_by_and_rank_0_stays_a_member_while_they_fetch(
    monkeypatch: pytest.MonkeyPatch, fails: dict[int, StreamLearnerError]
):
    """`fails` are errors of the other rank's store, by the number of checkpoints that it has fetched before."""
    fails = dict(fails)
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(turn, "AGAIN_S", 0.0)
    monkeypatch.setattr(turn, "POLL_S", 0.05)
    run = FakeRun(run__on_conflict="standby")
    election, recovery, store = Standby(run), run.recovery(), copy.copy(run.store)
    fetch, fenced_at = store.fetch, []

    def fetch_beside_the_election(reference: Object) -> bytes:
        election.polled.clear()
        assert election.polled.wait(DEADLINE_S)
        if error := fails.pop(election.fetched, None):
            raise error
        fetched = fetch(reference)
        election.fetched += 1
        return fetched

    monkeypatch.setattr(store, "fetch", fetch_beside_the_election)
    transaction = SimpleNamespace(fence=lambda: fenced_at.append(election.fetched))
    lead = Lead(cast(Any, SimpleNamespace(election=election, transaction=transaction)), recovery)
    recovery.look()

    def take_over(parallel: Parallel) -> Recovered | None:
        def nothing() -> None: ...

        gang = Gang(parallel, None)
        if parallel.rank == 0:
            return lead_in(run.settings, run.store, lead, gang, threading.Event(), nothing, nothing)
        return follow(run.settings, store, gang, threading.Event(), nothing, nothing)

    first, second = together(2, 2, take_over)
    assert first
    assert first.checkpoint
    assert second
    assert second.checkpoint
    assert fenced_at == [2]
    assert election.fetched == 3
    assert not fails
    assert (first.checkpoint.manifest.sequence, first.positions, first.epoch) == (3, {"images": {0: 30}}, 1)
    assert (second.checkpoint.manifest, second.positions) == (first.checkpoint.manifest, first.positions)


def test_a_signal_to_any_rank_of_a_standby_stops_all_ranks():
    run = FakeRun(run__on_conflict="standby")
    polls = iter(range(10))
    election = SimpleNamespace(elected=False, poll=lambda _=0.0: next(polls), check_members=lambda: None)
    lead = Lead(cast(Any, SimpleNamespace(election=election)), run.recovery())

    def stand_by(parallel: Parallel) -> Recovered | None:
        def nothing() -> None: ...

        gang, stop = Gang(parallel, None), threading.Event()
        if parallel.rank == 0:
            return lead_in(run.settings, run.store, lead, gang, stop, nothing, nothing)
        return follow(run.settings, run.store, gang, stop, stop.set, nothing)  # the signal comes while it stands by

    assert together(2, 2, stand_by) == [None, None]


class Faulty:
    """A standby of two ranks. Rank 1 fetches checkpoints by `fetch`, and rank 0 would win the election."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fetch: Callable[[Object], bytes]):
        self._run = FakeRun(run__on_conflict="standby")
        self.election, self._store = Standby(self._run), copy.copy(self._run.store)
        monkeypatch.setattr(self._store, "fetch", fetch)
        self.left = list[int]()

    def take_over(self, parallel: Parallel) -> None:
        def nothing() -> None: ...

        gang = Gang(parallel, None)
        gang.leave = lambda: self.left.append(parallel.rank)
        if parallel.rank:
            follow(self._run.settings, self._store, gang, threading.Event(), nothing, nothing)
            return
        transaction = SimpleNamespace(fence=lambda: pytest.fail("the active worker was disturbed"))
        lead = Lead(cast(Any, SimpleNamespace(election=self.election, transaction=transaction)), self._run.recovery())
        lead.recovery.look()
        lead_in(self._run.settings, self._run.store, lead, gang, threading.Event(), nothing, nothing)


@pytest.mark.parametrize("error", [StateError("not mine"), StoreError("no access")])
def test_a_rank_that_cannot_fetch_the_checkpoint_ends_all_ranks_before_the_active_worker_is_fenced(
    monkeypatch: pytest.MonkeyPatch, error: StreamLearnerError
):
    fetches, raised = list[Object](), list[StreamLearnerError]()

    def fails(reference: Object) -> bytes:
        fetches.append(reference)
        raise error

    faulty = Faulty(monkeypatch, fails)

    def take_over(parallel: Parallel) -> None:
        with pytest.raises(type(error)) as info:
            faulty.take_over(parallel)
        raised.append(info.value)

    together(2, 2, take_over)
    assert [str(found) for found in raised] == [f"rank 1 of the run: {error}"] * 2
    assert sorted(faulty.left) == [0, 1]
    assert len(fetches) == 2  # rank 0 looks again before they end


def test_rank_0_gives_up_a_rank_that_does_not_end_fetching(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turn, "PATIENCE_S", 0.1)
    monkeypatch.setattr(turn, "POLL_S", 0.01)
    ended = threading.Event()

    def hangs(reference: Object) -> bytes:
        assert ended.wait(DEADLINE_S)
        raise StoreError(f"{reference.key} was never there")

    faulty = Faulty(monkeypatch, hangs)

    def take_over(parallel: Parallel) -> None:
        try:
            faulty.take_over(parallel)
        finally:
            ended.set()

    with pytest.raises(RankLostError, match="did not fetch the newest checkpoint within"):
        together(2, 2, take_over)
    assert faulty.election.polled.is_set()


def test_ranks_with_other_settings_end_before_the_active_worker_is_disturbed(monkeypatch: pytest.MonkeyPatch):
    gangs, raised, left = dict[int, Gang](), list[str](), list[int]()
    monkeypatch.setattr(worker, "set_up_torch", lambda _: None)
    monkeypatch.setattr(worker, "join", lambda rank, *_: gangs[rank.index])
    for name in ("lead_in", "follow"):
        monkeypatch.setattr(worker, name, lambda *_: pytest.fail("the active worker was disturbed"))

    def start(parallel: Parallel) -> None:
        gang = gangs[parallel.rank] = Gang(parallel, None)
        gang.leave = lambda: left.append(parallel.rank)
        run = FakeRun(run__shards=2, learning__learning_rate=0.1 + parallel.rank)
        monitor, nothing = cast(Any, SimpleNamespace(health=None, metrics=None)), cast(Any, None)
        with pytest.raises(UsageError) as info:
            worker.run(run.settings, run.store, None, Rank(parallel.rank, 2), monitor, threading.Event(), nothing)
        raised.append(str(info.value))

    together(2, 2, start)
    assert sorted(left) == [0, 1]
    assert raised[0] == raised[1]
    assert raised[0].startswith("rank 1 computes with")
