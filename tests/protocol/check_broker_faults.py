"""Faults of Kafka and of the network: the worker waits for their end, or ends so that the next start continues."""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import child
import pytest
from child import Point
from fault_proxy import FaultProxy
from feed import mixed
from harness import DEADLINE_S, POLL_S, SHORT, UNKNOWN_OUTCOME, NewRun, Run, Worker, not_ready
from kafka.errors import KafkaConnectionError
from kafka.net.compat import KafkaNetClient

from stream_learner import Follower
from stream_learner.errors import ExitCode
from stream_learner.local.broker import HOST, Broker, free_port
from stream_learner.streams.transaction import Transaction

# Beside the usual listener one whose clients are sent through the fault proxy.
PROPERTIES = """
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},FAULTY://{host}:{target}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},FAULTY://{host}:{proxy}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,FAULTY:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
"""
# API keys of what a publication asks: Produce, AddPartitionsToTxn, AddOffsetsToTxn, EndTxn, TxnOffsetCommit.
PUBLICATION = {0, 24, 25, 26, 28}
FETCH, FIND_COORDINATOR, END_TRANSACTION = 1, 10, 26
RESETS = 40
RESTARTS = RESETS  # each costs one reset at least


@pytest.fixture(scope="module")
def network() -> Iterator[FaultProxy]:
    with FaultProxy(free_port(), free_port()) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, network: FaultProxy) -> Iterator[Broker]:
    """This module's own, in place of the session's."""
    properties = PROPERTIES.format(host=HOST, proxy=network.port, target=network.target)
    with Broker(tmp_path_factory.mktemp("faulty"), properties=properties) as broker:
        yield broker


@pytest.fixture
def proxy(network: FaultProxy) -> Iterator[FaultProxy]:
    yield network
    network.heal()


def through(run: Run, proxy: FaultProxy) -> Run:
    """The run, its workers behind the proxy."""
    run.overrides["kafka.bootstrap_servers"] = proxy.address
    return run


def test_a_slow_network(new_run: NewRun, proxy: FaultProxy) -> None:
    run = through(new_run(), proxy)
    worker = run.start()
    worker.learning()
    proxy.latency_s = 0.05
    seen: set[int] = set()
    proxy.loses = seen.add
    run.feed(mixed(1000))
    run.finish(worker)
    assert seen > PUBLICATION


def test_answers_that_are_lost_in_a_publication(new_run: NewRun, proxy: FaultProxy) -> None:
    """The broker has done each thing, and is asked to do it again."""
    run = through(new_run(), proxy)
    run.feed(mixed(1000))
    worker = run.start()
    run.learned(worker)
    left = set(PUBLICATION)

    def loses(key: int) -> bool:
        first = key in left
        left.discard(key)
        return first

    proxy.loses = loses
    run.feed(mixed(1000))
    run.finish(worker)
    assert not left


def test_resets_at_random_moments(new_run: NewRun, proxy: FaultProxy) -> None:
    """Resets are so frequent that most starts end with code 3. They end after `RESETS`, so that a start can succeed."""
    run = through(new_run(partitions=2, kafka__request_timeout_s=3.0), proxy)  # a lost answer costs as long
    chance, lost = random.Random(0), 0

    def loses(_: int) -> bool:
        nonlocal lost
        reset = lost < RESETS and chance.random() < 0.1
        lost += reset
        return reset

    proxy.loses = loses
    run.feed(mixed(3000))
    worker = persistent(run)
    assert lost
    proxy.heal()
    run.finish(worker)


def test_a_coordinator_that_is_away_for_longer_than_a_request_may_take(
    new_run: NewRun, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the commit is lost, and the next connection is not ready in time. The producer asks again."""
    run = through(new_run(kafka__request_timeout_s=1.0), proxy)
    asked, await_ready = Event(), KafkaNetClient.await_ready

    def awaits(client: KafkaNetClient, *args: Any, **kwargs: Any) -> bool:
        try:
            return await_ready(client, *args, **kwargs)
        except KafkaConnectionError:
            asked.set()
            raise

    monkeypatch.setattr(KafkaNetClient, "await_ready", awaits)

    def loses(key: int) -> bool:
        if key == FIND_COORDINATOR:
            proxy.cut()  # after this answer
        return key == END_TRANSACTION

    transaction = Transaction(run.settings)
    transaction.fence()
    transaction.begin()
    sent = transaction.send(run.input, b"value", b"key")
    transaction.confirm([sent], time.monotonic() + DEADLINE_S)
    proxy.loses = loses
    commit = Thread(target=transaction.commit, daemon=True)
    commit.start()
    assert asked.wait(DEADLINE_S)
    proxy.heal()
    commit.join(DEADLINE_S)
    transaction._producer.close(0)
    assert not commit.is_alive()


def persistent(run: Run) -> Worker:
    """Restart a worker until it has learned everything that was fed. Return it."""
    worker = run.start()
    for _ in range(RESTARTS):
        with suppress(AssertionError):
            run.learned(worker)
            return worker
        worker.ends(ExitCode.KAFKA, *UNKNOWN_OUTCOME)
        worker = run.start()
    raise AssertionError(f"not past the faults after {RESTARTS} restarts")


def test_a_network_that_is_cut_for_a_while(new_run: NewRun, proxy: FaultProxy) -> None:
    run = through(new_run(checkpoint__every_s=0.5, kafka__request_timeout_s=3.0), proxy)
    run.feed(mixed(1000))
    worker = run.start()
    run.learned(worker)
    worker.until("save", lambda: run.saved() == run.ends())
    proxy.cut()
    worker.reaches("kafka_warnings_total", 1)
    run.feed(mixed(1000))
    proxy.heal()
    run.finish(worker)


def test_a_network_that_is_cut_in_a_publication(new_run: NewRun, proxy: FaultProxy) -> None:
    """Longer than the transaction may take: the brokers abort it."""
    run = through(new_run(**SHORT), proxy)
    run.feed(mixed(1000))
    worker = run.start_signalled(Point("transaction", "offsets", 2), signal.SIGSTOP)
    worker.paused()
    proxy.cut()
    worker.signal(signal.SIGCONT)
    worker.ends(ExitCode.PUBLISH, ExitCode.WATCHDOG)  # the watchdog's time ran on during the pause
    proxy.heal()
    run.finish(run.start())


def test_an_outage_that_outlasts_the_unsaved_budget(new_run: NewRun) -> None:
    run = new_run(kafka__request_timeout_s=3.0, checkpoint__max_unsaved_records=600, release__every_records=10_000)
    run.feed(mixed(3000))
    # Before the third checkpoint; the first call is recovery's.
    worker = run.start_signalled(Point("cluster", "topic_ids", 4, before=True), signal.SIGSTOP)
    worker.paused()
    run.broker.stop()
    worker.signal(signal.SIGCONT)
    worker.until("pause", lambda: worker.metric("phase").get('{phase="waiting"}'))
    worker.until("time-out", lambda: "a checkpoint could not be written" in worker.text())
    worker.reaches("kafka_warnings_total", 1)
    reached = sum(worker.metric("position").values())
    run.broker.start()
    assert 0 < reached < sum(run.saved().values()) + 600 + 100  # 100: what one batch may cover
    run.finish(worker)


def test_an_outage_after_everything_was_saved_shows_and_passes(new_run: NewRun) -> None:
    run = new_run(checkpoint__every_s=0.5, kafka__request_timeout_s=3.0)
    run.feed(mixed(1000))
    worker = run.start()
    run.learned(worker)
    worker.until("save", lambda: run.saved() == run.ends())
    worker.until("readiness", lambda: worker.page("readyz")[0] == 200)
    run.broker.stop()
    not_ready(worker)
    answers = "last_fetch_timestamp_seconds", "last_metadata_timestamp_seconds"
    before = [sum(worker.metric(name).values()) for name in answers]
    run.broker.start()
    worker.until("recovery", lambda: worker.page("readyz")[0] == 200)
    for name, at in zip(answers, before, strict=True):
        worker.reaches(name, at + 0.001)
    run.feed(mixed(1000))
    run.finish(worker)


def test_a_broker_that_answers_all_but_fetches_shows_and_passes(new_run: NewRun, proxy: FaultProxy) -> None:
    """Answers to other requests, as for metadata every second, hide nothing."""
    run = through(new_run(checkpoint__every_s=0.5, kafka__request_timeout_s=3.0), proxy)
    run.feed(mixed(1000))
    worker = run.start()
    run.learned(worker)
    worker.until("save", lambda: run.saved() == run.ends())  # or it might wait for a save, whose manifest is fetched
    proxy.loses = lambda key: key == FETCH
    run.feed(mixed(1000))
    not_ready(worker)
    assert f"Kafka has not answered a fetch of {run.input}[0]" in worker.page("readyz")[1]
    answered = sum(worker.metric("last_metadata_timestamp_seconds").values())
    worker.reaches("last_metadata_timestamp_seconds", answered + 0.001)
    proxy.heal()
    worker.until("recovery", lambda: worker.page("readyz")[0] == 200)
    run.finish(worker)


def test_an_outage_that_lasts_ends_a_worker_that_publishes_and_its_standby(new_run: NewRun) -> None:
    run = new_run(
        run__session_timeout_s=10.0,  # the standby must not replace the worker while it is stopped
        kafka__request_timeout_s=3.0,
        kafka__give_up_s=15.0,
        checkpoint__max_unsaved_records=600,
    )
    # Before the third checkpoint; the first call is recovery's.
    worker = run.start_signalled(Point("cluster", "topic_ids", 4, before=True), signal.SIGSTOP)
    worker.learning()
    run.overrides["run.on_conflict"] = "standby"
    standby = run.start()
    standby.until("standby", lambda: standby.metric("phase").get('{phase="standby"}'))
    run.feed(mixed(3000))
    worker.paused()
    run.broker.stop()
    try:
        worker.signal(signal.SIGCONT)
        worker.until("a failed publication", lambda: "a checkpoint could not be written" in worker.text())
        for each in (worker, standby):
            not_ready(each)
        for each in (worker, standby):
            assert "has not answered for kafka.give_up_s = 15 s" in each.ends(ExitCode.KAFKA)
    finally:
        run.broker.start()
    run.finish(run.start())


def test_a_broker_that_comes_after_the_worker_and_its_coordinators_later_still(tmp_path: Path) -> None:
    """A broker that no transaction was ever asked of: it has no coordinators until it has made their topics."""
    with Broker(tmp_path / "kafka") as broker:
        run = Run(broker, tmp_path / tmp_path.name, overrides={"kafka.request_timeout_s": 1.0})
        run.feed(mixed(1000))
        assert (
            not {"__transaction_state", "__consumer_offsets"} & run.admin.list_topics(timeout=DEADLINE_S).topics.keys()
        )
        broker.stop()
        assert "kafka.bootstrap_servers" in run.start().ends(ExitCode.KAFKA)
        run.overrides["kafka.request_timeout_s"] = 30.0
        worker = run.start()
        worker.until("first try", lambda: "ECONNREFUSED" in worker.text())
        broker.start()
        run.finish(worker)


def skip_a_sequence_number(log: Path, arguments: list[str], transaction: int) -> None:
    """Run the command line in a process whose producer skips a sequence number in its n-th transaction."""
    begin, calls = Transaction.begin, 0

    def skipping(self: Transaction) -> None:
        nonlocal calls
        calls += 1
        begin(self)
        if calls == transaction:
            manager = self._producer._transaction_manager
            for place in list(manager._sequence_numbers):
                manager.increment_sequence_number(place, 1)

    Transaction.begin = skipping
    child.command(log, arguments)


def test_a_sequence_error(new_run: NewRun) -> None:
    """kafka-python may wait for records of the transaction that it gave up: until the time-out, short here."""
    run = new_run(**SHORT | {"checkpoint__timeout_s": 8.0})
    run.feed(mixed(1000))
    assert "OutOfOrderSequenceNumberError" in run.start_altered(skip_a_sequence_number, 2).ends(ExitCode.PUBLISH)
    assert len(run.read("history")) == 1
    run.finish(run.start())


def test_a_follower_keeps_its_release_while_kafka_is_away(new_run: NewRun, proxy: FaultProxy) -> None:
    run = new_run(release__every_records=200, release__min_held_out=1000)
    run.feed(mixed(250))
    run.finish(run.start())
    with Follower(run.id, proxy.address) as follower:
        release = follower.latest(DEADLINE_S)
        proxy.cut()
        run.feed(mixed(250, 1))
        described = run.finish(run.start()).manifest["release"]
        while follower.following.silence_s < 1:
            time.sleep(POLL_S)
        assert follower.latest() is release
        proxy.heal()
        deadline = time.monotonic() + DEADLINE_S
        while follower.latest().described.sequence != described["sequence"]:
            assert time.monotonic() < deadline, follower.following
            time.sleep(POLL_S)
        assert follower.following.silence_s < 1
