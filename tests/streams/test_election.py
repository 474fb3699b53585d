"""The election on a real broker: which worker is elected, which workers learn of it, and no false report of a loss."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from queue import SimpleQueue

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaConnectionError
from kafka.future import Future

from stream_learner.config import Settings, TopicsSettings
from stream_learner.contract.topics import Names
from stream_learner.errors import KafkaUnavailableError, StateError, UsageError
from stream_learner.local.broker import Broker
from stream_learner.streams import election, topics
from stream_learner.streams.connection import ask
from stream_learner.streams.election import Election

POLL_S = 0.05
DEADLINE_S = 60.0
# A member that gets no CPU time for as long is put out.
SHORT_S = 3.0
# Longer than any test: whoever is put out was not given up by the broker.
LONG_S = 300.0

NewRun = Callable[[float], Settings]


@pytest.fixture
def new_run(new_settings: Callable[..., Settings], unique_name: str) -> NewRun:
    """Return a function that makes settings of a run with topics. Its argument is the session time-out."""

    def new_run(session_timeout_s: float) -> Settings:
        settings = new_settings(run={"id": unique_name, "session_timeout_s": session_timeout_s})
        topics.create(settings)
        return settings

    return new_run


def take_part(
    settings: Settings, tell: Callable[[bool | None], None], stop: threading.Event, take_over: bool = False
) -> None:
    """Vote as a worker's loop does, and report every change."""
    told = None
    with closing(Election(settings)) as vote:
        if take_over:
            vote.take_over()
        while not stop.wait(POLL_S):
            if vote.elected is not told:
                told = vote.elected
                tell(told)
            vote.poll()


class Member:
    """Takes part from a thread of its own."""

    def __init__(self, settings: Settings, take_over: bool = False):
        self._told: SimpleQueue[bool | None] = SimpleQueue()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=take_part, args=(settings, self._told.put, self._stop, take_over))
        self._thread.start()

    def hears(self, elected: bool) -> None:
        """Returns once it hears this, which must be the next that it hears."""
        assert self._told.get(timeout=DEADLINE_S) is elected

    def heard_all(self) -> bool:
        return self._told.empty()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


class Process:
    """Takes part from a process of its own."""

    def __init__(self, settings: Settings):
        # Not by a session's fork server, which is not prepared for other tests' workers if it begins here.
        command = [sys.executable, __file__, settings.model_dump_json(exclude_none=True)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.signal = self._process.send_signal

    def hears(self, elected: bool) -> None:
        assert self._process.stdout
        assert self._process.stdout.readline() == f"{elected}\n"

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def join() -> Iterator[Callable[..., Member]]:
    members: list[Member] = []

    def join(settings: Settings, take_over: bool = False) -> Member:
        members.append(Member(settings, take_over))
        return members[-1]

    yield join
    for member in members:
        member.stop()


@pytest.fixture
def spawn() -> Iterator[Callable[[Settings], Process]]:
    processes: list[Process] = []

    def spawn(settings: Settings) -> Process:
        processes.append(Process(settings))
        return processes[-1]

    yield spawn
    for process in processes:
        process.stop()


def test_the_first_stays_elected_while_others_come_and_go(new_run: NewRun, join):
    run = new_run(LONG_S)
    first = join(run)
    first.hears(True)
    second, third = join(run), join(run)
    second.hears(False)
    third.hears(False)
    second.stop()
    join(run).hears(False)
    assert first.heard_all()
    assert third.heard_all()


def test_new_metadata_changes_nothing(new_run: NewRun, join, monkeypatch: pytest.MonkeyPatch):
    """A member that hears of another partition joins again, and remembers the partition until then."""
    monkeypatch.setattr(election, "STEP_MS", 0)
    run = new_run(LONG_S)
    with closing(Election(run)) as first:
        first.take_over()
        ask(
            run.kafka,
            "adding a partition",
            lambda admin: admin.create_partitions({Names.under(run.prefix).checkpoints: 2}),
        )
        first._consumer.topics()  # it would look again after five minutes
        first.poll()
        second = join(run)
        while second.heard_all():
            first.poll()
        second.hears(False)
        assert first.elected


def test_who_stops_in_order_leaves_at_once(new_run: NewRun, join):
    run = new_run(LONG_S)
    first = join(run)
    first.hears(True)
    second = join(run)
    second.hears(False)
    first.stop()
    second.hears(True)


def test_a_killed_one_is_replaced_after_its_session(new_run: NewRun, join, spawn):
    run = new_run(SHORT_S)
    killed = spawn(run)
    killed.hears(True)
    standby = join(run)
    standby.hears(False)
    killed.signal(signal.SIGKILL)
    standby.hears(True)


def test_a_frozen_one_hears_of_its_loss_when_it_wakes(new_run: NewRun, join, spawn):
    run = new_run(SHORT_S)
    frozen = spawn(run)
    frozen.hears(True)
    standby = join(run)
    standby.hears(False)
    frozen.signal(signal.SIGSTOP)
    standby.hears(True)
    frozen.signal(signal.SIGCONT)
    frozen.hears(False)
    assert standby.heard_all()


def test_an_outage_changes_no_role(broker: Broker, new_run: NewRun, join):
    run = new_run(2 * SHORT_S)  # counted again from the broker's start; clients take a second to return
    first = join(run)
    first.hears(True)
    second = join(run)
    second.hears(False)
    broker.stop()
    time.sleep(run.run.session_timeout_s)
    broker.start()
    third = join(run)
    third.hears(False)  # an election in which all took part
    assert first.heard_all()
    assert second.heard_all()


def test_a_failed_request_for_metadata_is_no_error(
    broker: Broker, new_run: NewRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kafka-python makes such a request when it does not find the group's coordinator."""
    with closing(Election(new_run(LONG_S))) as vote:
        vote.take_over()
        coordinator = vote._consumer._coordinator
        broker.stop()
        try:
            coordinator.coordinator_dead("its broker was stopped")
            with monkeypatch.context() as patched:
                failed = Future().failure(KafkaConnectionError("ECONNREFUSED"))
                patched.setattr(coordinator._cluster, "request_update", lambda: failed)
                vote.poll(1.0)
        finally:
            broker.start()
        assert vote.elected


def test_a_member_that_waits_starts_no_task_until_a_heartbeat_is_refused(
    new_run: NewRun, join, monkeypatch: pytest.MonkeyPatch
):
    run = new_run(LONG_S)
    with closing(Election(run)) as vote:
        vote.take_over()
        network, tasks = vote._consumer._net, []
        start = network.run
        monkeypatch.setattr(network, "run", lambda *task: tasks.append(task) or start(*task))
        vote.poll(1.0)
        assert not tasks
        second = join(run)
        with ThreadPoolExecutor(1) as thread:
            thread.submit(vote.poll, LONG_S).result(DEADLINE_S)
        assert tasks
        second.hears(False)
        assert vote.elected


def test_take_over_puts_the_living_out(new_run: NewRun, join):
    run = new_run(LONG_S)
    first = join(run)
    first.hears(True)
    second = join(run)
    second.hears(False)
    join(run, take_over=True).hears(True)
    first.hears(False)
    assert second.heard_all()


class Unlucky(Election):
    """Takes over while the others do everything at the worst moment. The first worker is frozen when it begins."""

    def __init__(self, settings: Settings, first: Process):
        super().__init__(settings)
        self._first = first
        self._claims = False

    def _outlast_other_runs(self, deadline: float) -> None:
        super()._outlast_other_runs(deadline)
        self._first.signal(signal.SIGCONT)
        self._claims = True

    def _poll(self, timeout_ms: int) -> None:
        """Let the join that began without a claim complete when there is one."""
        super()._poll(timeout_ms)
        while self._claims and self.elected is None:
            super()._poll(timeout_ms)

    def _put_others_out(self, client: KafkaAdminClient) -> None:
        """Let the standby come back at once, and the elected one not at all."""
        self._first.signal(signal.SIGSTOP)
        super()._put_others_out(client)
        while len(self._members(client)) == 1:
            time.sleep(POLL_S)


def test_a_standby_that_comes_back_first_is_not_elected(new_run: NewRun, join, spawn):
    run = new_run(LONG_S)
    first = spawn(run)
    first.hears(True)
    second = join(run)
    second.hears(False)
    first.signal(signal.SIGSTOP)
    # Of members that claim nothing, the assignor elects the one whose id sorts first.
    last = run.model_copy(update={"kafka": run.kafka.model_copy(update={"client_id": "zzz"})})
    with closing(Unlucky(last, first)) as unlucky:
        unlucky.take_over()
        assert second.heard_all()


def test_take_over_does_not_wait_for_the_dead(new_run: NewRun, join, spawn):
    run = new_run(LONG_S)
    killed = spawn(run)
    killed.hears(True)
    killed.signal(signal.SIGKILL)
    join(run, take_over=True).hears(True)


def test_of_two_that_take_over_at_once_one_stays(new_run: NewRun, join):
    """Each puts the other out until it is elected; the first to succeed loses."""
    run = new_run(LONG_S)
    # The broker does not answer one who was put out just before it was told its assignment.
    run = run.model_copy(update={"kafka": run.kafka.model_copy(update={"request_timeout_s": 3.0})})
    first = join(run)
    first.hears(True)
    rivals = [join(run, take_over=True), join(run, take_over=True)]
    first.hears(False)
    for rival in rivals:
        rival.hears(True)
    while all(rival.heard_all() for rival in rivals):
        time.sleep(POLL_S)
    loser, winner = sorted(rivals, key=Member.heard_all)
    loser.hears(False)
    join(run).hears(False)
    assert winner.heard_all()


@pytest.mark.parametrize("_", range(3))
def test_of_two_runs_that_take_over_at_once_one_is_refused(new_run: NewRun, _: int):
    """Which one, the brokers decide: neither was there before the other."""
    run = new_run(LONG_S)
    runs = [
        run.model_copy(update={"run": run.run.model_copy(update={"id": f"{run.run.id}-{n}"}), "topics": shared(run)})
        for n in range(2)
    ]
    with closing(Election(runs[0])) as one, closing(Election(runs[1])) as other, ThreadPoolExecutor(2) as threads:
        both = threading.Barrier(2)

        def take_over(vote: Election) -> StateError | None:
            both.wait()
            try:
                vote.take_over()
            except StateError as error:
                vote.close()  # as the end of its process does
                return error
            return None

        errors = [*threads.map(take_over, (one, other))]
        (refused,) = (error for error in errors if error)
        winner = other if errors[0] else one
        assert "topics belong to one run" in str(refused)
        winner.poll(1.0)
        assert winner.elected


def shared(run: Settings) -> TopicsSettings:
    return run.topics.model_copy(update={"prefix": run.prefix})


def test_nobody_waits_for_a_broker_that_does_not_answer(broker: Broker, new_run: NewRun):
    run = new_run(LONG_S)
    patient = run.model_copy(update={"kafka": run.kafka.model_copy(update={"request_timeout_s": 1.5 * LONG_S})})
    with closing(Election(patient)) as joining, closing(Election(patient)) as elected:
        elected.take_over()
        broker.freeze()
        try:
            elected.poll()
            assert elected.elected
            joining.poll()
            assert joining.elected is None
        finally:
            broker.thaw()


def test_a_session_that_the_broker_refuses_is_a_settings_error(new_run: NewRun):
    with closing(Election(new_run(0.1))) as vote, pytest.raises(UsageError, match=r"run\.session_timeout_s = 0\.1"):
        vote.poll(DEADLINE_S)


def test_it_cannot_be_opened_without_a_broker(new_settings):
    with pytest.raises(KafkaUnavailableError, match="opening the election"):
        Election(new_settings(kafka={"bootstrap_servers": "127.0.0.1:1", "request_timeout_s": 0.2}))


if __name__ == "__main__":
    take_part(Settings.model_validate_json(sys.argv[1]), lambda elected: print(elected, flush=True), threading.Event())
