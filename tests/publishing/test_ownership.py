import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from stream_learner.checkpoints.store import Store
from stream_learner.config import Settings
from stream_learner.errors import (
    ConflictError,
    ExitCode,
    FencedError,
    InputError,
    KafkaUnavailableError,
    StateError,
    StoreError,
)
from stream_learner.publishing.ownership import MAYBE_REPLACED, await_turn, fencing, first_look, leaving_a_mark

DEADLINE_S = 60.0


class Election:
    """An election by a script: what is known after each poll. After its end nothing changes."""

    def __init__(self, *script: bool | None, poll_s: float = 1.0):
        self.script = list(script)
        self.elected: bool | None = None
        self.shares_topics = False
        self.take_overs = 0
        self.confirmations = 0
        self.now = 0.0
        self.poll_s = poll_s

    def poll(self, timeout_s: float = 0.0) -> None:  # noqa: ARG002
        self.now += self.poll_s
        if self.script:
            self.elected = self.script.pop(0)

    def check_members(self) -> None:
        if self.shares_topics:
            raise StateError("topics belong to one run")

    def confirm(self) -> None:
        self.confirmations += 1
        if not self.elected:
            raise FencedError("another one was elected")

    def take_over(self) -> None:
        self.take_overs += 1
        self.elected = True


class Stop:
    def __init__(self, polls: int):
        self.polls = polls

    def is_set(self) -> bool:
        self.polls -= 1
        return self.polls < 0


class Waiting:
    """A worker that waits for its turn, and what it did meanwhile."""

    def __init__(self, folder: Path, on_conflict: str):
        self.settings = Settings.model_validate(
            {"run": {"id": "digits", "on_conflict": on_conflict}, "input": {"topics": ["images"]}}
        )
        self.store = Store(str(folder))
        self.stood_by: list[float] = []
        self.looked: list[float] = []
        self.ended: list[ExitCode] = []
        self.error: Exception | None = None
        self.error_from = 1

    def wait(self, election: Election, polls: int = 1000) -> bool:
        first_look(self.settings, lambda: self.look(election.now))
        return await_turn(
            self.settings,
            self.store,
            election,
            Stop(polls),
            lambda: self.stood_by.append(election.now),
            lambda: self.look(election.now),
            lambda: election.now,
        )

    def look(self, now: float) -> None:
        self.looked.append(now)
        if self.error and len(self.looked) >= self.error_from:
            raise self.error

    def end(self, code: ExitCode) -> None:
        leaving_a_mark(self.settings, self.store, self.ended.append)(code)


NewWaiting = Callable[[str], Waiting]


@pytest.fixture
def new_waiting(tmp_path: Path) -> NewWaiting:
    return lambda on_conflict: Waiting(tmp_path, on_conflict)


@pytest.mark.parametrize("on_conflict", ["standby", "take_over", "exit"])
def test_alone_it_is_its_turn_at_once(new_waiting: NewWaiting, on_conflict: str):
    waiting = new_waiting(on_conflict)
    assert waiting.wait(Election(None, True))
    assert not waiting.stood_by


@pytest.mark.parametrize(
    "error", [None, StoreError("away"), KafkaUnavailableError("away"), InputError("gone since the last save")]
)
def test_a_standby_waits_warm_until_it_is_elected(new_waiting: NewWaiting, error: Exception | None):
    waiting = new_waiting("standby")
    waiting.error, waiting.error_from = error, 2
    election = Election(None, *[False] * 9, None, True)  # None: the brokers are deciding again
    assert waiting.wait(election)
    assert waiting.stood_by[:10] == [float(n) for n in range(2, 12)]  # then until the last look ends
    assert waiting.looked[0] == 0.0
    assert 2 <= len(waiting.looked) <= 3  # not while the last one runs
    assert election.take_overs == 0


@pytest.mark.parametrize("error", [None, StateError("other settings")])
def test_a_worker_that_is_elected_during_a_look_stands_by_until_it_ends(
    new_waiting: NewWaiting, error: StateError | None
):
    waiting, election = new_waiting("standby"), Election(None, *[False] * 6, True)
    looks, stood_by, since_elected = threading.Event(), threading.Event(), list[float]()

    def look() -> None:
        looks.set()
        assert stood_by.wait(DEADLINE_S)
        if error:
            raise error

    def stand_by() -> None:
        if election.elected:
            since_elected.append(election.now)
            if len(since_elected) == 2:
                stood_by.set()
        elif election.now >= 7:
            assert looks.wait(DEADLINE_S)

    def wait() -> bool:
        clock = lambda: election.now  # noqa: E731
        return await_turn(waiting.settings, waiting.store, election, Stop(10**9), stand_by, look, clock)

    if error:
        with pytest.raises(StateError, match="other settings"):
            wait()
    else:
        assert wait()
    assert stood_by.is_set()


def test_a_standby_stops_when_it_is_told_to(new_waiting: NewWaiting):
    assert not new_waiting("standby").wait(Election(None, False), polls=5)
    assert not new_waiting("standby").wait(Election(), polls=0)


def test_it_may_take_over(new_waiting: NewWaiting):
    election = Election(None, False)
    assert new_waiting("take_over").wait(election)
    assert election.take_overs == 1


def test_it_may_exit(new_waiting: NewWaiting):
    with pytest.raises(ConflictError, match="'digits' is alive"):
        new_waiting("exit").wait(Election(None, False))


@pytest.mark.parametrize("on_conflict", ["standby", "exit"])
def test_who_shares_the_topics_of_another_run_ends_and_does_not_stand_by(new_waiting: NewWaiting, on_conflict: str):
    waiting, election = new_waiting(on_conflict), Election(None, False)
    election.shares_topics = True
    with pytest.raises(StateError):
        waiting.wait(election)
    assert not waiting.stood_by


def test_a_group_that_never_answers_is_an_error(new_waiting: NewWaiting):
    with pytest.raises(KafkaUnavailableError, match=r"recovery\.timeout_s = 180"):
        new_waiting("standby").wait(Election(poll_s=60.0))


def test_a_standby_waits_as_long_as_it_takes(new_waiting: NewWaiting):
    assert new_waiting("standby").wait(Election(False, *[None] * 9, True, poll_s=60.0))


@pytest.mark.parametrize("code", list(MAYBE_REPLACED))
def test_a_worker_that_may_have_been_replaced_comes_back_as_a_standby(new_waiting: NewWaiting, code: ExitCode):
    waiting = new_waiting("take_over")
    waiting.end(code)
    waiting.end(code)  # twice is no error
    assert waiting.ended == [code, code]
    election = Election(False, False, True)
    assert waiting.wait(election)
    assert (election.take_overs, len(waiting.stood_by)) == (0, 2)
    assert waiting.wait(election := Election(None, False))  # it had its turn: that is forgotten
    assert election.take_overs == 1


def test_a_mark_is_of_one_run(new_waiting: NewWaiting):
    """Although another run on the same host has the same store and port."""
    waiting = new_waiting("take_over")
    waiting.end(ExitCode.FENCED)
    other = new_waiting("take_over")
    other.settings = other.settings.model_copy(update={"run": other.settings.run.model_copy(update={"id": "letters"})})
    assert other.wait(election := Election(None, False))
    assert election.take_overs == 1
    assert waiting.wait(election := Election(False, True))  # it is not forgotten by the other's turn
    assert election.take_overs == 0


def test_no_other_end_leaves_a_mark(new_waiting: NewWaiting):
    waiting = new_waiting("take_over")
    for code in set(ExitCode) - set(MAYBE_REPLACED):
        waiting.end(code)
    assert waiting.wait(election := Election(False))
    assert election.take_overs == 1


def test_a_store_that_fails_does_not_keep_a_replaced_worker(new_waiting: NewWaiting, tmp_path: Path):
    waiting = new_waiting("take_over")
    (tmp_path / "digits").touch()  # no folder can be made there
    waiting.end(ExitCode.FENCED)
    assert waiting.ended == [ExitCode.FENCED]


def test_only_an_elected_worker_fences():
    election, fenced = Election(), []
    with pytest.raises(FencedError):
        fencing(election, lambda: fenced.append(True))()
    assert not fenced
    election.elected = True
    fencing(election, lambda: fenced.append(True))()
    assert (fenced, election.confirmations) == ([True], 3)


def test_a_worker_that_was_replaced_while_it_fenced_does_not_go_on():
    election = Election()
    election.elected = True
    with pytest.raises(FencedError):
        fencing(election, lambda: setattr(election, "elected", False))()


@pytest.mark.parametrize("on_conflict", ["standby", "take_over"])
def test_who_does_not_fit_ends_before_it_disturbs_anybody(new_waiting: NewWaiting, on_conflict: str):
    waiting, election = new_waiting(on_conflict), Election(None, False, True)
    waiting.error = StateError("another model")
    with pytest.raises(StateError):
        waiting.wait(election)
    assert (election.now, election.take_overs) == (0.0, 0)


def test_a_standby_outlives_records_that_only_the_active_worker_has_read(new_waiting: NewWaiting):
    waiting = new_waiting("standby")
    waiting.error = InputError("fallen off retention")
    assert waiting.wait(Election(False, True))


def test_a_take_over_does_not_begin_with_them(new_waiting: NewWaiting):
    waiting, election = new_waiting("take_over"), Election(False, True)
    waiting.error = InputError("fallen off retention")
    with pytest.raises(InputError):
        waiting.wait(election)
    assert election.take_overs == 0
