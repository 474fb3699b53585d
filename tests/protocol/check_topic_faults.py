"""Changes of topics under a worker: it adapts, or ends so that the next start continues."""

import signal

from child import Point
from confluent_kafka import Producer
from confluent_kafka.cimpl import NewPartitions
from feed import client, good, mixed, send
from harness import DEADLINE_S, SHORT, NewRun, not_ready

from stream_learner.errors import ExitCode
from stream_learner.streams import topics


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
    patient = {"transactional.id": run.id, "transaction.timeout.ms": 300_000}
    stranger = Producer(client(run.broker.bootstrap_servers) | patient)
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
    run = new_run(checkpoint__every_s=0.5, run__stop_deadline_s=5.0, kafka__request_timeout_s=3.0)
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
    # It saves first what it has learned, because the records are gone.
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
