"""Failed publications: they are never mistaken for a commit, and a restart repeats them."""

import signal

import pytest
from child import Point
from confluent_kafka import KafkaError, Message, Producer
from feed import client, mixed
from harness import SHORT, NewRun

from stream_learner.errors import ExitCode


@pytest.mark.parametrize(
    "point",
    [Point("transaction", "begin", 2), Point("transaction", "offsets", 2)],
    ids=["records", "commit"],
)
def test_what_times_out_is_not_committed(new_run: NewRun, point: Point) -> None:
    run = new_run(**SHORT)
    run.feed(mixed(500))
    worker = run.start_signalled(point, signal.SIGSTOP)
    worker.paused()
    run.broker.freeze()
    worker.signal(signal.SIGCONT)
    try:
        worker.ends(ExitCode.PUBLISH, ExitCode.WATCHDOG)  # the watchdog's time ran on during the pause
    finally:
        run.broker.thaw()
    run.finish(run.start())


def test_a_commit_that_does_not_end_is_ended(new_run: NewRun) -> None:
    """Without a broker to ask, the client asks for ever."""
    run = new_run(**SHORT)
    run.feed(mixed(500))
    worker = run.start_signalled(Point("transaction", "offsets", 2), signal.SIGSTOP)
    worker.paused()
    run.broker.stop()
    worker.signal(signal.SIGCONT)
    try:
        worker.ends(ExitCode.WATCHDOG)
    finally:
        run.broker.start()
    run.finish(run.start())


def test_a_refused_record_is_not_committed(new_run: NewRun) -> None:
    run = new_run()
    run.feed(mixed(500))
    worker = run.start_signalled(Point("transaction", "begin", 2), signal.SIGSTOP)
    worker.paused()
    run.set_max_message_bytes("metrics", 100)
    worker.signal(signal.SIGCONT)
    assert "MessageSizeTooLargeError" in worker.ends(ExitCode.PUBLISH)
    assert len(run.read("history")) == 1
    assert "max.message.bytes=100" in run.start().ends(ExitCode.TOPICS)
    run.set_max_message_bytes("metrics", 4 * 1024 * 1024)
    run.finish(run.start())


def test_an_open_transaction_does_not_hide_the_newest_manifest(new_run: NewRun) -> None:
    # The transaction's time runs on during the pause. Recovery may take longer than a session.
    run = new_run(**SHORT | {"checkpoint__timeout_s": 8.0}, recovery__timeout_s=4.0)
    run.feed(mixed(500))
    worker = run.start_signalled(Point("transaction", "begin", 2), signal.SIGSTOP)
    worker.paused()
    patient = {"transactional.id": "stranger", "transaction.timeout.ms": 300_000}
    stranger = Producer(client(run.broker.bootstrap_servers) | patient)
    stranger.init_transactions()
    stranger.begin_transaction()
    stranger.produce(f"{run.id}.checkpoints", b"not a manifest", b"key", on_delivery=delivered)
    stranger.flush()
    worker.signal(signal.SIGCONT)
    # Committed, but no reader can see it.
    assert "could not be read back in time" in worker.ends(ExitCode.PUBLISH)
    assert len(run.read("checkpoints")) == 1
    assert "transactional id stranger" in run.start().ends(ExitCode.KAFKA)
    run.overrides["recovery.timeout_s"] = 60.0
    worker = run.start()
    worker.reaches("build_info", 1)
    stranger.abort_transaction()
    run.finish(worker)


def delivered(error: KafkaError | None, _: Message) -> None:
    assert error is None, error


def test_a_second_worker_fences_the_first(new_run: NewRun) -> None:
    run = new_run(partitions=2)
    run.feed(mixed(500))
    first = run.start()
    run.learned(first)
    second = run.start()
    second.learning()
    run.feed(mixed(500))
    first.ends(ExitCode.FENCED)
    run.finish(second)


def test_training_outlives_a_broker_restart(new_run: NewRun) -> None:
    run = new_run(partitions=2, kafka__request_timeout_s=5.0)
    run.feed(mixed(500))
    worker = run.start()
    run.learned(worker)
    run.broker.stop()
    run.broker.start()
    run.feed(mixed(500))
    run.finish(worker)


def test_a_broker_restart_inside_a_transaction(new_run: NewRun) -> None:
    run = new_run(partitions=2, kafka__request_timeout_s=5.0)
    run.feed(mixed(500))
    worker = run.start_signalled(Point("transaction", "begin", 2), signal.SIGSTOP)
    worker.paused()
    run.broker.stop()
    run.broker.start()
    worker.signal(signal.SIGCONT)
    worker.until("its commit", lambda: len(run.read("history")) > 1)
    worker.kill()
    run.finish(run.start())
