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
from confluent_kafka import Producer
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from confluent_kafka.admin._scram import (
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialDeletion,
    UserScramCredentialUpsertion,
)
from confluent_kafka.cimpl import NewPartitions
from fault_proxy import FaultProxy
from feed import MAX_RECORD_BYTES, Draft, client, good, mixed, send
from harness import DEADLINE_S, SHORT, UNKNOWN_OUTCOME, NewRun, Run, Worker
from kafka.errors import KafkaConnectionError
from kafka.net.compat import KafkaNetClient

from stream_learner.errors import ExitCode
from stream_learner.local.broker import HOST, Broker, free_port
from stream_learner.streams import topics
from stream_learner.streams.transaction import Transaction

USER, PASSWORD = "learner", "open sesame"
CREDENTIALS = [f'--add-scram=SCRAM-SHA-512=[name={USER},password="{PASSWORD}"]']
# Beside the usual listener one whose clients are sent through the fault proxy, and one that asks who they are.
PROPERTIES = """
listeners=PLAINTEXT://{{host}}:{{port}},CONTROLLER://{{host}}:{{controller_port}},FAULTY://{host}:{target},SASL://{host}:{sasl}
advertised.listeners=PLAINTEXT://{{host}}:{{port}},FAULTY://{host}:{proxy},SASL://{host}:{sasl}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,FAULTY:PLAINTEXT,SASL:SASL_PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=SCRAM-SHA-512
listener.name.sasl.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
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
def sasl_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, network: FaultProxy, sasl_port: int) -> Iterator[Broker]:
    """This module's own, in place of the session's."""
    properties = PROPERTIES.format(host=HOST, proxy=network.port, target=network.target, sasl=sasl_port)
    folder = tmp_path_factory.mktemp("faulty")
    with Broker(folder, properties=properties, format_options=CREDENTIALS) as broker:
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
    """So many that most starts end with code 3; but not for ever, or they might do so each time."""
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
    """A worker that has learned all that was fed, after as many restarts as that takes."""
    worker = run.start()
    for _ in range(RESTARTS):
        with suppress(AssertionError):
            run.learned(worker)
            return worker
        worker.ends(ExitCode.KAFKA, *UNKNOWN_OUTCOME)
        worker = run.start()
    raise AssertionError(f"not past the faults after {RESTARTS} restarts")


def test_a_network_that_is_cut_for_a_while(new_run: NewRun, proxy: FaultProxy) -> None:
    run = through(new_run(checkpoint__every_s=0.5, kafka__request_timeout_s=1.0), proxy)
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
    worker.ends(ExitCode.PUBLISH)
    proxy.heal()
    run.finish(run.start())


def test_an_outage_that_outlasts_the_unsaved_budget(new_run: NewRun) -> None:
    run = new_run(kafka__request_timeout_s=1.0, checkpoint__max_unsaved_records=600, release__every_records=10_000)
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


def not_ready(worker: Worker) -> None:
    """Returns once a worker that Kafka does not answer says so, and is not taken for dead."""
    worker.until("silence", lambda: worker.page("readyz")[0] == 503 and "not answered" in worker.page("readyz")[1])
    assert "kafka.request_timeout_s = 1" in worker.page("readyz")[1]
    assert worker.page("livez")[0] == 200


def test_an_outage_after_everything_was_saved_shows_and_passes(new_run: NewRun) -> None:
    run = new_run(checkpoint__every_s=0.5, kafka__request_timeout_s=1.0)
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
    run = through(new_run(checkpoint__every_s=0.5, kafka__request_timeout_s=1.0), proxy)
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
    run = new_run(kafka__request_timeout_s=1.0, kafka__give_up_s=6.0, checkpoint__max_unsaved_records=600)
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
            assert "has not answered for kafka.give_up_s = 6 s" in each.ends(ExitCode.KAFKA)
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
    """The command line in a process whose producer, in its n-th transaction, goes on as if a record were written that
    never was."""
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


def test_partitions_that_are_added(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(500))
    worker = run.start()
    worker.learning()
    run.partitions = 3
    run.admin.create_partitions([NewPartitions(run.input, run.partitions)])[run.input].result(DEADLINE_S)
    # Before anything is in them: an alert on a rise does not see a series that begins with it.
    worker.until("series of all", lambda: [*worker.metric("records_lost_total").values()] == [0, 0, 0])
    run.feed(mixed(1500))
    log = run.finish(worker)
    assert log.group.keys() == {(run.input, partition) for partition in range(3)}


def test_records_of_an_added_partition_that_fell_off_retention(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(500))
    worker = run.start()
    run.learned(worker)
    worker.signal(signal.SIGSTOP)
    run.partitions = 2
    run.admin.create_partitions([NewPartitions(run.input, run.partitions)])[run.input].result(DEADLINE_S)
    run.feed(mixed(500))
    run.delete(1, 50)
    worker.signal(signal.SIGCONT)
    assert "from offset 0 to 50 were deleted by retention" in worker.ends(ExitCode.INPUT)
    assert "from offset 0 to 50 were deleted by retention" in run.start().ends(ExitCode.INPUT)
    run.lost(1, 0, 50)
    run.overrides["input.on_lost"] = "continue"
    run.finish(run.start())


def test_a_hung_transaction_on_the_input(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(300))
    stranger = Producer(client(run.broker.bootstrap_servers) | {"transactional.id": run.id})
    stranger.init_transactions()
    stranger.begin_transaction()
    hidden = send(stranger, run.input, mixed(100))
    stranger.flush()
    run.feed(mixed(600))
    worker = run.start()
    worker.until("lag", lambda: list(worker.metric("lag_records").values()) == [700])
    assert list(worker.metric("position").values()) == [300]
    stranger.commit_transaction()
    run.fed[300:300] = hidden
    run.finish(worker)


def test_an_output_topic_that_is_deleted_under_a_worker(new_run: NewRun) -> None:
    run = new_run(**SHORT)
    run.feed(good(300))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 1)
    run.delete_topic(f"{run.id}.dead-letters")
    run.feed(mixed(1000))
    worker.ends(ExitCode.PUBLISH)
    assert "dead-letters is missing" in run.start().ends(ExitCode.TOPICS)
    topics.create(run.settings)
    run.finish(run.start())


def test_an_input_that_is_deleted_under_a_worker(new_run: NewRun) -> None:
    run = new_run(checkpoint__every_s=0.5, run__stop_deadline_s=5.0, kafka__request_timeout_s=1.0)
    run.feed(mixed(1000))
    worker = run.start()
    run.learned(worker)
    worker.until("save", lambda: run.saved() == run.ends())
    run.check()
    run.delete_topic(run.input)
    worker.until("warning", lambda: "not found in cluster metadata" in worker.text())
    not_ready(worker)
    assert f"a fetch of {run.input}[0]" in worker.page("readyz")[1]
    worker.reaches("kafka_silence_seconds", 12.0)  # longer than it takes the loop to look for new partitions
    worker.stop()
    assert f"{run.input} is missing" in run.start().ends(ExitCode.TOPICS)


def test_records_that_fall_off_retention_under_a_worker(new_run: NewRun) -> None:
    run = new_run(checkpoint__every_records=800)
    run.feed(mixed(1000))
    worker = run.start()
    run.learned(worker)
    worker.reaches("checkpoint_sequence", 1)
    worker.signal(signal.SIGSTOP)
    run.feed(mixed(3000))
    run.delete(0, 3500)
    worker.signal(signal.SIGCONT)
    assert "deleted by retention" in worker.ends(ExitCode.INPUT)
    run.check()
    # What was learned is saved first: it could not be learned again.
    assert run.saved()[run.input, 0] >= 1000
    assert "deleted by retention" in run.start().ends(ExitCode.INPUT)


def test_a_limit_that_is_lowered_under_a_worker(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(1000))
    worker = run.start_signalled(Point("transaction", "begin", 2), signal.SIGSTOP)
    worker.paused()
    run.set_max_message_bytes("weights", 100)
    worker.signal(signal.SIGCONT)
    assert "MessageSizeTooLargeError" in worker.ends(ExitCode.PUBLISH)
    assert "weights has max.message.bytes=100" in run.start().ends(ExitCode.TOPICS)
    run.set_max_message_bytes("weights", 4 * 1024 * 1024)
    run.finish(run.start())


def test_many_dead_letters_of_the_largest_size(new_run: NewRun) -> None:
    """Together they are more than the topic takes at once."""
    run = new_run(rejects__max_share=1.0)
    size = MAX_RECORD_BYTES - 100
    large, small = (Draft(None, b"x" * bytes_, [("label", b"1")], "undecodable_image") for bytes_ in (size, 20))
    run.feed([*mixed(500), *[large] * 25, *[small] * 15, *mixed(500)])
    run.finish(run.start())


def signed_in(run: Run, sasl_port: int) -> Run:
    """The run, its workers those of a user who has the rights that they need."""
    run.overrides |= {
        "kafka.bootstrap_servers": f"{HOST}:{sasl_port}",
        "kafka.security_protocol": "SASL_PLAINTEXT",
        "kafka.sasl_mechanism": "SCRAM-SHA-512",
        "kafka.sasl_username": USER,
        "kafka.sasl_password": PASSWORD,
    }
    for kind in (ResourceType.TOPIC, ResourceType.TRANSACTIONAL_ID, ResourceType.GROUP, ResourceType.BROKER):
        grant(run, kind)
    return run


def right(run: Run, kind: ResourceType) -> tuple[Any, ...]:
    """Everything on what belongs to the run, and on the cluster, which Kafka's client library calls BROKER."""
    names = {ResourceType.TOPIC: run.id, ResourceType.BROKER: "kafka-cluster"}
    name = names.get(kind, f"stream-learner.{run.id}.")
    pattern = ResourcePatternType.LITERAL if kind == ResourceType.BROKER else ResourcePatternType.PREFIXED
    return kind, name, pattern, f"User:{USER}", "*", AclOperation.ALL, AclPermissionType.ALLOW


def grant(run: Run, kind: ResourceType) -> None:
    (granted,) = run.admin.create_acls([AclBinding(*right(run, kind))]).values()
    granted.result(DEADLINE_S)


def revoke(run: Run, kind: ResourceType) -> None:
    (revoked,) = run.admin.delete_acls([AclBindingFilter(*right(run, kind))]).values()
    assert revoked.result(DEADLINE_S)


@pytest.mark.parametrize(
    "kind", [ResourceType.TOPIC, ResourceType.TRANSACTIONAL_ID, ResourceType.GROUP], ids=lambda kind: kind.name.lower()
)
def test_rights_that_are_revoked(new_run: NewRun, sasl_port: int, kind: ResourceType) -> None:
    run = signed_in(new_run(**SHORT), sasl_port)
    run.feed(mixed(1000))
    worker = run.start_signalled(Point("transaction", "begin", 2), signal.SIGSTOP)
    worker.paused()
    revoke(run, kind)
    worker.signal(signal.SIGCONT)
    assert "ACLs" in worker.ends(ExitCode.KAFKA)
    assert "ACLs" in run.start().ends(ExitCode.KAFKA)
    grant(run, kind)
    run.finish(run.start())


def test_credentials_that_are_revoked(new_run: NewRun, sasl_port: int) -> None:
    """Open connections go on; a checkpoint needs a new one and waits, as long as the unsaved budget lasts."""
    run = signed_in(new_run(kafka__request_timeout_s=2.0), sasl_port)
    run.feed(mixed(1000))
    worker = run.start()
    worker.reaches("checkpoint_sequence", 1)
    change = UserScramCredentialDeletion(USER, ScramMechanism.SCRAM_SHA_512)
    run.admin.alter_user_scram_credentials([change])[USER].result(DEADLINE_S)
    run.feed(mixed(1000))
    worker.until("refusal", lambda: "a checkpoint could not be written" in worker.text())
    worker.reaches("kafka_warnings_total", 1)
    assert "the credentials in [kafka]" in run.start().ends(ExitCode.KAFKA)
    secret = ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, 4096)
    change = UserScramCredentialUpsertion(USER, secret, PASSWORD.encode())
    run.admin.alter_user_scram_credentials([change])[USER].result(DEADLINE_S)
    run.finish(worker)
