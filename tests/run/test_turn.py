"""The take-over of a run by several ranks: the other ranks fetch what rank 0 sees, before and after the take-over."""

import copy
import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fake_run import FakeRun
from ranks_in_threads import together

from stream_learner.contract.objects import Object
from stream_learner.errors import StoreError
from stream_learner.learning.parallel import Parallel
from stream_learner.publishing import ownership
from stream_learner.publishing.recover import Recovered
from stream_learner.run.turn import Lead, follow, lead_in

DEADLINE_S = 60.0


class Standby:
    """An election that is won after the other rank has fetched the second checkpoint. Then a third one is there."""

    def __init__(self, run: FakeRun):
        self.elected: bool | None = None
        self.polled = threading.Event()
        self.attempts = 0
        self._run = run
        self._writer = run.writer()
        self.publish()

    def publish(self) -> None:
        self._run.publish(self._writer, self._run.snapshot())

    def poll(self, timeout_s: float = 0.0) -> None:
        del timeout_s
        self.polled.set()
        if self.elected is None and self.attempts == 1:
            self.elected = False
            self.publish()
        elif not self.elected and self.attempts == 2:
            self.publish()
            self.elected = True

    def check_members(self) -> None: ...

    def confirm(self) -> None: ...


@pytest.mark.parametrize("first_fails", [False, True])
def test_other_ranks_fetch_while_rank_0_stands_by_and_rank_0_stays_a_member_while_they_fetch(
    monkeypatch: pytest.MonkeyPatch, first_fails: bool
):
    monkeypatch.setattr(ownership, "LOOK_EVERY_S", 0.0)
    run = FakeRun(run__on_conflict="standby")
    election, recovery, store = Standby(run), run.recovery(), copy.copy(run.store)
    fetch, fenced_at = store.fetch, []

    def fetch_beside_the_election(reference: Object) -> bytes:
        election.polled.clear()
        assert election.polled.wait(DEADLINE_S)
        try:
            if first_fails and not election.attempts:
                raise StoreError("the store does not answer")
            return fetch(reference)
        finally:
            election.attempts += 1

    monkeypatch.setattr(store, "fetch", fetch_beside_the_election)
    transaction = SimpleNamespace(fence=lambda: fenced_at.append(election.attempts))
    lead = Lead(cast(Any, SimpleNamespace(election=election, transaction=transaction)), recovery)
    recovery.look()

    def take_over(parallel: Parallel) -> Recovered | None:
        def nothing() -> None: ...

        if parallel.rank == 0:
            return lead_in(run.settings, run.store, lead, parallel, threading.Event(), nothing, nothing)
        return follow(run.settings, store, parallel, nothing, nothing)

    first, second = together(2, 2, take_over)
    assert first
    assert first.checkpoint
    assert second
    assert second.checkpoint
    assert fenced_at == [2]
    assert election.attempts == 3
    assert (first.checkpoint.manifest.sequence, first.positions, first.epoch) == (3, {"images": {0: 30}}, 1)
    assert (second.checkpoint.manifest, second.positions) == (first.checkpoint.manifest, first.positions)
